"""Convolutions whose kernel is constrained frequency by frequency."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robustcert.layers.orthogonal_start import orthogonal_
from robustcert.layers.product import product
from robustcert.layers.residues import from_residues, to_residues
from robustcert.network.linear import CircularConvolution
from robustcert.network.operation import Operation, constant
from robustcert.network.orthogonal import OrthogonalConvolution
from robustcert.network.overrides import constant_in_graphs
from robustcert.norms.convolution import Pair, pair

# Height and width of an input and of its output.
Sizes = tuple[tuple[int, int], tuple[int, int]]
# Positions of the largest map that is transformed by a product.
LARGE = 1024
# Maximum number of entries of a kernel as large as the map that a layer is folded to.
MAX_KERNEL = 2**22


class FrequencyConstraint(nn.Module):
    r"""Map a small free kernel to the kernel, of the size of the map, of a circular convolution.

    The residues of positions modulo the stride become channels, which leaves a circular
    convolution of stride 1, block-diagonal after the discrete Fourier transform. Every block is
    constrained by itself, so the convolution keeps the largest norm of the blocks. Real kernels
    stay real because :meth:`constrain` commutes with conjugation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Steps between output positions, along height and width.
        padding: How far the first tap is before the output position, along both.
        period: Height and width of the circular map, multiples of the strides.

    Example:
        >>> class Scaled(FrequencyConstraint):
        ...     def constrain(self, blocks):
        ...         return blocks / torch.linalg.matrix_norm(blocks, 2).clamp_min(1)[:, None, None]
        >>> rule = Scaled(1, 1, stride=(1, 1), padding=(0, 0), period=(4, 4))
        >>> kernel = rule(torch.full(rule.free_shape((1, 1)), 3.0))
        >>> f"{kernel.sum():.4f}"  # from 3, at frequency 0
        '1.0000'
    """

    # Of network/orthogonal.py, where what a class constrains blocks to is one of these.
    rule: ClassVar[str | None] = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        period: tuple[int, int],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.padding = padding
        self.period = period
        self.residues = math.prod(stride)

    def free_shape(self, kernel_size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the free kernel."""
        return self.out_channels, self.in_channels * self.residues, *kernel_size

    @property
    def is_large(self) -> bool:
        """Whether a kernel as large as the map would be too large to be folded to."""
        return self.in_channels * self.out_channels * math.prod(self.period) > MAX_KERNEL

    def small_operation(
        self, weight: Tensor, bias: Tensor | None, sizes: Sizes
    ) -> Operation | None:
        """The folded layer with its free kernel as a constant; None where it is to be the kernel.

        Args:
            weight: The free kernel, a constant.
            bias: Likewise.
            sizes: Of input and output.
        """
        # A subclass that inherits the rule may constrain blocks in another way.
        rule = vars(type(self)).get("rule")
        wraps = any(k > n for k, n in zip(weight.shape[2:], self.map, strict=True))
        if rule is None or not self.is_large or wraps:
            return None
        return OrthogonalConvolution(
            weight,
            bias,
            rule=rule,
            outputs=self.out_channels,
            input_size=sizes[0],
            output_size=sizes[1],
            period=self.period,
            stride=self.stride,
        )

    @abstractmethod
    def constrain(self, blocks: Tensor) -> Tensor:
        """Complex blocks ``(F, *free_shape[:2])`` to ``(F, out_channels, in_channels residues)``.

        Singular values of the result are at most 1.
        """

    @property
    def map(self) -> tuple[int, int]:
        """Height and width of the circular map of output positions."""
        return self.period[0] // self.stride[0], self.period[1] // self.stride[1]

    def blocks(self, weight: Tensor) -> Tensor:
        """The constrained blocks ``(F, out_channels, in_channels residues)`` of a free kernel."""
        with torch.autocast(weight.device.type, enabled=False):
            return self.constrain(self.spectrum(weight))

    def map_spectrum(
        self, weight: Tensor, real: Tensor, imaginary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both parts ``(F, N, out_channels)`` of the output's transform, from those of the input's.

        Args:
            weight: The free kernel.
            real: Shape ``(F, N, in_channels residues)``.
            imaginary: The same.
        """
        # Of the conjugate blocks: the layer correlates.
        blocks = self.blocks(weight).resolve_conj()
        turn, skew = torch.view_as_real(blocks).permute(3, 0, 2, 1).contiguous().unbind()
        return (
            torch.bmm(real, turn).baddbmm_(imaginary, skew),
            torch.bmm(imaginary, turn).baddbmm_(real, -skew),
        )

    def spectrum(self, weight: Tensor) -> Tensor:
        """The transform of a free kernel, shape ``(F, *free_shape[:2])``."""
        origin = weight.shape[2] // 2, weight.shape[3] // 2
        return torch.complex(*analyse(weight, self.map, origin))

    def forward(self, weight: Tensor) -> Tensor:
        """The kernel ``(out_channels, in_channels, *period)`` from the free one."""
        blocks = self.blocks(weight)
        with torch.autocast(weight.device.type, enabled=False):
            kernel = _synthesise(blocks.real, blocks.imag, self.map, self.map)
            # Tap a of residue r is tap s a + r; the origin moves to tap ``padding``.
            kernel = from_residues(kernel, self.stride)
            return kernel.roll(self.padding, (2, 3))


# Transforms of small maps are products: they put the frequencies first, where the blocks are, and
# read and write what is not padding only. A fast transform would want its result copied.


def analyse(
    x: Tensor,
    period: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """Real and imaginary part ``(F, N, C)`` of the transform of ``(N, C, h, w)``, 0 elsewhere."""
    count, channels, *size = x.shape
    if math.prod(size) > LARGE and origin == (0, 0):
        beyond = (0, period[1] - size[1], 0, period[0] - size[0])
        spectrum = torch.fft.rfft2(F.pad(x, beyond)).flatten(2).permute(2, 0, 1)
        return spectrum.real, spectrum.imag
    x = x.reshape(-1, math.prod(size)).mT
    cosines, sines, _ = waves_at(period, (size[0], size[1]), origin, x.dtype, x.device)
    real, imaginary = (product(part, x).view(-1, count, channels) for part in (cosines, sines))
    return real, imaginary


def _synthesise(
    real: Tensor, imaginary: Tensor, period: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The map ``(N, C, *size)`` of a transform's parts ``(F, N, C)``, cut to ``size``."""
    if math.prod(size) > LARGE:
        spectrum = torch.complex(real, imaginary).permute(1, 2, 0).unflatten(2, (period[0], -1))
        return torch.fft.irfft2(spectrum, s=period)[:, :, : size[0], : size[1]]
    cosines, sines, counts = waves_at(period, size, (0, 0), real.dtype, real.device)
    share = counts[:, None] / math.prod(period)
    y = product(real.flatten(1).mT, share * cosines)
    y += product(imaginary.flatten(1).mT, share * sines)
    return y.view(*real.shape[1:], *size)


# A compiled step has them for constants.
@constant_in_graphs
def waves_at(
    period: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and minus sines of frequencies at positions from ``-origin`` on; their multiplicity.

    Shapes ``(F, size[0] size[1])``, twice, and ``(F,)``. Of a real map's frequencies, half of the
    columns: the mirror image of a frequency has the conjugate. Where a column is its own image,
    which a fast transform does not use, products leave out half of its rows as well.
    """
    return _kept_waves(period, size, origin, math.prod(period) <= LARGE, dtype, device)


# What is kept may be met again in training, which refuses tensors of the inference mode.
@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _kept_waves(
    period: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int],
    once: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    turns = [
        (torch.outer(_range(frequencies), _range(n) - first) % whole).double() / whole
        for frequencies, n, first, whole in zip(
            (period[0], period[1] // 2 + 1), size, origin, period, strict=True
        )
    ]
    angle = 2 * math.pi * (turns[0][:, None, :, None] + turns[1][None, :, None, :])
    rows, columns = _range(period[0])[:, None], _range(period[1] // 2 + 1)[None]
    own_row, own_column = 2 * rows % period[0] == 0, 2 * columns % period[1] == 0
    counts = 2 - (own_column & (own_row | (not once))).double()
    if once:
        counts *= ~own_column | (2 * rows <= period[0])
    kept = counts.flatten() > 0
    angle, counts = angle.flatten(2).flatten(0, 1)[kept], counts.flatten()[kept]
    return (
        angle.cos().to(device, dtype),
        -angle.sin().to(device, dtype),
        counts.to(device, dtype),
    )


def _range(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device="cpu")


class FrequencyConv2d(nn.Module):
    """Circular convolution of norm at most 1, on a map of one size only.

    Inputs that are smaller than the circular map are extended by zeros, and outputs beyond the
    size that a zero-padded convolution of the same arguments gives are dropped. Neither raises the
    norm. The map is the input's own size wherever the stride and the number of outputs permit it,
    enlarged by ``margin``. A subclass names its ``constraint``.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, *input_size)``.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, on the map of output positions, or height and width.
        stride: Step between output positions, one number or two.
        padding: Zeros on each side of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input; another size is refused.
        margin: Zeros that keep one border of the map from the other.
        bias: Whether to add a learned bias.
        options: Further options of the constraint.

    Example:
        >>> class CayleyLike(FrequencyConv2d):
        ...     constraint = CayleyFrequencies
        >>> layer = CayleyLike(2, 4, 3, stride=2, padding=1, input_size=(6, 6))
        >>> layer(torch.zeros(1, 2, 6, 6)).shape
        torch.Size([1, 4, 3, 3])
    """

    constraint: ClassVar[type[FrequencyConstraint]]
    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        input_size: tuple[int, int],
        margin: int = 0,
        bias: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # The kernel's side on the map of output positions, on which the constraint acts.
        size, steps, around = pair(kernel_size), pair(stride), pair(padding)
        side = (-(-size[0] // steps[0]), -(-size[1] // steps[1]))
        self.stride = steps
        self.padding = around
        self.input_size = (input_size[0], input_size[1])
        outputs = [
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(input_size, size, steps, around, strict=True)
        ]
        if min(outputs) < 1:
            raise ValueError(
                f"a kernel of side {kernel_size} does not fit a map of {self.input_size} with "
                f"padding {padding}: use a larger image or a smaller model.depth"
            )
        if margin < 0:
            raise ValueError(
                f"margin must be at least 0, got {margin}: set model.layer.conv.margin"
            )
        self.output_size = (outputs[0], outputs[1])
        height, width = (
            s * max(-(-(n + margin) // s), out)
            for n, s, out in zip(input_size, steps, outputs, strict=True)
        )
        self.period = (height, width)
        rule = self.constraint(
            in_channels,
            out_channels,
            stride=steps,
            padding=around,
            period=self.period,
            **(options or {}),
        )
        self.weight = nn.Parameter(torch.empty(rule.free_shape(side)))
        orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        parametrize.register_parametrization(self, "weight", rule, unsafe=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, *input_size)`` to ``(N, out_channels, *output_size)``."""
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"a circular convolution for maps of {self.input_size} got {tuple(x.shape[2:])}: "
                "its norm is known at this size only"
            )
        # The weight's own spectrum: its kernel would be transformed there and back.
        rules: Any = self.get_submodule("parametrizations.weight")
        rule, weight = rules[0], rules.original
        # Transforms need full precision; the output has the precision of a convolution's.
        with torch.autocast(x.device.type, enabled=False):
            signal, (below, beside) = (
                x.to(weight.dtype),
                (-n % s for n, s in zip(x.shape[2:], self.stride, strict=True)),
            )
            if below or beside:
                signal = F.pad(signal, (0, beside, 0, below))
            real, imaginary = analyse(to_residues(signal, self.stride), rule.map)
            real, imaginary = rule.map_spectrum(weight, real, imaginary)
            y = _synthesise(real, imaginary, rule.map, self.output_size)
            if self.bias is not None:
                y += self.bias[:, None, None]
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y

    def lipschitz_estimate(self) -> float:
        """1, the norm that the constraint aims at."""
        return 1.0

    def fold(self) -> Operation:
        """The layer with its kernel, as large as the map, as a constant, or with its free one."""
        rules: Any = self.get_submodule("parametrizations.weight")
        rule, bias = rules[0], None if self.bias is None else constant(self.bias)
        sizes = self.input_size, self.output_size
        small = rule.small_operation(constant(rules.original), bias, sizes)
        return small or CircularConvolution(
            constant(self.weight),
            bias,
            input_size=self.input_size,
            output_size=self.output_size,
            stride=self.stride,
            padding=self.padding,
        )
