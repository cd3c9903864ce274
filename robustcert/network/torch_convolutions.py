"""Convolutions, transposed convolutions, pooling and interpolation of torch as operations."""
# Every rule has the name and the arguments of torch's function, which documents them.
# ruff: noqa: D103

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import UnsoundNetworkError
from robustcert.network import torch_activations as activations
from robustcert.network.linear import Convolution, Dense, Reshape
from robustcert.network.operation import Operation, constant
from robustcert.network.torch_indices import gathered, read, reshaped
from robustcert.network.torch_linear import shifted
from robustcert.network.window_norm import norm_pool_activation

Pair = tuple[int, int]
# Maximum number of entries of a matrix that is made of a function.
MAX_DENSE = 2**24


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value * (2 // len(value))
    return int(first), int(second)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Operation]:
    _require_map(x)
    if isinstance(padding, str):
        extents = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if padding == "same" and any(extent % 2 for extent in extents):
            raise UnsoundNetworkError("pads one side more than the other: give an odd kernel")
        padding = tuple(extent // 2 for extent in extents) if padding == "same" else 0
    folded = None if bias is None else constant(bias)
    sizes = _pair(stride), _pair(padding), _pair(dilation)
    return [Convolution(constant(weight), folded, *sizes, groups)]


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Operation]:
    _require_signal(x)
    around = padding if isinstance(padding, str) else _along(padding, 0)
    sizes = _along(stride, 1), around, _along(dilation, 1)
    return _as_map(x, conv2d(x[:, :, None], weight[:, :, None], bias, *sizes, groups))


def _along(value: Any, idle: int) -> Pair:
    """A number for the length of a signal as one for a map of one row; ``idle`` is the height's."""
    return idle, value if isinstance(value, int) else value[0]


def _require_signal(x: Tensor) -> None:
    if x.dim() != 3:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, L)")


def _require_map(x: Tensor) -> None:
    if x.dim() != 4:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, H, W)")


def _as_map(x: Tensor, operations: list[Operation]) -> list[Operation]:
    """Operations on maps of one row, on inputs of shape ``(N, C, L)``."""
    shape: tuple[int, ...] = (x.shape[1], 1, x.shape[2])
    start = Reshape(shape)
    for operation in operations:
        shape = operation.output_shape(shape)
    return [start, *operations, Reshape((shape[0], shape[2]))]


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> list[Operation]:
    _require_map(x)
    sides = [
        _Side(*numbers)
        for numbers in zip(
            *(x.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation)),
            _pair(output_padding),
            strict=True,
        )
    ]
    (down, right), (height, width) = (s.stride for s in sides), (s.taps for s in sides)
    # Kernels of all residues, turned around, as channels of their own: (out, down, right, in, ...).
    inner = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    kernels = inner.new_zeros(len(inner), down, right, inner.shape[1], height, width)
    for i, j in itertools.product(*(range(k) for k in weight.shape[2:])):
        (row, residue), (column, other) = sides[0].tap(i), sides[1].tap(j)
        kernels[:, residue, other, :, height - 1 - row, width - 1 - column] = inner[:, :, i, j]
    around = (height - 1, width - 1)
    convolution = Convolution(constant(kernels.flatten(0, 2)), None, (1, 1), around, (1, 1), groups)
    shape = convolution.output_shape(tuple(x.shape[1:]))
    places = torch.arange(1, 1 + math.prod(shape), dtype=torch.int64, device="cpu").view(
        -1, down, right, *shape[1:]
    )
    places = places.permute(0, 3, 1, 4, 2).flatten(1, 2).flatten(2)
    # An output beyond all products is 0.
    places = F.pad(places, (0, sides[1].output_padding, 0, sides[0].output_padding))
    made = [convolution, *_cropped(places, shape, sides)]
    return made if bias is None else made + shifted(_like(x, made), bias[:, None, None])


class _Side(NamedTuple):
    """One dimension of a transposed convolution: places j = stride * (row + a) + residue."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    output_padding: int

    @property
    def taps(self) -> int:
        """Number of taps of the kernels of single residues."""
        return self.dilation * (self.kernel - 1) // self.stride + 1

    def tap(self, index: int) -> tuple[int, int]:
        """The tap and the residue of an entry of the kernel."""
        return divmod(self.dilation * index, self.stride)

    @property
    def outputs(self) -> slice:
        """Places that are kept."""
        reach = self.dilation * (self.kernel - 1) + self.output_padding + 1
        return slice(self.padding, (self.size - 1) * self.stride - self.padding + reach)


def _cropped(places: Tensor, shape: tuple[int, ...], sides: list[_Side]) -> list[Operation]:
    kept = places[:, sides[0].outputs, sides[1].outputs]
    return gathered(torch.empty(1, *shape, dtype=torch.float64, device="meta"), kept[None])


def _like(x: Tensor, operations: list[Operation]) -> Tensor:
    """A value of the shape that operations make of an input."""
    shape = tuple(x.shape[1:])
    for operation in operations:
        shape = operation.output_shape(shape)
    return x.new_zeros(len(x), *shape)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> list[Operation]:
    _require_signal(x)
    sizes = _along(stride, 1), _along(padding, 0), _along(output_padding, 0)
    row, kernel = x[:, :, None], weight[:, :, None]
    return _as_map(x, conv_transpose2d(row, kernel, bias, *sizes, groups, _along(dilation, 1)))


def _depthwise(x: Tensor, kernel: Tensor, stride: Pair, padding: Pair = (0, 0)) -> list[Operation]:
    """Every channel convolved with one kernel."""
    _require_map(x)
    channels = x.shape[1]
    weight = constant(kernel.to(x.dtype).expand(channels, 1, *kernel.shape))
    return [Convolution(weight, None, stride, padding, groups=channels)]


def _mean_kernel(kernel: Pair, divisor: int) -> Tensor:
    return torch.full(kernel, 1 / divisor, dtype=torch.float64, device="cpu")


def avg_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> list[Operation]:
    kernel, around = _pair(kernel_size), _pair(padding)
    step = _pair(stride) if stride else kernel
    if ceil_mode or (around != (0, 0) and not count_include_pad and divisor_override is None):
        # Means over windows of several sizes.
        sizes = kernel, step, around, ceil_mode, count_include_pad, divisor_override
        return on_channels(F.avg_pool2d, (x, *sizes), x)
    return _depthwise(x, _mean_kernel(kernel, divisor_override or math.prod(kernel)), step, around)


def avg_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> list[Operation]:
    sizes = _along(kernel_size, 1), _along(stride or kernel_size, 1), _along(padding, 0)
    pooled = avg_pool2d(x[:, :, None], *sizes, ceil_mode, count_include_pad)
    return _as_map(x, pooled)


def _require_whole(x: Tensor, kernel: Pair, step: Pair, around: Pair, ceil_mode: bool) -> None:
    _require_map(x)
    rests = [
        (n + 2 * p - k) % s for n, p, k, s in zip(x.shape[2:], around, kernel, step, strict=True)
    ]
    if ceil_mode and any(rests):
        raise UnsoundNetworkError("has windows beyond the border: set ceil_mode=False")


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> list[Operation]:
    wanted = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    sizes = [n if w is None else w for n, w in zip(x.shape[2:], wanted, strict=True)]
    if any(n % w for n, w in zip(x.shape[2:], sizes, strict=True)):
        return on_channels(F.adaptive_avg_pool2d, (x, sizes), x)
    return avg_pool2d(x, [n // w for n, w in zip(x.shape[2:], sizes, strict=True)])


def max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[Operation]:
    kernel, around = _pair(kernel_size), _pair(padding)
    step = _pair(stride) if stride else kernel
    _require_whole(x, kernel, step, around, ceil_mode)
    if _pair(dilation) != (1, 1) or return_indices:
        raise UnsoundNetworkError("is covered without dilation and indices")
    return [activations.max_pool_activation(kernel, step, around)]


def lp_pool2d(
    x: Tensor,
    norm_type: Any,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> list[Operation]:
    kernel = _pair(kernel_size)
    step = _pair(stride) if stride else kernel
    _require_whole(x, kernel, step, (0, 0), ceil_mode)
    rests = [n % k for n, k in zip(x.shape[2:], kernel, strict=True)]
    if norm_type != 2 or step != kernel or kernel[0] != kernel[1] or any(rests):
        raise UnsoundNetworkError(
            "is covered for the norm of disjoint square windows that fill the map"
        )
    return [norm_pool_activation(kernel[0])]


def max_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[Operation]:
    sizes = _along(kernel_size, 1), _along(stride or kernel_size, 1), _along(padding, 0)
    return _as_map(x, max_pool2d(x[:, :, None], *sizes, dilation, ceil_mode, return_indices))


def on_channels(func: Any, args: Any, x: Tensor) -> list[Operation]:
    """A function that is linear and the same on the map of every channel, as a dense one."""
    plane = tuple(x.shape[2:])
    size = math.prod(plane)
    if size**2 > MAX_DENSE:
        raise UnsoundNetworkError(f"is a dense map of {size} by {size} entries here, or more")
    impulses = torch.eye(size, dtype=torch.float64, device="cpu").view(size, 1, *plane)
    images = func(*(impulses if value is x else value for value in args))
    flat, shape = (x.shape[1], size), (x.shape[1], *images.shape[2:])
    weight = constant(images.flatten(1).mT.to(x.dtype))
    made = [*reshaped(tuple(x.shape[1:]), flat), Dense(weight)]
    return made + reshaped((x.shape[1], len(weight)), shape)


def interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> list[Operation]:
    args = x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    if mode in ("nearest", "nearest-exact"):
        (made,) = read(F.interpolate, args, {}, x)
        return made
    return on_channels(F.interpolate, args, x)
