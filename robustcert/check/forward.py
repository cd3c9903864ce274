r"""Logits with proved errors: in float64 for all samples, in integers where it matters.

With N the proved norm of an operation, an evaluation that is wrong by D before it is wrong by at
most N D + local error behind it, in the l2 norm. For dense maps and convolutions with n terms,
computed z and unit roundoff u, the local error is at most :math:`\gamma_{n+1} \lVert |W| |z| + |b|
\rVert`, for any order of summation (:math:`\gamma_k = k u / (1 - k u)`).

The deployed network is evaluated at any point within r of the sample. Its computed input to an
operation is then within :math:`P r + D_0 + D + \beta r` of the one computed here, where P is the
constant of everything before, D and :math:`D_0` are the errors of the two evaluations at the sample
and :math:`\beta` is what D gains per unit of distance. :math:`\lVert |W| \rVert \le a` carries that
through, and the error within r is :math:`D + \beta r` again. The same magnitudes show how far out
nothing overflows.

In integers, linear maps are exact, and so are the activations that only select and reflect along
axes. Others are put on a grid of 2^-256; those errors are carried along like the ones above.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.activations.table import KINDS
from robustcert.check.exact_products import add_up, digit_bits, float_digits, split_integers
from robustcert.check.fixed_point import (
    Floats,
    InexactError,
    Integers,
    binary_places,
    exponent,
    shift,
    to_integers,
)
from robustcert.check.network import Operation, Window

# Covers the rounding of every sum of nonnegative terms here.
SLACK = 1 + 2.0**-26
# Values that a convolution copies at once to multiply them.
CHUNK = 2**21
MAX_PLACES, KEPT_PLACES = 900, 640
# Magnitude, in bits, of integers that are worked with.
MAX_BITS = 4096
# Bytes of a batch in float64 and in integers, but for a single sample that needs more.
FLOAT_BYTES, EXACT_BYTES = 2**28, 2**28
# Values as large as an operation's input or output that exist at the same time, at most, and the
# bytes of one as an integer with what is computed on the way.
LIVE, LIVE_SMOOTH, INTEGER_BYTES = 16, 48, 3072
# Bytes of an integer of at most MAX_PLACES places that is kept.
KEPT_BYTES = 256


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format: unit roundoff, least normal number, largest safe magnitude."""

    unit: float
    least: float
    safe: float

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of products; infinite where the theory says nothing."""
        product = terms * self.unit
        return product / (1 - product) * SLACK if product < 0.5 else math.inf


FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022, 2.0**990)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126, 2.0**96)


@dataclass(frozen=True)
class Evaluation:
    """Computed values of shape ``(N, *)`` and their errors, one row for each arithmetic.

    Attributes:
        values: Computed here, in float64.
        centre: Errors at the samples, ``(A, N)``; the first row is that of ``values``.
        growth: What the errors gain per unit of distance, ``(A,)``.
        reach: Distances within which nothing overflows, ``(A, N)``.
        constant: Lipschitz constant of the real map so far.
    """

    values: Floats
    centre: Floats
    growth: Floats
    reach: Floats
    constant: float


def evaluate(
    operations: Sequence[Operation],
    samples: Floats,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    """Evaluate samples in float64; the errors of other arithmetics are bounded beside it.

    Args:
        operations: Applied in turn.
        samples: Shape ``(N, *input_shape)``, exact.
        norms: Proved norm of every operation by its path.
        arithmetics: float64 first.
    """
    return trace(operations, samples, norms, arithmetics, every=False)[-1]


def trace(
    operations: Sequence[Operation],
    samples: Floats,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
    *,
    every: bool = True,
) -> list[Evaluation]:
    """Like :func:`evaluate`: the samples, and what each operation makes of them.

    Without ``every``, the last state alone, and no other is kept on the way.
    """
    count, rows = len(arithmetics), len(samples)
    zero, reach = np.zeros((count, rows)), np.full((count, rows), math.inf)
    states = [Evaluation(samples, zero, np.zeros(count), reach, 1.0)]
    # What overflows is found out by its reach and by logits that are not finite.
    with np.errstate(all="ignore"):
        for operation in operations:
            state = _run([operation], states[-1], norms, arithmetics)
            states = [*states, state] if every else [state]
    return states


def _run(
    operations: Sequence[Operation],
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    for operation in operations:
        step = _sum if operation.kind == "sum" else _step
        if operation.parts:
            step = _whole
        state = step(operation, state, norms, arithmetics)
    return state


def _step(
    operation: Operation,
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    values, magnitude, gain, terms = _apply(operation, state.values)
    norm = norms[operation.path]
    centre, reach = norm * state.centre, state.reach.copy()
    growth = norm * state.growth
    if terms:
        peak = magnitude + gain * (state.centre + state.centre[0])
        slope = gain * (state.constant + state.growth)
        size = math.sqrt(math.prod(operation.output_shape)) * (terms + 1)
        for k, arithmetic in enumerate(arithmetics):
            gamma = arithmetic.gamma(terms)
            centre[k] += gamma * peak[k] + arithmetic.least * 2.0**30 * size
            growth[k] += gamma * slope[k]
            safe = math.sqrt(arithmetic.safe) if _squares(operation) else arithmetic.safe
            reach[k] = np.minimum(reach[k], _reach(safe, peak[k], slope[k]))
    constant = state.constant * norm * SLACK
    return Evaluation(values, centre * SLACK, growth * SLACK, reach, constant)


def _whole(
    operation: Operation,
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    # The parts carry errors on by their own norms. What they add stays; what was there before
    # grows by the norm of the whole instead.
    found = _run(operation.parts, state, norms, arithmetics)
    norm, carried = norms[operation.path], _gain(operation.parts, norms) * (1 - 2.0**-40)
    centre = norm * state.centre + (found.centre - carried * state.centre)
    growth = norm * state.growth + (found.growth - carried * state.growth)
    # The differences are rounded relatively to what they are of.
    centre += 2.0**-48 * found.centre
    growth += 2.0**-48 * found.growth
    constant = state.constant * norm * SLACK
    return Evaluation(found.values, centre * SLACK, growth * SLACK, found.reach, constant)


def _gain(operations: Sequence[Operation], norms: Mapping[str, float]) -> float:
    # At most what `_run` multiplies errors by, but for rounding.
    gains = [
        sum(_gain(branch, norms) for branch in op.branches) if op.kind == "sum" else norms[op.path]
        for op in operations
    ]
    return math.prod(gains)


def _reach(safe: float, peak: Floats, slope: float) -> Floats:
    room = np.where(peak < safe, safe - peak, 0.0)
    return room / (slope * SLACK) if slope > 0 else np.where(room > 0, math.inf, 0.0)


def _sum(
    operation: Operation,
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    # One branch after the other: only their sums are kept.
    values: Floats = np.zeros(())
    centre, growth = np.zeros_like(state.centre), np.zeros_like(state.growth)
    constant, peak = 0.0, 0.0 * centre
    reach = np.full_like(centre, math.inf)
    for branch in operation.branches:
        found = _run(branch, state, norms, arithmetics)
        values = values + found.values
        centre, growth = centre + found.centre, growth + found.growth
        constant += found.constant
        peak = peak + (norm(found.values) + found.centre + found.centre[0])
        reach = np.minimum(reach, found.reach)
    constant *= SLACK
    for k, arithmetic in enumerate(arithmetics):
        gamma = arithmetic.gamma(len(operation.branches))
        slope = constant + growth[k]
        centre[k] += gamma * peak[k]
        growth[k] += gamma * slope
        reach[k] = np.minimum(reach[k], _reach(arithmetic.safe, peak[k], slope))
    return Evaluation(values, centre * SLACK, growth * SLACK, reach, constant)


def norm(values: Floats) -> Floats:
    """Upper bounds of the l2 norms of the rows."""
    flat = values.reshape(len(values), -1)
    # Squares below 2^-1022 may be lost.
    return np.sqrt(np.einsum("ni,ni->n", flat, flat)) * SLACK + 2.0**-500 * flat.shape[1]


def _apply(operation: Operation, x: Floats) -> tuple[Floats, Floats | float, float, int]:
    # The values; what the local error is relative to, at x and per unit of distance; its terms.
    if operation.kind in ("dense", "convolution"):
        weight = operation.wide("weight")
        values, sizes = linear(operation, x, weight), linear(operation, abs(x), abs(weight))
        if "bias" in operation.tensors:
            bias = _bias(operation, operation.wide("bias"))
            values, sizes = values + bias, sizes + abs(bias)
        return values, norm(sizes), absolute_norm(operation), math.prod(weight.shape[1:]) + 1
    if operation.kind == "affine":
        scale, offset = (_spread(operation.wide(key), x.ndim - 1) for key in ("scale", "shift"))
        sizes = abs(x) * abs(scale) + abs(offset)
        return x * scale + offset, norm(sizes), float(abs(scale).max()), 2
    if operation.kind == "flatten":
        return x.reshape(len(x), -1), 0.0, 0.0, 0
    if operation.kind == "wrap":
        return _wrap(operation, x), 0.0, 0.0, 0
    if operation.kind == "quadratics":
        # Their slope has no bound: whoever asks for errors learns nothing.
        return _quadratics(operation, x), math.inf, math.inf, 1
    kind, tensors, options = _activation(operation)
    gain, offset = kind.rounding(**tensors, **options)
    values = kind.apply(x, **tensors, **options)
    if gain == offset == 0:
        return values, 0.0, 0.0, 0
    root = math.sqrt(math.prod(operation.output_shape))
    return values, gain * norm(x) + offset * root, gain, 1


def _squares(operation: Operation) -> bool:
    return operation.kind == "activation" and KINDS[operation.options["function"]].squares


def _wrap(operation: Operation, x: NDArray[Any]) -> NDArray[Any]:
    # Entries of the input, read around a circle on which zeros follow it.
    rows, columns = operation.options["places"]
    above = (0, max(0, int(rows.max()) + 1 - x.shape[2]))
    beside = (0, max(0, int(columns.max()) + 1 - x.shape[3]))
    padded = np.pad(x, ((0, 0), (0, 0), above, beside))
    return padded[:, :, rows][..., columns]


def _quadratics(operation: Operation, x: Floats) -> Floats:
    frame, offset, slope, shift = map(operation.wide, ("frame", "offset", "slope", "shift"))
    within = x @ frame.reshape(-1, frame.shape[2]).T - offset.ravel()
    pieces = (within**2).reshape(len(x), *offset.shape).sum(2) + x @ slope.T + shift
    return pieces.reshape(len(x), operation.options["classes"], -1).max(2)


def _activation(operation: Operation) -> tuple:
    options = {key: value for key, value in operation.options.items() if key != "function"}
    tensors = {key: operation.wide(key) for key in operation.tensors}
    return KINDS[operation.options["function"]], tensors, options


def _spread(values: Floats, dimensions: int) -> Floats:
    # One value per channel, or one per entry as it is.
    return values if values.ndim > 1 else values.reshape(-1, *(1,) * (dimensions - 1))


def absolute_norm(operation: Operation) -> float:
    r"""Upper bound of the norm of the map with weights \|W\|.

    For B >= 0 without negative entries the norm of B'B is at most the largest of its row sums. Of a
    convolution, B is the sum over its taps: no output reads, and no input is read, by a tap twice.
    """
    weight = abs(operation.wide("weight"))
    exponent = math.frexp(float(weight.max()))[1]
    weight = np.ldexp(weight, -exponent)
    groups = operation.options.get("groups", 1)
    sums = weight.reshape(groups, -1, weight.shape[1], math.prod(weight.shape[2:])).sum(3)
    rows = sums.sum(2, keepdims=True)
    return math.ldexp(math.sqrt(float((sums * rows).sum(1).max())) * SLACK, exponent)


def _bias(operation: Operation, bias: Floats) -> Floats:
    return bias[:, None, None] if operation.kind == "convolution" else bias


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


def _chunks(operation: Operation, count: int) -> Iterator[tuple[slice, slice]]:
    # Samples, and lines of the output map, whose windows read about CHUNK values.
    height = operation.output_shape[1]
    line = max(1, reads(operation) // height)
    lines, step = min(height, max(1, CHUNK // line)), max(1, CHUNK // (line * height))
    for start in range(0, count, step):
        for top in range(0, height, lines):
            yield slice(start, start + step), slice(top, top + lines)


def reads(operation: Operation) -> int:
    """Values that the windows of a convolution read of one sample."""
    taps = operation.tensors["weight"].shape[1:]
    groups = operation.options["groups"]
    return math.prod(taps) * groups * math.prod(operation.output_shape[1:])


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


# The same in integers.


@dataclass(frozen=True)
class Exact:
    """Integers times ``2**-places``, within ``error`` (N,) of the real values in the l2 norm."""

    values: Integers
    places: int
    error: Floats


def evaluate_exactly(
    operations: Sequence[Operation], samples: Floats, norms: Mapping[str, float]
) -> Exact:
    """Evaluate samples ``(N, *input_shape)`` in integers.

    Raises:
        InexactError: a value is outside the range that can be represented.
    """
    return trace_exactly(operations, samples, norms, every=False)[-1]


def trace_exactly(
    operations: Sequence[Operation],
    samples: Floats,
    norms: Mapping[str, float],
    *,
    every: bool = True,
) -> list[Exact]:
    """Like :func:`evaluate_exactly`: the samples, and what each operation makes of them.

    Without ``every``, the last state alone, and no other is kept on the way.
    """
    values, places = to_integers(samples)
    states = [Exact(values, places, np.zeros(len(samples)))]
    for operation in operations:
        state = _run_exactly([operation], states[-1], norms)
        states = [*states, state] if every else [state]
    return states


def _run_exactly(
    operations: Sequence[Operation], state: Exact, norms: Mapping[str, float]
) -> Exact:
    for operation in operations:
        state = shortened(_step_exactly(operation, state, norms))
        # Others are 1-Lipschitz, and add a bit at most.
        grows = operation.kind not in ("activation", "flatten", "wrap")
        if grows and exponent(state.values, state.places) > MAX_BITS:
            raise InexactError(f"a value passes 2^{MAX_BITS} behind {operation.label}")
    return state


def shortened(state: Exact) -> Exact:
    """The same with fewer places, where there are very many."""
    if state.places <= MAX_PLACES:
        return state
    entries = math.prod(state.values.shape[1:])
    return Exact(
        shift(state.values, KEPT_PLACES - state.places),
        KEPT_PLACES,
        state.error + math.ldexp(math.sqrt(entries) * SLACK, -KEPT_PLACES),
    )


def _step_exactly(operation: Operation, state: Exact, norms: Mapping[str, float]) -> Exact:
    error = state.error * norms[operation.path] * SLACK
    z, places = state.values, state.places
    if operation.kind in ("dense", "convolution"):
        weight, finer = scaled(operation.wide("weight"))
        z = _linear_exactly(operation, z, weight, linear, math.prod(weight.shape[1:]))
        if "bias" in operation.tensors:
            return _plus(z, places + finer, _bias(operation, operation.wide("bias")), error)
        return Exact(z, places + finer, error)
    if operation.kind == "affine":
        scale, finer = to_integers(_spread(operation.wide("scale"), z.ndim - 1))
        offset = _spread(operation.wide("shift"), z.ndim - 1)
        return _plus(z * scale, places + finer, offset, error)
    if operation.kind == "flatten":
        return Exact(z.reshape(len(z), -1), places, error)
    if operation.kind == "wrap":
        return Exact(_wrap(operation, z), places, error)
    if operation.parts:
        found = _run_exactly(operation.parts, Exact(z, places, 0 * error), norms)
        return Exact(found.values, found.places, (error + found.error) * SLACK)
    if operation.kind == "sum":
        total, finest, wrong = np.zeros((), dtype=object), 0, np.zeros(len(z))
        for branch in operation.branches:
            found = _run_exactly(branch, state, norms)
            finer = max(finest, found.places)
            total = shift(total, finer - finest) + shift(found.values, finer - found.places)
            finest, wrong = finer, wrong + found.error
        return Exact(np.asarray(total, dtype=object), finest, SLACK * wrong)
    if operation.kind == "quadratics":
        raise InexactError("quadratics have no Lipschitz constant")
    kind, tensors, options = _activation(operation)
    values, finer, local = kind.exact(z, places, **tensors, **options)
    entries = math.prod(operation.output_shape)
    return Exact(values, finer, error + local * math.sqrt(entries) * SLACK)


def scaled(weight: Floats) -> tuple[Floats, int]:
    """Integer-valued floats, and the places that they are shifted by.

    Raises:
        InexactError: they span too many binades.
    """
    places = binary_places(weight)
    if places > 400 or float(abs(weight).max()) > 2.0**400:
        raise InexactError("weights span too many binades")
    return np.ldexp(weight, places), places


def adjoint_exactly(operation: Operation, u: Exact) -> tuple[Integers, int]:
    """The transpose of a dense map or a convolution times integers: integers and their places."""
    weight, finer = scaled(operation.wide("weight"))
    terms = weight.shape[0] * math.prod(weight.shape[2:])
    return _linear_exactly(operation, u.values, weight, adjoint, terms), u.places + finer


def _linear_exactly(
    operation: Operation,
    z: Integers,
    weight: Floats,
    product: Callable[[Operation, Floats, Floats], Floats],
    terms: int,
) -> Integers:
    bits = digit_bits(terms)
    digits = split_integers(z, bits)
    parts: dict[int, NDArray[np.int64]] = {}
    # One digit of the kernel after the other, so that they are not all there at once.
    for j, kernel in enumerate(float_digits(weight, bits)):
        for i, digit in enumerate(digits):
            found = product(operation, digit, kernel).astype(np.int64)
            parts[i + j] = parts[i + j] + found if i + j in parts else found
    return add_up(parts, bits)


def _plus(z: Integers, places: int, bias: Floats, error: Floats) -> Exact:
    offset, finer = to_integers(bias)
    finest = max(places, finer)
    total = shift(z, finest - places) + shift(offset, finest - finer)
    return Exact(np.asarray(total, dtype=object), finest, error)


def float_bytes(operations: Sequence[Operation], *, every: bool = False) -> int:
    """Bytes that :func:`trace` takes for each sample, in float64.

    With ``every`` state kept, gradients follow, and what they take is included.
    """
    live = 8 * (LIVE_SMOOTH if every else LIVE)
    kept = sum(math.prod(op.output_shape) for op in operations) if every else 0
    return 8 * kept + max(live * _largest(op) for op in operations)


def exact_bytes(operations: Sequence[Operation], *, every: bool = False) -> int:
    """Bytes that :func:`trace_exactly` takes for each sample; see :func:`float_bytes`."""
    kept = sum(math.prod(op.output_shape) for op in operations) if every else 0
    return KEPT_BYTES * kept + max(INTEGER_BYTES * _largest(op) for op in operations)


def _largest(operation: Operation) -> int:
    # Values of the largest input or output on the way, padding included. A sum keeps its input and
    # its total besides what its branches need.
    inside = [*operation.parts, *(op for branch in operation.branches for op in branch)]
    found = max(math.prod(operation.input_shape), math.prod(operation.output_shape))
    if operation.kind == "convolution":
        height, width = (
            n + 2 * p
            for n, p in zip(operation.input_shape[1:], operation.options["padding"], strict=True)
        )
        found = max(found, operation.input_shape[0] * height * width)
    if operation.kind == "quadratics":
        found = max(found, *(operation.tensors[key].size for key in ("slope", "offset")))
    return max([found, *(found // 2 + _largest(op) for op in inside)])


def batches(count: int, each: int, budget: int) -> Iterator[slice]:
    """Slices of samples that take ``each`` bytes: at least one, and ``budget`` bytes otherwise."""
    step = max(1, budget // each)
    for start in range(0, count, step):
        yield slice(start, start + step)


def walk(operations: Sequence[Operation]) -> Iterator[Operation]:
    """All operations, those of parts after the whole and those of branches after their sum."""
    for operation in operations:
        yield operation
        yield from walk(operation.parts)
        for branch in operation.branches:
            yield from walk(branch)
