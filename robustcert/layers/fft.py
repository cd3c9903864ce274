"""Convolutions whose kernel is constrained frequency by frequency."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from robustcert.plain import CircularConvolution, constant


class FrequencyConstraint(nn.Module):
    r"""Map a small free kernel to the kernel, of the size of the map, of a circular convolution.

    The residues of positions modulo the stride become channels, which leaves a circular
    convolution of stride 1, block-diagonal after the discrete Fourier transform. Every block is
    constrained by itself, so the convolution keeps the largest norm of the blocks. Real kernels
    stay real because :meth:`constrain` commutes with conjugation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step between output positions.
        padding: How far the first tap is before the output position.
        period: Height and width of the circular map, multiples of the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        padding: int,
        period: tuple[int, int],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.padding = padding
        self.period = period

    def free_shape(self, kernel_size: int) -> tuple[int, ...]:
        """Shape of the free kernel."""
        return self.out_channels, self.in_channels * self.stride**2, kernel_size, kernel_size

    @abstractmethod
    def constrain(self, blocks: Tensor) -> Tensor:
        """Complex blocks ``(F, *free_shape[:2])`` to ``(F, out_channels, in_channels stride^2)``.

        Singular values of the result are at most 1.
        """

    def forward(self, weight: Tensor) -> Tensor:
        """The kernel ``(out_channels, in_channels, *period)`` from the free one."""
        s = self.stride
        height, width = (size // s for size in self.period)
        with torch.autocast(weight.device.type, enabled=False):
            blocks = torch.fft.rfft2(_wrap(weight, (height, width)))
            blocks = self.constrain(blocks.flatten(2).permute(2, 0, 1))
            spectrum = blocks.permute(1, 2, 0).unflatten(2, (height, -1))
            kernel = torch.fft.irfft2(spectrum, s=(height, width))
            # Tap a of residue r is tap s a + r; the origin moves to tap ``padding``.
            kernel = _from_residues(kernel, s)
            return kernel.roll((self.padding, self.padding), (2, 3))


# At stride 1 nothing moves, and torch would copy the map.
def _to_residues(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else F.pixel_unshuffle(x, stride)


def _from_residues(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else F.pixel_shuffle(x, stride)


def _wrap(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay a kernel, centred at the origin, on a circular map; taps that meet are added."""
    half = kernel.shape[-1] // 2
    for axis, period in zip((2, 3), size, strict=True):
        index = (torch.arange(kernel.shape[axis], device=kernel.device) - half) % period
        shape = [*kernel.shape]
        shape[axis] = period
        kernel = kernel.new_zeros(shape).index_add(axis, index, kernel)
    return kernel


class FrequencyConv2d(nn.Module):
    """Circular convolution of norm at most 1, on a map of one size only.

    Inputs that are smaller than the circular map are extended by zeros, and outputs beyond the
    size that a zero-padded convolution of the same arguments gives are dropped. Neither raises the
    norm. The map is the input's own size wherever the stride and the number of outputs permit it,
    enlarged by ``margin``. A subclass names its ``constraint``.

    Args:
        in_channels: Channels of the input, of shape ``(N, in_channels, *input_size)``.
        out_channels: Channels of the output.
        kernel_size: Side of the free kernel, on the map of output positions.
        stride: Step between output positions.
        padding: Zeros on each side of the zero-padded convolution whose output size it has.
        input_size: ``(H, W)`` of the input; another size is refused.
        margin: Zeros that keep one border of the map from the other.
        bias: Whether to add a learned bias.
    """

    constraint: ClassVar[type[FrequencyConstraint]]
    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        input_size: tuple[int, int],
        margin: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        # The kernel's side on the map of output positions, on which the constraint acts.
        side = -(-kernel_size // stride)
        self.stride = stride
        self.padding = padding
        self.input_size = (input_size[0], input_size[1])
        outputs = [(n + 2 * padding - kernel_size) // stride + 1 for n in input_size]
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
            stride * max(-(-(n + margin) // stride), out)
            for n, out in zip(input_size, outputs, strict=True)
        )
        self.period = (height, width)
        rule = self.constraint(
            in_channels, out_channels, stride=stride, padding=padding, period=self.period
        )
        self.weight = nn.Parameter(torch.empty(rule.free_shape(side)))
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        parametrize.register_parametrization(self, "weight", rule, unsafe=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, *input_size)`` to ``(N, out_channels, *output_size)``."""
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"a circular convolution for maps of {self.input_size} got {tuple(x.shape[2:])}: "
                "its norm is known at this size only"
            )
        s, p = self.stride, self.padding
        (rows, columns), (height, width) = self.input_size, self.period
        # Transforms need full precision; the output has the precision of a convolution's.
        with torch.autocast(x.device.type, enabled=False):
            kernel = _to_residues(self.weight.roll((-p, -p), (2, 3)), s)
            signal = x.to(kernel.dtype)
            if (rows, columns) != (height, width):
                signal = F.pad(signal, (0, width - columns, 0, height - rows))
            signal = torch.fft.rfft2(_to_residues(signal, s))
            product = torch.einsum("ocij,ncij->noij", torch.fft.rfft2(kernel).conj(), signal)
            y = torch.fft.irfft2(product, s=(height // s, width // s))
            if tuple(y.shape[2:]) != self.output_size:
                y = y[:, :, : self.output_size[0], : self.output_size[1]]
            if self.bias is not None:
                y = y + self.bias[:, None, None]
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y

    def lipschitz_estimate(self) -> float:
        """1, the norm that the constraint aims at."""
        return 1.0

    def fold(self) -> CircularConvolution:
        """The layer with its kernel, as large as the map, as a constant."""
        return CircularConvolution(
            constant(self.weight),
            None if self.bias is None else constant(self.bias),
            input_size=self.input_size,
            output_size=self.output_size,
            stride=(self.stride, self.stride),
            padding=(self.padding, self.padding),
        )
