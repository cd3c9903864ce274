"""Orthogonal layers that training moves along the manifold (LipNeXt, arXiv 2601.18513)."""

import math

import torch
from torch import Tensor, nn

from robustcert.layers.constrained import ConstrainedLinear
from robustcert.layers.exponential import skew_exponential
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.patch import PatchConv2d
from robustcert.layers.product import product
from robustcert.network.device import stays_on_device
from robustcert.norms.convolution import Pair, pair


def fast_exponential(a: Tensor) -> Tensor:
    r"""Exponential of a skew matrix by as few products as its Frobenius norm permits.

    The Taylor polynomial of degree 2 below a norm of 0.05, 3 below 0.25 and 4 below 1; else the
    exponential itself. The polynomial P misses orthogonality by :math:`\lVert P^\top P - I \rVert`
    of at most :math:`a^4/4`, :math:`a^4/12` and :math:`a^6/72`. Where the host is not to wait for
    the norm it is :func:`robustcert.layers.exponential.skew_exponential`.
    """
    if stays_on_device(a):
        return skew_exponential(a)
    size = float(torch.linalg.matrix_norm(a.detach()))
    if not size < 1:
        return torch.matrix_exp(a)
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    result = identity
    for k in range(2 if size < 0.05 else 3 if size < 0.25 else 4, 0, -1):
        result = torch.addmm(identity, a, result, alpha=1 / k)
    return result


class ManifoldOrthogonal(nn.Module):
    r"""Keep :math:`X_{t+1} = X_t \exp(A_t)`: the parameter is a step A in the tangent space.

    The parameter is zero but for the optimizer's last step. The next forward pass in training
    moves X by it, A being skew, and sets it back to zero; there :math:`dW = X\, dA`, so the
    optimizer sees the Riemannian gradient, and its momentum lives in the tangent space. X is
    returned to the manifold by its polar factor from time to time. In evaluation nothing moves and
    :math:`W = X \exp(A)`. Rows or columns of the larger square are orthonormal.

    Optimizers that average weights (Lookahead, schedule-free) would average steps from different
    points, not matrices; the LightningModule refuses them.

    Reference: Hu, Hu and Fredrikson, `LipNeXt <https://arxiv.org/abs/2601.18513>`_, ICLR 2026.

    Args:
        in_features: Columns.
        out_features: Rows.
        retract_every: Steps from one retraction to the next.

    Example:
        >>> rule = ManifoldOrthogonal(2, 2).eval()
        >>> W = rule(torch.tensor([[0.0, torch.pi / 6], [0.0, 0.0]]))  # a turn by 30 degrees
        >>> [f"{cosine:.3f}" for cosine in (W @ rule.point.T).diagonal()]
        ['0.866', '0.866']
    """

    weights_are_steps = True
    point: Tensor
    steps: Tensor

    def __init__(self, in_features: int, out_features: int, *, retract_every: int = 100) -> None:
        super().__init__()
        if retract_every < 1:
            raise ValueError(
                f"retract_every must be at least 1, got {retract_every}: set "
                "model.layer.dense.retract_every and model.layer.patch.retract_every"
            )
        self.retract_every = retract_every
        point = torch.empty(out_features, in_features)
        orthogonal_(point)
        self.register_buffer("point", point)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, step: Tensor) -> Tensor:
        """The orthogonal matrix; in training, ``step`` is taken and becomes zero."""
        with torch.autocast(step.device.type, enabled=False):
            if not self.training:
                return self._moved(fast_exponential(step - step.mT))
            with torch.no_grad():
                self._take(step)
            # At zero, the exponential is I + A, in value and derivative.
            return self.point + self._moved(step - step.mT)

    def _moved(self, rotation: Tensor) -> Tensor:
        # From the side on which the matrix is square, or the larger.
        wide = self.point.shape[0] < self.point.shape[1]
        return product(self.point, rotation) if wide else product(rotation, self.point)

    def _take(self, step: Tensor) -> None:
        # A new tensor: a graph of the same step may hold the old one.
        self.point = self._moved(fast_exponential(step - step.mT))
        self.steps += 1
        if stays_on_device(step):
            retracted = _nearer(self.point.double()).to(self.point)
            self.point = torch.where(self.steps % self.retract_every == 0, retracted, self.point)
        elif int(self.steps) % self.retract_every == 0:
            u, _, v = torch.linalg.svd(self.point.double(), full_matrices=False)
            self.point = (u @ v).to(self.point)
        step.zero_()


def _nearer(point: Tensor) -> Tensor:
    r"""A step of Newton and Schulz to the polar factor, :math:`X (3 I - X^\top X) / 2`.

    It squares the distance from the manifold, which steps leave by rounding only.
    """
    tall = point if point.shape[0] >= point.shape[1] else point.mT
    moved = 1.5 * tall - 0.5 * tall @ (tall.mT @ tall)
    return moved if tall is point else moved.mT


class ManifoldLinear(ConstrainedLinear):
    """Dense layer with orthonormal rows or columns by :class:`ManifoldOrthogonal`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        retract_every: Steps from one retraction to the next.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = ManifoldLinear(4, 4)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> layer(torch.randn(8, 4)).sum().backward()
        >>> optimizer.step()
        >>> W = layer.eval().weight
        >>> torch.allclose(W @ W.T, torch.eye(4), atol=1e-5)  # no projection was needed
        True
    """

    def __init__(
        self, in_features: int, out_features: int, *, retract_every: int = 100, bias: bool = True
    ) -> None:
        side = max(in_features, out_features)
        super().__init__(
            in_features,
            out_features,
            parametrization=ManifoldOrthogonal(
                in_features, out_features, retract_every=retract_every
            ),
            free_shape=(side, side),
            bias=bias,
        )
        nn.init.zeros_(self.get_parameter("parametrizations.weight.original"))


class ManifoldPatchConv2d(PatchConv2d):
    """Convolution on disjoint patches, orthogonal by :class:`ManifoldOrthogonal`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the patches, or height and width; 1 for a projection of channels.
        stride: The same.
        padding: 0.
        input_size: ``(H, W)`` of the input.
        retract_every: Steps from one retraction to the next.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = ManifoldPatchConv2d(3, 12, 2, stride=2, input_size=(4, 4), bias=False)
        >>> x = torch.randn(1, 3, 4, 4)
        >>> f"{layer(x).norm() / x.norm():.4f}"
        '1.0000'
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        retract_every: int = 100,
        bias: bool = True,
    ) -> None:
        inputs = in_channels * math.prod(pair(kernel_size))
        side = max(inputs, out_channels)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            rule=ManifoldOrthogonal(inputs, out_channels, retract_every=retract_every),
            free_shape=(side, side),
            bias=bias,
        )
        nn.init.zeros_(self.get_parameter("parametrizations.weight.original"))
