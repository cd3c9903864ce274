r"""Logits in integers, for samples that float64 does not decide.

A value is an integer times a power of two. Linear maps are exact, and so are the activations that
only select and reflect along axes. The values of others are rounded to 256 binary places, those of
maps that are evaluated by frequencies are float64; bounds on these errors are carried on like those
of ``floating.py``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT64, SLACK, norm
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
from robustcert.check.forward.floating import TORUS_MAPS, activation_of
from robustcert.check.forward.linear import adjoint, gather, linear, spread, spread_bias, wrap
from robustcert.check.network.operation import Operation

# Maximum number of binary places of a value, and the number that is kept where there are more.
MAX_PLACES, KEPT_PLACES = 900, 640
# Maximum binary exponent of a value.
MAX_BITS = 4096


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
    """Like :func:`evaluate_exactly`: the samples, then the output of every operation.

    Without ``every``, the list holds the last state alone, and no other is kept in memory.
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
        # The other kinds only read entries.
        grows = operation.kind not in ("flatten", "reshape", "gather", "wrap")
        if grows and exponent(state.values, state.places) > MAX_BITS:
            raise InexactError(f"a value passes 2^{MAX_BITS} behind {operation.label}")
    return state


def shortened(state: Exact) -> Exact:
    """The state rounded to KEPT_PLACES binary places, if it has more than MAX_PLACES."""
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
        weight, finer = _scaled_weight(operation)
        z = _linear_exactly(operation, z, weight, linear, math.prod(weight.shape[1:]))
        if "bias" in operation.tensors:
            return _plus(z, places + finer, spread_bias(operation, operation.wide("bias")), error)
        return Exact(z, places + finer, error)
    if operation.kind == "affine":
        scale, finer = to_integers(spread(operation.wide("scale"), z.ndim - 1))
        offset = spread(operation.wide("shift"), z.ndim - 1)
        return _plus(z * scale, places + finer, offset, error)
    if operation.kind == "flatten":
        return Exact(z.reshape(len(z), -1), places, error)
    if operation.kind == "reshape":
        return Exact(z.reshape(len(z), *operation.output_shape), places, error)
    if operation.kind in ("gather", "wrap"):
        read = gather if operation.kind == "gather" else wrap
        return Exact(read(operation, z), places, error)
    if operation.parts:
        found = _run_exactly(operation.parts, Exact(z, places, 0 * error), norms)
        return Exact(found.values, found.places, (error + found.error) * SLACK)
    if operation.branches:
        return _joined(operation, [_run_exactly(b, state, norms) for b in operation.branches])
    if operation.kind in TORUS_MAPS:
        return _on_torus(operation, state)
    if operation.kind == "quadratics":
        raise InexactError("quadratics have no Lipschitz constant")
    kind, tensors, options = activation_of(operation)
    values, finer, local = kind.exact(z, places, **tensors, **options)
    entries = math.prod(operation.output_shape)
    return Exact(values, finer, error + local * math.sqrt(entries) * SLACK)


def _on_torus(operation: Operation, state: Exact) -> Exact:
    # In float64, with the error of that: inverses are no integers. Its norm is at most 1.
    evaluate, wrong = TORUS_MAPS[operation.kind]
    one = 1 << state.places
    values = np.frompyfunc(lambda z: z / one, 1, 1)(state.values).astype(np.float64)
    size = norm(values)
    relative, absolute = wrong(operation, FLOAT64)
    lost = (relative + 2.0**-52) * size + absolute + 2.0**-1000
    if not np.isfinite(lost).all():
        raise InexactError(f"{operation.label} is too large for float64")
    found, places = to_integers(evaluate(operation, values))
    return Exact(found, places, (state.error + lost) * SLACK)


def _joined(operation: Operation, found: list[Exact]) -> Exact:
    # The sum of branches, whose errors add up; or branches side by side, where their squares do.
    finest = max(each.places for each in found)
    values = [shift(each.values, finest - each.places) for each in found]
    errors = [each.error for each in found]
    if operation.kind == "sum":
        return Exact(np.asarray(sum(values), dtype=object), finest, SLACK * np.sum(errors, axis=0))
    joined = np.concatenate(values, axis=operation.options["axis"] + 1)
    return Exact(joined, finest, SLACK * reduce(np.hypot, errors))


def scaled(weight: Floats) -> tuple[Floats, int]:
    """A weight times the power of two that makes its entries integers, and its exponent.

    Raises:
        InexactError: the entries span too many binades.
    """
    places = _places(weight)
    return np.ldexp(weight, places), places


def _places(weight: Floats) -> int:
    places = binary_places(weight)
    if places > 400 or float(abs(weight).max()) > 2.0**400:
        raise InexactError("weights span too many binades")
    return places


# Binary places of weights, which are the same for all samples and take longer than a product.
_PLACES: WeakKeyDictionary[Operation, int] = WeakKeyDictionary()


def _scaled_weight(operation: Operation) -> tuple[Floats, int]:
    # Like `scaled`, of an operation's weight.
    weight = operation.wide("weight")
    if operation not in _PLACES:
        _PLACES[operation] = _places(weight)
    return np.ldexp(weight, _PLACES[operation]), _PLACES[operation]


def adjoint_exactly(operation: Operation, u: Exact) -> tuple[Integers, int]:
    """The transpose of a dense map or a convolution times u: integers and their binary places."""
    weight, finer = _scaled_weight(operation)
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
    # The digits of the kernel one after the other, so that only one is in memory.
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
