r"""Proved upper bounds on norms of zero-padded convolutions: by symbols, or as one matrix.

A convolution has two dimensions, and need not be transformed along both (``symbols.py``). With the
positions of one dimension as channels, of inputs and of outputs, it is a convolution along the
other dimension alone, whose taps are matrices of the same weights and zeros. Its blocks are larger,
and their norms are at most those of the transform along both: the block at a frequency is a part of
a convolution whose blocks are those at the same frequency of that dimension.

The norm of a small map may be well below that of its symbols, which is the norm of a circular
convolution of which the map is a part. So the matrix of the whole map is tried last.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustcert.check.effort import UNLIMITED, Effort
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation, Window
from robustcert.check.norms.dense import Proof, estimate, proof_bytes, proved
from robustcert.check.norms.symbols import (
    SINGLE,
    Along,
    Axis,
    axes_of,
    estimate_symbols,
    prove_along,
    prove_symbols,
    require_symbols,
    symbol_bytes,
    symbol_work,
)
from robustcert.check.norms.truncated import (
    estimate_truncated,
    is_tried,
    prove_truncated,
    truncated_bytes,
)

Indices = NDArray[np.int64]

# A map is tried as one matrix for each group up to these limits: entries of a matrix, its shorter
# side, number of groups.
MAX_MATRIX_ENTRIES, MAX_MATRIX_SIDE, MAX_MATRIX_GROUPS = 2**22, 1024, 8
# One dimension of a map is moved into its channels up to these limits: operations of the proof,
# entries of the weight, frequencies for each difference of shifts.
MAX_MIXED_WORK, MAX_MIXED_ENTRIES, MAX_MIXED_LENGTH = 2.0**39, 2**25, 8


def prove_convolution(operation: Operation, bound: Fraction, effort: Effort = UNLIMITED) -> Proof:
    """Prove a bound on the norm of a zero-padded convolution.

    Raises:
        NotTriedError: it has too many frequencies, or there is no time for all of them.
    """
    rows, columns = axes_of(operation)
    weight = operation.wide("weight")
    live = weight[:, :, [k for k, *_ in rows.taps]][..., [k for k, *_ in columns.taps]]
    if not live.any():
        return Proof("no weight that reads the input")
    found = prove_truncated(operation, bound, effort)
    if not found.method:
        found = prove_symbols(operation, bound, rows, columns, effort)
    if found.method:
        return found
    for mixed in _mixed(operation):
        found = prove_along(operation, mixed, bound, effort)
        if found.method:
            return found
    wholes = 0
    for matrix in _whole_matrices(operation):
        if not proved(matrix, bound):
            return Proof()
        wholes += 1
    if wholes:
        return Proof("whole matrix, exact residual")
    require_symbols(operation, rows, columns)
    return Proof()


def estimate_convolution(operation: Operation, effort: Effort = UNLIMITED) -> float:
    """The least bound on the norm of a convolution that some proof may reach, in float64.

    Raises:
        NotTriedError: as for :func:`prove_convolution`.
    """
    whole = max(map(estimate, _whole_matrices(operation)), default=math.inf)
    mixed = [estimate_symbols(parts.operation, *parts.axes, effort) for parts in _mixed(operation)]
    if math.isinf(min(whole, *mixed, math.inf)) and is_tried(operation):
        return estimate_truncated(operation, effort)
    found = min(estimate_symbols(operation, *axes_of(operation), effort), whole, *mixed)
    if math.isinf(found):
        require_symbols(operation, *axes_of(operation))
    return found


def convolution_bytes(operation: Operation) -> int:
    """Bytes that a proof for a convolution takes at most, besides copies of its weight."""
    axes, shape = axes_of(operation), operation.tensors["weight"].shape
    groups = operation.options.get("groups", 1)
    found = max(symbol_bytes(shape, groups, *axes), truncated_bytes(operation))
    for d in (0, 1):
        mixed = _mixed_shape(shape, axes[d], d)
        if math.prod(mixed) <= MAX_MIXED_ENTRIES:
            rest = (SINGLE, axes[1]) if d == 0 else (axes[0], SINGLE)
            found = max(found, 8 * 8 * math.prod(mixed) + symbol_bytes(mixed, groups, *rest))
    outputs = shape[0] // groups * axes[0].outputs * axes[1].outputs
    inputs = shape[1] * axes[0].inputs * axes[1].inputs
    small = outputs * inputs <= MAX_MATRIX_ENTRIES and min(outputs, inputs) <= MAX_MATRIX_SIDE
    return max(found, proof_bytes(outputs, inputs) if small else 0)


def _mixed(operation: Operation) -> Iterator[Along]:
    # The map with the positions of one dimension as channels, within the limits.
    axes, weight = axes_of(operation), operation.wide("weight")
    for d in (0, 1):
        axis = axes[d]
        shifts = [a for _, a, _ in axis.taps] or [0]
        if axis.points > MAX_MIXED_LENGTH * (max(shifts) - min(shifts)):
            continue
        if math.prod(_mixed_shape(weight.shape, axis, d)) > MAX_MIXED_ENTRIES:
            continue
        mixed = replace(operation, tensors={"weight": _as_channels(operation, weight, axis, d)})
        along = Along(mixed, (SINGLE, axes[1]) if d == 0 else (axes[0], SINGLE), 1 - d)
        if symbol_work(mixed, *along.axes) <= MAX_MIXED_WORK:
            yield along


def _mixed_shape(shape: tuple[int, ...], axis: Axis, d: int) -> tuple[int, ...]:
    # Shape of the weight of the map whose channels are those of all positions of dimension d.
    kernel = (1, shape[3]) if d == 0 else (shape[2], 1)
    return (shape[0] * axis.outputs, shape[1] * axis.inputs, *kernel)


def _as_channels(operation: Operation, weight: Floats, axis: Axis, d: int) -> Floats:
    # The weight of the map whose channels are those of all positions of dimension d.
    window = Window.of(operation)
    stride, padding, dilation = window.stride[d], window.padding[d], window.dilation[d]
    out, inner = weight.shape[:2]
    length = weight.shape[3 - d]
    taps = np.zeros((out, axis.outputs, inner, axis.inputs, length))
    outputs = np.arange(axis.outputs)
    for k, *_ in axis.taps:
        positions = stride * outputs + dilation * k - padding
        read = (positions >= 0) & (positions < axis.inputs)
        # Index arrays that are not neighbours put their dimension first.
        taps[:, outputs[read], :, positions[read]] = weight.take(k, axis=2 + d)
    return taps.reshape(_mixed_shape(weight.shape, axis, d))


def _whole_matrices(operation: Operation) -> Iterator[Floats]:
    # The padded convolution as one matrix (1, outputs, inputs) for each group, if it is small.
    rows, columns = axes_of(operation)
    weight, groups = operation.wide("weight"), operation.options.get("groups", 1)
    out, inner = weight.shape[0] // groups, weight.shape[1]
    shape = (out, rows.outputs, columns.outputs, inner, rows.inputs, columns.inputs)
    outputs, inputs = math.prod(shape[:3]), math.prod(shape[3:])
    if (
        outputs * inputs > MAX_MATRIX_ENTRIES
        or min(outputs, inputs) > MAX_MATRIX_SIDE
        or groups > MAX_MATRIX_GROUPS
    ):
        return
    (y, v, i), (x, h, j) = _pairs(operation, rows, 0), _pairs(operation, columns, 1)
    for part in weight.reshape(groups, out, *weight.shape[1:]):
        matrix = np.zeros(shape)
        # Index arrays that are not neighbours put their dimensions first: pairs of both axes.
        entries = part.transpose(2, 3, 0, 1)[i[:, None], j]
        matrix[:, y[:, None], x, :, v[:, None], h] = entries
        yield matrix.reshape(1, outputs, inputs)


def _pairs(operation: Operation, axis: Axis, d: int) -> tuple[Indices, Indices, Indices]:
    # All triples of an output, an input and the tap that connects them, along dimension d.
    window = Window.of(operation)
    taps = np.array([k for k, *_ in axis.taps], np.int64)
    read = window.stride[d] * np.arange(axis.outputs)[:, None] + window.dilation[d] * taps
    read = read - window.padding[d]
    outputs, which = np.nonzero((read >= 0) & (read < axis.inputs))
    return outputs, read[outputs, which], taps[which]
