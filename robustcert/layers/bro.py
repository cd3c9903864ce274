"""Block reflector orthogonal layers (Lai et al., arXiv 2505.15174)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from robustcert.layers.cholesky import cholesky_factor, regularised_factor
from robustcert.layers.fft import FrequencyConstraint, FrequencyConv2d, Sizes, analyse
from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import product, products
from robustcert.network.device import stays_on_device
from robustcert.network.linear import Dense
from robustcert.network.operation import Operation, constant
from robustcert.network.reflection import Reflection
from robustcert.norms.convolution import Pair

# Entries of V's blocks that are in work at once: what a processor holds near by.
PIECE = 2**21
# Columns that LAPACK, which is slow next to a product, factors at once.
PANEL = 32


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


class _GramTaps(torch.autograd.Function):
    r"""Taps of :math:`V^\top V`, shape ``(n, n, 2 h - 1, 2 w - 1)``, of taps ``(m, n, h, w)``.

    :math:`G_k = \sum_a V_a^\top V_{a + k}`, read off one product of all taps with all: V's blocks
    at all frequencies, of which there are many more, are not multiplied.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        columns, *sides = v.shape[1:]
        taps = v.permute(0, 2, 3, 1).flatten(1)
        ctx.save_for_backward(v, taps)
        every = product(taps.mT, taps).unflatten(1, (-1, columns)).unflatten(0, (-1, columns))
        shape = (2 * sides[0] - 1, 2 * sides[1] - 1)
        gram = v.new_zeros(math.prod(shape), columns, columns)
        pairs = every.transpose(1, 2).flatten(0, 1)
        gram.index_add_(0, _differences(sides[0], sides[1], v.device), pairs)
        return gram.permute(1, 2, 0).unflatten(2, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        v, taps = ctx.saved_tensors
        columns, *sides = v.shape[1:]
        count = math.prod(sides)
        # A difference and its opposite have transposed taps.
        grad = grad + grad.transpose(0, 1).flip(2, 3)
        pairs = grad.flatten(2).permute(2, 0, 1)[_differences(sides[0], sides[1], v.device)]
        every = pairs.view(count, count, columns, columns).transpose(1, 2)
        at_taps = product(taps, every.reshape(count * columns, count * columns))
        return at_taps.view(len(v), *sides, columns).permute(0, 3, 1, 2)


def _differences(height: int, width: int, device: torch.device) -> Tensor:
    """For all pairs of taps a and b, the place of b - a among all differences."""
    rows, columns = (torch.arange(n, dtype=torch.int64, device=device) for n in (height, width))
    down = rows[None, :] - rows[:, None] + height - 1
    right = columns[None, :] - columns[:, None] + width - 1
    places = down[:, None, :, None] * (2 * width - 1) + right[None, :, None, :]
    return places.flatten()


class _ReflectBlocks(torch.autograd.Function):
    r"""Rows ``x - 2 V (V* V + rho I)^-1 V* x`` of blocks V, rho the multiple ``ridge`` of a mean.

    ``cosine`` and ``sine``, both ``(F, m, n)``, are the parts of V's conjugates, ``gram`` is
    :math:`V^* V`, whose mean diagonal is meant, and ``x`` and the result are ``(F, 2 N, m)``, real
    parts before imaginary ones. Solved by a factor of a matrix that is larger by rounding, with one
    step of refinement. Backward writes the gradient at V once, where autograd would add up four.
    """

    @staticmethod
    def forward(
        ctx: Any, cosine: Tensor, sine: Tensor, gram: Tensor, x: Tensor, ridge: float
    ) -> Tensor:
        mean = gram.diagonal(dim1=1, dim2=2).real.mean(1)[:, None]
        if ridge:
            gram = gram.clone()
            gram.diagonal(dim1=1, dim2=2).add_(ridge * mean)
        larger = gram.clone()
        rounding = 4 * torch.finfo(gram.dtype).eps * gram.shape[1]
        larger.diagonal(dim1=1, dim2=2).add_(rounding * mean)
        factor = _factor(larger)
        solved = _solve(gram, factor, _onto(cosine, sine, x))
        ctx.save_for_backward(cosine, sine, gram, factor, x, solved)
        ctx.ridge = ridge
        return x - 2 * _out_of(cosine, sine, solved)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, None]:
        cosine, sine, gram, factor, x, solved = ctx.saved_tensors
        at_right = _solve(gram, factor, -2 * _onto(cosine, sine, grad))
        at_gram = -at_right @ solved.mH
        if ctx.ridge:
            at_rho = (at_right.conj() * solved).real.sum((1, 2))[:, None]
            at_gram.diagonal(dim1=1, dim2=2).sub_(ctx.ridge / gram.shape[1] * at_rho)
        at_v: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            rows = torch.cat([x, -2 * grad], 1).mT
            (a, b), (c, d) = (torch.view_as_real(t.mT).unbind(-1) for t in (at_right, solved))
            at_v = [products(rows, torch.cat(t, 1)) for t in ((a, b, c, d), (b, -a, d, -c))]
        return *at_v, at_gram, grad + _out_of(cosine, sine, at_right), None


def _factor(gram: Tensor) -> Tensor:
    """Cholesky factors of complex matrices, panel by panel: most of the work is products."""
    if stays_on_device(gram):
        return cholesky_factor(gram)
    factor = torch.zeros_like(gram)
    for start in range(0, gram.shape[1], PANEL):
        stop = start + PANEL
        panel, left = gram[:, start:, start:stop], factor[:, start:, :start]
        if start:
            panel = torch.baddbmm(panel, left, left[:, :PANEL].mH, alpha=-1)
        corner = cholesky_factor(panel[:, :PANEL])
        factor[:, start:stop, start:stop] = corner
        below = panel[:, PANEL:]
        factor[:, stop:, start:stop] = torch.linalg.solve_triangular(
            corner.mH, below, upper=True, left=False
        )
    return factor


def _solve(gram: Tensor, factor: Tensor, right: Tensor) -> Tensor:
    solution = _twice(factor, right)
    return solution + _twice(factor, right - gram @ solution)


def _twice(factor: Tensor, right: Tensor) -> Tensor:
    """What `cholesky_solve` gives, which copies the factor first."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mH, half, upper=True)


def _onto(cosine: Tensor, sine: Tensor, x: Tensor) -> Tensor:
    """``V* x``, complex, ``(F, n, N)``, of rows in parts."""
    count = x.shape[1] // 2
    first, second = products(x, cosine), products(x, sine)
    return torch.complex(
        first[:, :count] - second[:, count:], first[:, count:] + second[:, :count]
    ).mT


def _out_of(cosine: Tensor, sine: Tensor, z: Tensor) -> Tensor:
    """``V z`` in parts, ``(F, 2 N, m)``, of complex columns ``(F, n, N)``."""
    parts = torch.cat([z.mT.real, z.mT.imag], 1)
    first, second = products(parts, cosine.mT), products(parts, sine.mT)
    count = z.shape[2]
    return torch.cat(
        [first[:, :count] + second[:, count:], first[:, count:] - second[:, :count]], 1
    )


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
        taps = None
        if math.prod(weight.shape[2:]) ** 2 < 4 * len(real):
            taps = _GramTaps.apply(weight)
        # Taps first, as they are transformed.
        weight = weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
        size = max(1, PIECE // math.prod(weight.shape[:2]))
        starts = range(0, len(real), size)
        pieces = [
            self._reflect(weight, taps, slice(start, start + size), *parts)
            for start, *parts in zip(starts, real.split(size), imaginary.split(size), strict=True)
        ]
        first, second = zip(*pieces, strict=True)
        return torch.cat(first), torch.cat(second)

    def _reflect(
        self, weight: Tensor, taps: Tensor | None, some: slice, real: Tensor, imaginary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both parts of the output's transform at some frequencies."""
        origin = weight.shape[2] // 2, weight.shape[3] // 2
        cosine, sine = analyse(weight, self.map, origin, some)
        if taps is None:
            # Where V's taps are many, the product of its blocks is cheaper than theirs.
            blocks = torch.complex(cosine, -sine)
            gram = blocks.mH @ blocks
        else:
            origin = taps.shape[2] // 2, taps.shape[3] // 2
            even, odd = analyse(taps, self.map, origin, some)
            gram = torch.complex(even, -odd)
        # Rows or columns of the larger square are kept.
        x = F.pad(torch.cat([real, imaginary], 1), (0, len(weight) - real.shape[2]))
        y = _ReflectBlocks.apply(cosine, sine, gram, x, self.ridge)
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
