r"""Logits in float64 for all samples, with proved errors.

Let N be the proved norm of an operation and D the error of its computed input, in the l2 norm. The
error of its computed output is at most N D plus a local error. For dense maps and convolutions with
n terms, computed z and unit roundoff u, the local error is at most :math:`\gamma_{n+1} \lVert |W|
|z| + |b| \rVert`, for any order of summation (:math:`\gamma_k = k u / (1 - k u)`).

The deployed network may be evaluated at any point within r of the sample. Its computed input to an
operation is within :math:`P r + D_0 + D + \beta r` of the one computed here, where P is the
constant of everything before, D and :math:`D_0` are the errors of the two evaluations at the sample
and :math:`\beta` is what D gains per unit of distance. With :math:`\lVert |W| \rVert \le a` the
error of its output within r has the form :math:`D + \beta r` again. The same magnitudes give the
distance within which nothing overflows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from robustcert.check.activations.table import KINDS
from robustcert.check.arithmetic import SLACK, Arithmetic, norm, product
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.linear import absolute_norm, gather, linear, spread, spread_bias, wrap
from robustcert.check.forward.orthogonal import rotate, rotation_error
from robustcert.check.forward.reflection import reflect, reflection_error
from robustcert.check.network.operation import Operation


@dataclass(frozen=True)
class Evaluation:
    """Computed values of shape ``(N, *)`` and their errors, one row for each arithmetic.

    Attributes:
        values: Values computed here, in float64.
        centre: Bounds on the errors at the samples, ``(A, N)``; those of ``values`` first.
        growth: What these bounds gain per unit of distance from the sample, ``(A,)``.
        reach: Distances from the samples within which nothing overflows, ``(A, N)``.
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
    constants: Sequence[float] | None = None,
) -> Evaluation:
    """Evaluate samples in float64, with bounds on the errors in float64 and other arithmetics.

    Args:
        operations: Operations, applied in turn.
        samples: Shape ``(N, *input_shape)``, exact.
        norms: Proved norm of every operation by its path.
        arithmetics: float64 first.
        constants: Proved constants of the first operations in a metric, in whose distances the
            errors are then stated; by default those of the l2 distance of inputs.
    """
    return trace(operations, samples, norms, arithmetics, constants, every=False)[-1]


def trace(
    operations: Sequence[Operation],
    samples: Floats,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
    constants: Sequence[float] | None = None,
    *,
    every: bool = True,
) -> list[Evaluation]:
    """Like :func:`evaluate`: the samples, then the output of every operation.

    Without ``every``, the list holds the last state alone, and no other is kept in memory.
    """
    count, rows = len(arithmetics), len(samples)
    zero, reach = np.zeros((count, rows)), np.full((count, rows), math.inf)
    known = constants or ()
    states = [Evaluation(samples, zero, np.zeros(count), reach, known[0] if known else 1.0)]
    # Overflow shows in the reach and in logits that are not finite: it needs no warning.
    with np.errstate(all="ignore"):
        for k, operation in enumerate(operations, 1):
            state = _run([operation], states[-1], norms, arithmetics)
            if known:
                state = replace(state, constant=min(state.constant, known[k]))
            states = [*states, state] if every else [state]
    return states


def _run(
    operations: Sequence[Operation],
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    for operation in operations:
        step = _JOINED.get(operation.kind, _step)
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
    growth = product(norm, state.growth)
    if terms:
        peak = magnitude + gain * (state.centre + state.centre[0])
        slope = product(gain, state.constant + state.growth)
        size = math.sqrt(math.prod(operation.output_shape)) * (terms + 1)
        for k, arithmetic in enumerate(arithmetics):
            gamma = arithmetic.gamma(terms)
            centre[k] += gamma * peak[k] + arithmetic.least * 2.0**30 * size
            growth[k] += product(gamma, slope[k])
            safe = math.sqrt(arithmetic.safe) if _squares(operation) else arithmetic.safe
            reach[k] = np.minimum(reach[k], _reach(safe, peak[k], slope[k]))
    constant = float(product(state.constant, norm)) * SLACK
    return Evaluation(values, centre * SLACK, growth * SLACK, reach, constant)


def _whole(
    operation: Operation,
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    # The parts multiply the error of the input by their own norms. That share is replaced by the
    # error times the norm of the whole, which is smaller; what the parts add is kept.
    found = _run(operation.parts, state, norms, arithmetics)
    norm, carried = norms[operation.path], _gain(operation.parts, norms) * (1 - 2.0**-40)
    centre = norm * state.centre + (found.centre - carried * state.centre)
    growth = product(norm, state.growth) + (found.growth - carried * state.growth)
    # Allowance for the rounding of the differences, relative to their first terms.
    centre += 2.0**-48 * found.centre
    growth += 2.0**-48 * found.growth
    constant = float(product(state.constant, norm)) * SLACK
    return Evaluation(found.values, centre * SLACK, growth * SLACK, found.reach, constant)


def _gain(operations: Sequence[Operation], norms: Mapping[str, float]) -> float:
    # Factor by which `_run` multiplies the errors of an input, up to rounding.
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
    # The branches are evaluated one after the other, and only their sum is kept.
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
        growth[k] += product(gamma, slope)
        reach[k] = np.minimum(reach[k], _reach(arithmetic.safe, peak[k], slope))
    return Evaluation(values, centre * SLACK, growth * SLACK, reach, constant)


def _concatenate(
    operation: Operation,
    state: Evaluation,
    norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    # Errors side by side: the squares of their norms add up, and nothing is rounded.
    found = [_run(branch, state, norms, arithmetics) for branch in operation.branches]
    return Evaluation(
        np.concatenate([each.values for each in found], axis=operation.options["axis"] + 1),
        reduce(np.hypot, (each.centre for each in found)) * SLACK,
        reduce(np.hypot, (each.growth for each in found)) * SLACK,
        reduce(np.minimum, (each.reach for each in found)),
        math.hypot(*(each.constant for each in found)) * SLACK,
    )


# Values and errors of the kinds that are evaluated by frequencies, of norm at most 1.
TORUS_MAPS: Mapping[str, tuple[Callable[..., Floats], Callable[..., tuple[float, float]]]] = {
    "reflection": (reflect, reflection_error),
    "orthogonal_convolution": (rotate, rotation_error),
}


def _on_torus(
    operation: Operation,
    state: Evaluation,
    _norms: Mapping[str, float],
    arithmetics: Sequence[Arithmetic],
) -> Evaluation:
    # Its norm is at most 1, whatever is claimed.
    evaluate, wrong = TORUS_MAPS[operation.kind]
    centre, growth, reach = state.centre.copy(), state.growth.copy(), state.reach.copy()
    peak = norm(state.values) + state.centre + state.centre[0]
    slope = product(1.0, state.constant + state.growth)
    for k, arithmetic in enumerate(arithmetics):
        relative, absolute = wrong(operation, arithmetic)
        centre[k] += relative * peak[k] + absolute
        growth[k] += product(relative, slope[k])
        # Nothing on the way is 2^40 times larger.
        reach[k] = np.minimum(reach[k], _reach(arithmetic.safe * 2.0**-40, peak[k], slope[k]))
    values, constant = evaluate(operation, state.values), state.constant * SLACK
    return Evaluation(values, centre * SLACK, growth * SLACK, reach, constant)


# What evaluates the kinds that have branches, or matrices at frequencies.
_JOINED = {"sum": _sum, "concatenate": _concatenate, **dict.fromkeys(TORUS_MAPS, _on_torus)}


def _apply(operation: Operation, x: Floats) -> tuple[Floats, Floats | float, float, int]:
    # The values; the magnitude that the local error is relative to, at x and its gain per unit of
    # distance; the number of terms of the sums.
    if operation.kind in ("dense", "convolution"):
        weight = operation.wide("weight")
        values, sizes = linear(operation, x, weight), linear(operation, abs(x), abs(weight))
        if "bias" in operation.tensors:
            bias = spread_bias(operation, operation.wide("bias"))
            values, sizes = values + bias, sizes + abs(bias)
        return values, norm(sizes), absolute_norm(operation), math.prod(weight.shape[1:]) + 1
    if operation.kind == "affine":
        scale, offset = (spread(operation.wide(key), x.ndim - 1) for key in ("scale", "shift"))
        sizes = abs(x) * abs(scale) + abs(offset)
        return x * scale + offset, norm(sizes), float(abs(scale).max()), 2
    if operation.kind == "flatten":
        return x.reshape(len(x), -1), 0.0, 0.0, 0
    if operation.kind == "reshape":
        return x.reshape(len(x), *operation.output_shape), 0.0, 0.0, 0
    if operation.kind in ("gather", "wrap"):
        read = gather if operation.kind == "gather" else wrap
        return read(operation, x), 0.0, 0.0, 0
    if operation.kind == "quadratics":
        # Quadratics have no Lipschitz constant: the bounds on their errors are infinite.
        return _quadratics(operation, x), math.inf, math.inf, 1
    kind, tensors, options = activation_of(operation)
    gain, offset = kind.rounding(**tensors, **options)
    values = kind.apply(x, **tensors, **options)
    if gain == offset == 0:
        return values, 0.0, 0.0, 0
    root = math.sqrt(math.prod(operation.output_shape))
    return values, gain * norm(x) + offset * root, gain, 1


def _squares(operation: Operation) -> bool:
    return operation.kind == "activation" and KINDS[operation.options["function"]].squares


def _quadratics(operation: Operation, x: Floats) -> Floats:
    frame, offset, slope, shift = map(operation.wide, ("frame", "offset", "slope", "shift"))
    within = x @ frame.reshape(-1, frame.shape[2]).T - offset.ravel()
    pieces = (within**2).reshape(len(x), *offset.shape).sum(2) + x @ slope.T + shift
    return pieces.reshape(len(x), operation.options["classes"], -1).max(2)


def activation_of(operation: Operation) -> tuple:
    """The known activation of an operation, its tensors as float64 and its options."""
    options = {key: value for key, value in operation.options.items() if key != "function"}
    tensors = {key: operation.wide(key) for key in operation.tensors}
    return KINDS[operation.options["function"]], tensors, options
