"""Linear and affine functions of torch, and its pooling, as operations.

A rule has the arguments of its function and gives the operations that it is on one input.
"""
# Every rule has the name and the arguments of torch's function, which documents them.
# ruff: noqa: ARG001, D103

import math
from typing import Any

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network import torch_activations as activations
from robustcert.network.linear import Affine, Convolution, Dense, Flatten, Reshape
from robustcert.network.operation import Operation, constant
from robustcert.network.window_norm import norm_pool_activation

Pair = tuple[int, int]


def reshaped(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[Operation]:
    """The same entries of every input in another shape."""
    if shape == wanted:
        return []
    if math.prod(shape) != math.prod(wanted):
        raise UnsoundNetworkError("mixes the inputs of a batch")
    return [Flatten()] if len(wanted) == 1 else [Reshape(wanted)]


def number(value: Any, x: Tensor) -> Tensor:
    """A Python number as the module computes with it."""
    if not isinstance(value, (int, float)):
        raise UnsoundNetworkError(f"is not covered with {type(value).__name__} as a number")
    return torch.tensor(float(value), dtype=torch.float64, device="cpu").to(x.dtype)


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value * (2 // len(value))
    return int(first), int(second)


def scaled(x: Tensor, factor: Any) -> list[Operation]:
    """Multiplication by a number, or by one for every channel."""
    full = _constant_like(factor, x)
    rows = full.reshape(len(full), -1)
    if not (rows == rows[:, :1]).all():
        raise UnsoundNetworkError("multiplies the entries of one channel by different numbers")
    if (rows == 1).all():
        return []
    scale = constant(rows[:, 0])
    return [Affine(scale, torch.zeros_like(scale))]


def shifted(x: Tensor, offset: Any) -> list[Operation]:
    """Addition of a number, of one for every channel, or of one for every entry."""
    full = _constant_like(offset, x)
    rows = full.reshape(len(full), -1)
    if (rows == 0).all():
        return []
    shift = constant(rows[:, 0] if (rows == rows[:, :1]).all() else full)
    return [Affine(torch.ones(len(full), dtype=shift.dtype, device="cpu"), shift)]


def _constant_like(value: Any, x: Tensor) -> Tensor:
    """A constant, laid out as one input, of shape ``(C, *)``."""
    wide = value.detach().to(x) if isinstance(value, Tensor) else number(value, x)
    if wide.dim() == x.dim() and len(wide) != 1:
        raise UnsoundNetworkError("has a constant for every input of the batch")
    try:
        return wide.expand(1, *x.shape[1:])[0]
    except RuntimeError as error:
        raise UnsoundNetworkError("makes more entries of its input by broadcasting") from error


def _combined(known: list[Tensor], x: Any, y: Any, first: Any, second: Any) -> list[Any]:
    """``first * x + second * y`` of values that depend on the input, or of one and a constant."""
    terms = [(x, first), (y, second)]
    moving = [(t, c) for t, c in terms if any(t is k for k in known)]
    if len(moving) == 2 and x.shape != y.shape:
        raise UnsoundNetworkError(f"adds values of shapes {tuple(x.shape)} and {tuple(y.shape)}")
    steps = [scaled(t, c) for t, c in moving]
    for t, c in terms:
        if all(t is not k for k in known):
            steps[0] = steps[0] + shifted(moving[0][0], t * c)
    return steps


def add(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, 1, alpha)


def sub(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, 1, -alpha)


def rsub(known: list[Tensor], x: Any, other: Any, alpha: Any = 1) -> list[Any]:
    return _combined(known, x, other, -alpha, 1)


def mul(known: list[Tensor], x: Any, other: Any) -> list[Any]:
    if len(known) != 1:
        raise UnsoundNetworkError(
            "multiplies two values that depend on the input, which has no finite Lipschitz constant"
        )
    return [scaled(known[0], other if known[0] is x else x)]


def div(known: list[Tensor], x: Any, other: Any) -> list[Any]:
    if len(known) != 1 or known[0] is not x:
        raise UnsoundNetworkError(
            "divides by a value that depends on the input, which has no finite Lipschitz constant"
        )
    wide = other.detach().double() if isinstance(other, Tensor) else float(other)
    return [scaled(x, 1 / wide)]


def neg(x: Tensor) -> list[Operation]:
    return scaled(x, -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Operation]:
    return [Dense(constant(weight), None if bias is None else constant(bias))]


def matmul(x: Tensor, other: Tensor) -> list[Operation]:
    if other.dim() != 2:
        raise UnsoundNetworkError(f"is covered for matrices, not for {tuple(other.shape)}")
    return [Dense(constant(other.mT))]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Operation]:
    if x.dim() != 4:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, H, W)")
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
    if x.dim() != 3:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, L)")

    def along(value: Any, idle: int) -> Any:
        if isinstance(value, str):
            return value
        return (idle, value if isinstance(value, int) else value[0])

    sizes = along(stride, 1), along(padding, 0), along(dilation, 1)
    return _as_map(x, conv2d(x[:, :, None], weight[:, :, None], bias, *sizes, groups))


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
    if _pair(stride) != (1, 1) or _pair(output_padding) != (0, 0):
        raise UnsoundNetworkError("is covered for a stride of 1")
    # Channels exchanged within their groups, kernels turned around.
    inner = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    around = tuple(
        d * (k - 1) - p
        for d, k, p in zip(_pair(dilation), weight.shape[2:], _pair(padding), strict=True)
    )
    if min(around) < 0:
        raise UnsoundNetworkError("crops more than its kernels add")
    return conv2d(x, inner, bias, 1, around, dilation, groups)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Operation]:
    if training or running_mean is None or running_var is None:
        raise UnsoundNetworkError("normalises by statistics of the batch: use running statistics")
    scale = (running_var.double() + eps).rsqrt()
    scale = scale if weight is None else weight.double() * scale
    shift = -running_mean.double() * scale
    shift = shift if bias is None else bias.double() + shift
    # Computed in float64 and rounded once, to the precision of the module.
    return [Affine(constant(scale.to(x.dtype)), constant(shift.to(x.dtype)))]


def _depthwise(x: Tensor, kernel: Tensor, stride: Pair, padding: Pair = (0, 0)) -> list[Operation]:
    """Every channel convolved with one kernel."""
    if x.dim() != 4:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, H, W)")
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
    _require_whole(x, kernel, step, around, ceil_mode)
    if around != (0, 0) and not count_include_pad and divisor_override is None:
        raise UnsoundNetworkError("is covered with count_include_pad=True where it pads")
    return _depthwise(x, _mean_kernel(kernel, divisor_override or math.prod(kernel)), step, around)


def avg_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> list[Operation]:
    kernel, along, around = (
        v if isinstance(v, int) else v[0] for v in (kernel_size, stride or kernel_size, padding)
    )
    sizes = (1, kernel), (1, along), (0, around)
    pooled = avg_pool2d(x[:, :, None], *sizes, ceil_mode, count_include_pad)
    return _as_map(x, pooled)


def _require_whole(x: Tensor, kernel: Pair, step: Pair, around: Pair, ceil_mode: bool) -> None:
    if x.dim() != 4:
        raise UnsoundNetworkError("is covered for inputs of shape (N, C, H, W)")
    rests = [
        (n + 2 * p - k) % s for n, p, k, s in zip(x.shape[2:], around, kernel, step, strict=True)
    ]
    if ceil_mode and any(rests):
        raise UnsoundNetworkError("has windows beyond the border: set ceil_mode=False")


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> list[Operation]:
    wanted = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    sizes = [n if w is None else w for n, w in zip(x.shape[2:], wanted, strict=True)]
    if any(n % w for n, w in zip(x.shape[2:], sizes, strict=True)):
        raise UnsoundNetworkError(
            f"is covered for output sizes that divide {tuple(x.shape[2:])}, not {tuple(sizes)}"
        )
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


def mean_over(x: Tensor, dim: Any, keepdim: bool = False) -> list[Operation]:
    axes = {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)}
    sizes = [n for d, n in enumerate(x.shape) if d in axes]
    return _reduced(x, axes, keepdim, 1 / math.prod(sizes))


def sum_over(x: Tensor, dim: Any, keepdim: bool = False) -> list[Operation]:
    return _reduced(x, {d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)}, keepdim, 1)


def _reduced(x: Tensor, axes: set[int], keepdim: bool, factor: float) -> list[Operation]:
    shape = tuple(x.shape[1:])
    left = tuple(n for d, n in enumerate(shape, 1) if d not in axes)
    if axes == {x.dim() - 1}:
        row = torch.full((1, shape[-1]), factor, dtype=x.dtype, device="cpu")
        made: list[Operation] = [Dense(constant(row))]
    elif axes == {2, 3} and x.dim() == 4:
        kernel = torch.full(shape[1:], factor, dtype=torch.float64, device="cpu")
        made = _depthwise(x, kernel, (1, 1))
    else:
        raise UnsoundNetworkError(f"is covered along the last dimensions, not {sorted(axes)}")
    reduced = tuple(1 if d in axes else n for d, n in enumerate(shape, 1))
    return made if keepdim else made + reshaped(reduced, left)


def pad(x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> list[Operation]:
    if mode != "constant" or value not in (None, 0):
        raise UnsoundNetworkError(f"is covered for zeros, not for mode={mode!r}, value={value!r}")
    if x.dim() != 4 or len(pad) > 4 or min(pad) < 0:
        raise UnsoundNetworkError(f"is covered for maps and sizes of at least 0, not {pad}")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    around = max(top, bottom), max(left, right)
    # A kernel of a single one, which leaves out what was padded too much.
    sizes = 1 + abs(top - bottom), 1 + abs(left - right)
    kernel = torch.zeros(sizes, dtype=torch.float64, device="cpu")
    kernel[around[0] - top, around[1] - left] = 1
    return _depthwise(x, kernel, (1, 1), around)
