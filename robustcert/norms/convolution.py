r"""Norm bounds of convolutions: by symbols, along both dimensions or one, or as one matrix."""

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustcert.norms.closeness import closeness
from robustcert.norms.device import or_on_the_cpu
from robustcert.norms.lines import mixed_norm_bound
from robustcert.norms.proof import Array, scaled, squared_norm_bound
from robustcert.norms.scalars import exact, root_up
from robustcert.norms.symbols import Axis
from robustcert.norms.taps import symbol_norm_bound
from robustcert.norms.truncated import truncated_norm_bound

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """``value`` for height and width."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def unrolled(weight: Array, axis: Axis, dimension: int) -> Array:
    """The weight (groups, c_out, c_in, kh, kw) with all positions of a dimension as channels.

    ``axis`` lays out ``dimension``, 3 or 4, which has length 1 afterwards. The channels of a
    position are neighbours, so that the taps are a band. Exact: Note [one dimension].
    """
    kernel = np.moveaxis(weight, dimension, -1)
    groups, out, inner, other = kernel.shape[:-1]
    taps = np.zeros((groups, axis.outputs, out, axis.inputs, inner, other))
    # With zero padding at most one tap meets an output and an input: nothing is added up.
    for tap, *_, rows, reads in axis.taps:
        taps[:, rows, :, reads] = kernel[..., tap]
    shape = (groups, axis.outputs * out, axis.inputs * inner, other)
    return np.expand_dims(taps.reshape(shape), dimension)


def operator_norm_bound(weight: Array, axes: tuple[Axis, Axis]) -> Fraction | None:
    """Bound of the norm by the matrix of every group, or None where that is dear or idle."""
    groups, out, inner = weight.shape[:3]
    if all(axis.is_attained for axis in axes):
        return None
    rows, columns = (
        out * axes[0].outputs * axes[1].outputs,
        inner * axes[0].inputs * axes[1].inputs,
    )
    if min(rows, columns) > 1024 or rows * columns > 2**22 or groups > 8:
        return None
    bound = Fraction(0)
    for part in weight:
        whole = unrolled(unrolled(part[None], axes[0], 3), axes[1], 4)
        matrix = whole[0, :, :, 0, 0]
        if matrix.any():
            matrix = matrix if rows >= columns else np.ascontiguousarray(matrix.T)
            bound = max(bound, squared_norm_bound(matrix[None], floor=float(bound)))
    return exact(root_up(bound))


@or_on_the_cpu
def norm_bound(
    weight: Tensor | NDArray[Any],
    input_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    circular: bool,
) -> float:
    """Check the arguments and bound the norm of a convolution."""
    if weight.ndim != 4 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"Expected a weight (c_out, c_in / groups, kh, kw) with c_out divisible by groups but "
            f"got shape {tuple(weight.shape)} and groups={groups}"
        )
    copy = scaled(weight)
    arguments = zip(
        weight.shape[2:],
        *(pair(value) for value in (input_size, stride, padding, dilation)),
        strict=True,
    )
    vertical, horizontal = (Axis.of(*values, circular=circular) for values in arguments)
    axes = (vertical, horizontal)
    values = copy.values.reshape(groups, -1, *weight.shape[1:])
    taps = product(vertical.taps, horizontal.taps)
    if not any(values[..., row, column].any() for (row, *_), (column, *_) in taps):
        return copy.unscale(Fraction(0))
    whole = None if circular else operator_norm_bound(values, axes)
    mixed = None if circular or whole is not None else mixed_norm_bound(values, axes)
    if mixed is not None:
        return copy.unscale(mixed)
    close = closeness().by_map and not circular and whole is None
    truncated = truncated_norm_bound(values, axes) if close else None
    if truncated is not None:
        return copy.unscale(truncated)
    bound = symbol_norm_bound(values, axes)
    # The matrix is never worse than the symbols, but for rounding.
    return copy.unscale(bound if whole is None else min(bound, whole))


def conv_norm_bound(
    weight: Tensor | NDArray[Any],
    input_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> float:
    r"""Bound the spectral norm of a zero-padded 2-D convolution as a linear map, rounding included.

    .. math:: \lVert W * \cdot \rVert_2 \le \max_\omega
        \Big\lVert \sum_a W_a e^{i \omega \cdot a} \Big\rVert_2

    over a frequency grid larger than the input by the padding, see Note [symbol]. The grid of the
    input's own size, that of a circular convolution, is *not* enough. Strides become channels.
    Small maps are bounded as a matrix too, short ones by symbols along one dimension, and the least
    bound counts. The transposed convolution
    has the same norm.

    The norm depends on the input size: a bound holds for the size it was computed for.

    Reference: Sedghi, Gupta and Long, `The singular values of convolutional layers
    <https://arxiv.org/abs/1805.10408>`_, ICLR 2019 (the circular case).

    Args:
        weight: Shape ``(c_out, c_in / groups, kh, kw)``, as for ``torch.nn.functional.conv2d``.
        input_size: Height and width of the input.
        stride: Stride, an integer or (height, width), as are the next two.
        padding: Zeros added on both sides.
        dilation: Distance between kernel elements.
        groups: Number of blocks of channels.

    Raises:
        NormBoundError: if the weight is not finite or nothing can be proved.
        ValueError: if the arguments do not describe a convolution.
    """
    return norm_bound(weight, input_size, stride, padding, dilation, groups, circular=False)


def circular_conv_norm_bound(
    weight: Tensor | NDArray[Any],
    input_size: Pair,
    stride: Pair = 1,
    groups: int = 1,
    dilation: Pair = 1,
) -> float:
    r"""Bound the spectral norm of a circular 2-D convolution, rounding included.

    The map has ``input_size / stride`` outputs per dimension; its norm is attained on the grid of
    that size (Sedghi et al. 2019). Arguments and errors as for :func:`conv_norm_bound`.
    """
    return norm_bound(weight, input_size, stride, 0, dilation, groups, circular=True)
