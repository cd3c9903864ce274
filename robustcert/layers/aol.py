"""Almost-orthogonal layers by rescaling (Prach and Lampert, arXiv 2208.03160)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.layers.constrained import ConstrainedConv2d, ConstrainedLinear
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import gram
from robustcert.layers.residues import from_residues, to_residues
from robustcert.norms.convolution import Pair, pair


def _inverse_root(row_sums: Tensor) -> Tensor:
    # A zero column has row sum 0 and stays zero whatever its finite factor is.
    return row_sums.clamp_min(torch.finfo(row_sums.dtype).tiny).rsqrt()


class AOLDense(nn.Module):
    r"""Rescale columns, :math:`W D` with :math:`D_{ii} = (\sum_j |W^\top W|_{ij})^{-1/2}`.

    :math:`\lVert W D \rVert_2 \le 1` because :math:`D^{-2} - W^\top W` is diagonally dominant.
    A wide matrix is rescaled by rows, which needs the smaller product.

    Reference: Prach and Lampert, `Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
    Networks <https://arxiv.org/abs/2208.03160>`_, ECCV 2022.

    Example:
        >>> AOLDense()(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7071, 0.7071],
                [0.0000, 0.0000]])
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Rescale ``weight`` of shape ``(out_features, in_features)``."""
        with torch.autocast(weight.device.type, enabled=False):
            if weight.shape[0] < weight.shape[1]:
                return weight * _inverse_root(gram(weight.mT).abs().sum(1))[:, None]
            return weight * _inverse_root(gram(weight).abs().sum(1))


class AOLConvolution(nn.Module):
    r"""Rescale the input channels of a kernel so that the convolution has norm at most 1.

    .. math:: d_c = \Big(\sum_{c', \delta} \big|\sum_{o, \tau} K_{o c \tau} K_{o c' (\tau + \delta)}
        \big|\Big)^{-1/2}

    The sum over the shifts :math:`\delta` bounds a row of :math:`T^\top T` for the convolution T on
    an unbounded grid; zero padding on a finite map takes a sub-matrix, which has no larger norm.
    With a stride s, the residues of positions modulo s are made channels first, which leaves a
    convolution of stride 1 and loses nothing: disjoint patches are rescaled as a matrix.

    Reference: Prach and Lampert, ECCV 2022, Theorem 2 (stride 1).

    Args:
        stride: Step between output positions, one number or two.

    Example:
        >>> AOLConvolution()(torch.ones(1, 1, 2, 2))[0, 0]
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
        >>> AOLConvolution(stride=2)(torch.ones(1, 1, 2, 2))[0, 0]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(self, stride: Pair = 1) -> None:
        super().__init__()
        self.stride = pair(stride)

    def forward(self, weight: Tensor) -> Tensor:
        """Rescale ``weight`` of shape ``(out_channels, in_channels, k, l)``."""
        height, width = weight.shape[2:]
        below, beside = (-n % s for n, s in zip((height, width), self.stride, strict=True))
        with torch.autocast(weight.device.type, enabled=False):
            kernel = to_residues(F.pad(weight, (0, beside, 0, below)), self.stride)
            by_input = kernel.transpose(0, 1)
            around = (kernel.shape[2] - 1, kernel.shape[3] - 1)
            correlation = F.conv2d(by_input, by_input, padding=around)
            scale = _inverse_root(correlation.abs().sum((1, 2, 3)))[:, None, None]
            return from_residues(kernel * scale, self.stride)[..., :height, :width]


class AOLLinear(ConstrainedLinear):
    """Dense layer of norm at most 1 by :class:`AOLDense`.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = AOLLinear(8, 4)
        >>> _ = torch.nn.init.normal_(layer.parametrizations.weight.original)
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) <= 1)
        True
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, parametrization=AOLDense(), bias=bias)


class AOLConv2d(ConstrainedConv2d):
    """Convolution of norm at most 1 by :class:`AOLConvolution`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, or its height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the input, one number or two.
        input_size: ``(H, W)`` of the input.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = AOLConv2d(3, 8, 4, stride=2, padding=1, input_size=(8, 8))
        >>> layer(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
        >>> lipschitz_bound(layer, (3, 8, 8)) < 1.001
        True
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
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            parametrization=AOLConvolution(stride),
            bias=bias,
        )
        # One tap of every residue, so that no two overlap: dense random ones would be rescaled to a
        # norm of about a third, which leaves nothing of the signal after a few layers.
        kernel = self.get_parameter("parametrizations.weight.original")
        size = pair(kernel_size)
        high, wide = (min(s, k) for s, k in zip(self.stride, size, strict=True))
        top, left = (size[0] - high) // 2, (size[1] - wide) // 2
        taps = torch.empty(out_channels, in_channels, high, wide)
        orthogonal_(taps)
        with torch.no_grad():
            kernel.zero_()[:, :, top : top + high, left : left + wide] = taps
