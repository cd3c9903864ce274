"""Block reflector orthogonal layers (Lai et al., arXiv 2505.15174)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from robustcert.layers.cholesky import regularised_factor
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d, Sizes
from robustcert.layers.frequency_reflection import reflected
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import product
from robustcert.network.device import stays_on_device
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation, constant
from robustcert.network.reflection import Reflection
from robustcert.norms.convolution import Pair


def block_reflector(v: Tensor, ridge: float = 0.0) -> Tensor:
    r"""Reflect at the orthogonal complement of V's columns, :math:`I - 2 V (V^* V)^{-1} V^*`.

    With V = QR this is :math:`I - 2 Q Q^*`, unitary and Hermitian whatever V is; the factorisation
    does not square V's condition, as a solve with :math:`V^* V` would. With a ridge,
    :math:`V^* V + \rho I` takes the place of :math:`V^* V`: then no eigenvalue exceeds 1, and those
    of columns that are small beside the others are far from -1.

    Args:
        v: Shape ``(*, m, n)`` with n at most m, real or complex.
        ridge: :math:`\rho` over the mean squared norm of V's columns.
    """
    identity = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    if ridge:
        gram = v.mH @ v
        rho = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        gram = gram + rho * torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        return identity - 2 * v @ torch.linalg.solve(gram, v.mH)
    q = torch.linalg.qr(v).Q
    return identity - 2 * q @ q.mH


class BROLinear(nn.Module):
    r"""Dense layer that reflects at the orthogonal complement of V's columns.

    .. math:: x \mapsto C\, (I - 2 V (V^\top V + \rho I)^{-1} V^\top)\, E\, x + b

    E pads the input by zeros and C drops outputs, so rows or columns of the larger square are kept.
    The eigenvalues of the square are 1 and :math:`1 - 2 s^2 / (s^2 + \rho)` for the singular values
    s of V: with :math:`\rho` of the size of rounding it is orthogonal, and never more than that.
    V has half as many columns as rows, and training applies the factors to the batch one after the
    other: the square itself is formed only to be folded.

    Reference: Lai et al., `Enhancing Certified Robustness via Block Reflector Orthogonal Layers and
    Logit Annealing Loss <https://arxiv.org/abs/2505.15174>`_, ICML 2025.

    Args:
        in_features: Size of the input, of shape ``(N, in_features)``.
        out_features: Size of the output.
        bias: Whether to add a learned bias.

    Example:
        >>> layer, x = BROLinear(4, 4, bias=False), torch.randn(2, 4)
        >>> torch.allclose(layer(layer(x)), x, atol=1e-5)  # a reflection is its own inverse
        True
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.size = max(in_features, out_features)
        self.v = nn.Parameter(torch.empty(self.size, rank(self.size)))
        orthogonal_(self.v)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        v = self.v
        coordinates = product(x, v[: self.in_features]).to(v.dtype)
        with torch.autocast(x.device.type, enabled=False):
            solved = _SolveGram.apply(v, coordinates.mT).mT
        change = self.out_features - self.in_features
        kept = F.pad(x, (0, change)) if change > 0 else x[:, : self.out_features]
        turned = product(solved, v[: self.out_features].mT)
        y = kept.to(turned.dtype) - 2 * turned
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The matrix in use, shape ``(out_features, in_features)``."""
        with torch.autocast(self.v.device.type, enabled=False):
            identity = torch.eye(self.in_features, dtype=self.v.dtype, device=self.v.device)
            rows = self.forward(identity)
            return (rows if self.bias is None else rows - self.bias).mT

    def lipschitz_estimate(self) -> float:
        """1, the norm up to rounding."""
        return 1.0

    def fold(self) -> Dense:
        """The layer with the square, or what is kept of it, as a constant."""
        return Dense(constant(self.weight), None if self.bias is None else constant(self.bias))

    def extra_repr(self) -> str:
        """Sizes, as torch.nn.Linear shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _SolveGram(torch.autograd.Function):
    """``(V^T V + rho I)^-1 B``, with a backward that needs no derivative of the factor."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, right: Tensor) -> Tensor:
        ridge = 4 * torch.finfo(v.dtype).eps * v.shape[1]
        factor = regularised_factor(v.mT, ridge)
        solution = torch.cholesky_solve(right, factor)
        ctx.save_for_backward(v, factor, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        v, factor, solution = ctx.saved_tensors
        at_right = torch.cholesky_solve(grad, factor)
        if 4 * solution.shape[1] < v.shape[1]:
            # A small batch: the gradient at the Gram matrix has a low rank and is not formed.
            at_v = product(product(v, at_right), solution.mT)
            at_v += product(product(v, solution), at_right.mT)
        else:
            at_gram = product(at_right, solution.mT)
            at_v = product(v, at_gram + at_gram.mT)
        return -at_v, at_right


def rank(size: int) -> int:
    """Half of the dimensions are reflected, at least one."""
    return max(1, size // 2)


class ReflectorFrequencies(FrequencyConstraint):
    """A block reflector at every frequency; rows or columns of the larger square are kept.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Steps between output positions, along height and width.
        padding: How far the first tap is before the output position, along both.
        period: Height and width of the circular map.
        columns: Columns of V; half as many as rows by default.
        ridge: See :func:`block_reflector`.

    Example:
        >>> rule = ReflectorFrequencies(2, 2, stride=(1, 1), padding=(1, 1), period=(4, 4))
        >>> rule.free_shape((3, 3))  # one column for each two rows
        (2, 1, 3, 3)
        >>> rule(torch.randn(rule.free_shape((3, 3)))).shape
        torch.Size([2, 2, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        period: tuple[int, int],
        columns: int | None = None,
        ridge: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, padding=padding, period=period)
        if (columns is not None and columns < 1) or not ridge >= 0:
            raise ValueError(
                f"expected columns of at least 1 and a ridge of at least 0, got {columns} and "
                f"{ridge}: set model.layer.conv.columns and model.layer.conv.ridge"
            )
        self.columns = columns
        self.ridge = ridge

    def free_shape(self, kernel_size: tuple[int, int]) -> tuple[int, ...]:
        """As many rows as the larger number of channels."""
        size = max(self.out_channels, self.in_channels * self.residues)
        return size, self.columns or rank(size), *kernel_size

    @property
    def is_large(self) -> bool:
        """Whether V is applied and kept rather than the kernel that it stands for."""
        return super().is_large and self._is_own

    @property
    def _is_own(self) -> bool:
        # A subclass may constrain blocks in another way.
        return type(self) is ReflectorFrequencies

    def map_spectrum(
        self, weight: Tensor, real: Tensor, imaginary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """On large maps the factors one after the other: no square and no QR decomposition.

        On an accelerator on all of them: it would decompose complex blocks one by one.
        """
        if not (self.is_large or (self._is_own and stays_on_device(weight))):
            return super().map_spectrum(weight, real, imaginary)
        # Rows or columns of the larger square are kept.
        x = F.pad(torch.cat([real, imaginary], 1), (0, len(weight) - real.shape[2]))
        y = reflected(weight, x, self.map, self.ridge)
        first, second = y[:, :, : self.out_channels].chunk(2, 1)
        return first, second

    def small_operation(
        self, weight: Tensor, bias: Tensor | None, sizes: Sizes
    ) -> Operation | None:
        """The map with V for its constant, where a kernel as large as the map would be large."""
        if not self.is_large:
            return None
        return Reflection(
            weight,
            bias,
            outputs=self.out_channels,
            input_size=sizes[0],
            output_size=sizes[1],
            period=self.period,
            stride=self.stride,
            ridge=self.ridge,
        )

    def constrain(self, blocks: Tensor) -> Tensor:
        """Reflect complex blocks ``(F, m, n)``."""
        square = block_reflector(blocks, self.ridge)
        return square[:, : self.out_channels, : self.in_channels * self.residues]


class BROConv2d(FrequencyConv2d):
    """Convolution with orthonormal rows or columns on a torus by :class:`ReflectorFrequencies`.

    The map is extended by zeros and the output cropped, so that its opposite borders hardly meet.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, in input positions, or its height and width.
        stride: Step between output positions, one number or two.
        padding: That of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input.
        margin: Rows and columns of zeros.
        columns: Columns of V; half as many as rows by default.
        ridge: See :func:`block_reflector`.
        bias: Whether to add a learned bias.

    Example:
        >>> layer = BROConv2d(2, 2, 3, padding=1, input_size=(6, 6), bias=False)
        >>> layer.period  # the map with its margin
        (8, 8)
        >>> lipschitz_bound(layer, (2, 6, 6)) < 1.001
        True
    """

    constraint = ReflectorFrequencies

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        margin: int = 2,
        columns: int | None = None,
        ridge: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            input_size=input_size,
            margin=margin,
            bias=bias,
            options={"columns": columns, "ridge": ridge},
        )
