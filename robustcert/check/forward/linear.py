"""Dense maps and convolutions in float64, their transposes, and norms of their absolute weights."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import SLACK
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation, Window

# Maximum number of values that a convolution copies at once to multiply them.
MAX_WINDOW_VALUES = 2**21


def linear(operation: Operation, x: Floats, weight: Floats) -> Floats:
    """A dense map or a zero-padded convolution of ``(N, *)``, without bias."""
    if operation.kind == "dense":
        return x @ weight.T
    window, (height, width) = Window.of(operation), operation.output_shape[1:]
    reach = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    (sy, sx), (dy, dx) = window.stride, window.dilation
    kernels = weight.reshape(window.groups, -1, math.prod(weight.shape[1:]))
    margins = ((0, 0), (0, 0), *((p, p) for p in window.padding))
    found = np.empty((len(x), weight.shape[0], height, width))
    for part, lines in _chunks(operation, len(x)):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x[part], margins), (reach[0], reach[1]), axis=(2, 3)
        )
        read = windows[:, :, ::sy, ::sx, ::dy, ::dx][:, :, lines].transpose(0, 1, 4, 5, 2, 3)
        columns = read.reshape(len(read), window.groups, -1, read.shape[4] * width)
        shape = (len(read), weight.shape[0], read.shape[4], width)
        found[part, :, lines] = (kernels @ columns).reshape(shape)
    return found


def adjoint(operation: Operation, u: Floats, weight: Floats) -> Floats:
    """The transpose of :func:`linear`."""
    if operation.kind == "dense":
        return u @ weight
    window, width = Window.of(operation), operation.output_shape[2]
    kernels = weight.reshape(window.groups, -1, math.prod(weight.shape[1:])).swapaxes(1, 2)
    (sy, sx), (dy, dx), (py, px) = window.stride, window.dilation, window.padding
    channels, *size = operation.input_shape
    padded = np.zeros((len(u), channels, size[0] + 2 * py, size[1] + 2 * px))
    for part, lines in _chunks(operation, len(u)):
        some = u[part, :, lines]
        columns = kernels @ some.reshape(len(some), window.groups, -1, some.shape[2] * width)
        columns = columns.reshape(len(some), -1, *window.kernel, some.shape[2], width)
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                top = dy * i + sy * lines.start
                rows = slice(top, top + sy * (some.shape[2] - 1) + 1, sy)
                places = slice(dx * j, dx * j + sx * (width - 1) + 1, sx)
                padded[part, :, rows, places] += columns[:, :, i, j]
    return padded[:, :, py : py + size[0], px : px + size[1]]


def _chunks(operation: Operation, count: int) -> Iterator[tuple[slice, slice]]:
    # Slices of samples and of lines of the output map, whose windows together read about
    # MAX_WINDOW_VALUES values.
    height = operation.output_shape[1]
    line = max(1, reads(operation) // height)
    lines, step = (
        min(height, max(1, MAX_WINDOW_VALUES // line)),
        max(1, MAX_WINDOW_VALUES // (line * height)),
    )
    for start in range(0, count, step):
        for top in range(0, height, lines):
            yield slice(start, start + step), slice(top, top + lines)


def reads(operation: Operation) -> int:
    """Number of values that the windows of a convolution read of one sample."""
    taps = operation.tensors["weight"].shape[1:]
    groups = operation.options["groups"]
    return math.prod(taps) * groups * math.prod(operation.output_shape[1:])


def absolute_norm(operation: Operation) -> float:
    r"""Upper bound of the norm of the map with weights \|W\|.

    For a matrix B without negative entries, the norm of B'B is at most its largest row sum. For a
    convolution, B is the sum of \|W\| over the taps: by one tap, an output reads one input at most,
    and an input is read by one output at most.
    """
    weight = abs(operation.wide("weight"))
    exponent = math.frexp(float(weight.max()))[1]
    weight = np.ldexp(weight, -exponent)
    groups = operation.options.get("groups", 1)
    sums = weight.reshape(groups, -1, weight.shape[1], math.prod(weight.shape[2:])).sum(3)
    rows = sums.sum(2, keepdims=True)
    return math.ldexp(math.sqrt(float((sums * rows).sum(1).max())) * SLACK, exponent)


def spread_bias(operation: Operation, bias: Floats) -> Floats:
    """A bias in the shape in which it is added to outputs."""
    return bias[:, None, None] if operation.kind == "convolution" else bias


def spread(values: Floats, dimensions: int) -> Floats:
    """One value for each channel in a shape that broadcasts; one for each entry as it is."""
    return values if values.ndim > 1 else values.reshape(-1, *(1,) * (dimensions - 1))


def wrap(operation: Operation, x: NDArray[Any]) -> NDArray[Any]:
    """Entries of an input, read around a circle on which zeros follow it."""
    rows, columns = operation.options["places"]
    above = (0, max(0, int(rows.max()) + 1 - x.shape[2]))
    beside = (0, max(0, int(columns.max()) + 1 - x.shape[3]))
    padded = np.pad(x, ((0, 0), (0, 0), above, beside))
    return padded[:, :, rows][..., columns]


def gather(operation: Operation, x: NDArray[Any]) -> NDArray[Any]:
    """Entries of an input by their indices; -1 stands for a zero."""
    index = operation.tensors["index"]
    return np.pad(x.reshape(len(x), -1), ((0, 0), (0, 1)))[:, index]
