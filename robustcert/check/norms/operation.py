r"""Proofs of the norm claimed for an operation, and proved norms where none is claimed.

Sandwich layers and residual blocks, which have an activation inside, are bounded as a whole, by the
norm of a linear map that their weights define, and so are polynomials of a skew convolution.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from robustcert.check.arithmetic import UNIT
from robustcert.check.effort import UNLIMITED, Effort
from robustcert.check.forward.torus import ON_TORUS, frequency_count
from robustcert.check.network.operation import Operation
from robustcert.check.norms.convolution import (
    convolution_bytes,
    estimate_convolution,
    prove_convolution,
)
from robustcert.check.norms.cost import proof_seconds, proof_work
from robustcert.check.norms.dense import (
    Proof,
    can_factor,
    estimate,
    frobenius,
    proof_bytes,
    prove_dense,
)
from robustcert.check.norms.scalars import UNDERFLOW, root_down
from robustcert.check.norms.symbols import (
    MIN_SHARED_WORK,
    axes_of,
    circles_of,
    estimate_symbols,
    prove_symbols,
    require_symbols,
    symbol_bytes,
    symbol_work,
)

# Products that take the time of the matrix of a map on a torus at a frequency, over the cube of its
# side.
MATRIX_WORK = 128.0


def prove(operation: Operation, bound: float, effort: Effort = UNLIMITED) -> Proof:
    """Prove the claimed bound of an operation with weights.

    Raises:
        NotTriedError: the operation is too large, or the time too short, to try.
    """
    if operation.kind in ("sandwich", "residual_block"):
        return _prove_sloped(operation, bound, effort)
    if operation.kind == "skew_series":
        below = math.nextafter(inner_norm(operation, Fraction(bound)), 0.0)
        return prove(step_of(operation), below, effort) if below > 0 else Proof()
    if operation.kind == "circular_convolution":
        circles = circles_of(operation)
        found = prove_symbols(operation, Fraction(bound), *circles, effort)
        if not found.method:
            require_symbols(operation, *circles)
        return found
    if operation.kind == "dense":
        return prove_dense(operation.wide("weight"), Fraction(bound), effort)
    return prove_convolution(operation, Fraction(bound), effort)


def find(operation: Operation, effort: Effort = UNLIMITED) -> float:
    """A proved bound for an operation of which the folder claims none; NaN if none is found.

    Raises:
        NotTriedError: as for :func:`prove`.
    """

    def attempt(bound: Fraction) -> Proof:
        return prove(operation, float(bound), effort)

    if operation.kind in ("sandwich", "residual_block"):
        inside, _ = _between_activations(operation)
        norm = _estimate_linear(inside, effort)
        square = norm**2 / (2 if operation.kind == "sandwich" else 1)
        if square < 1 and prove(operation, 1.0, effort).method:
            return 1.0
        return _first_proved(max(1.0, 2 * square - 1), attempt)
    if operation.kind == "skew_series":
        norm = find(step_of(operation), effort)
        if not math.isfinite(norm):
            return math.nan
        return _first_proved(float(_series(operation, Fraction(norm))), attempt)
    return _first_proved(_estimate_linear(operation, effort), attempt)


def _first_proved(guess: float, attempt: Callable[[Fraction], Proof]) -> float:
    if not math.isfinite(guess):
        return math.nan
    for slack in (2e-10, 1e-8, 1e-6, 1e-4, 1e-2):
        value = guess * (1 + slack)
        if attempt(Fraction(value)).method:
            return value
    return math.nan


def _prove_sloped(operation: Operation, bound: float, effort: Effort) -> Proof:
    # Slopes in [0, 1] make f'f <= f'v for the differences v and f before and after the activation.
    # For x -> x - 2 A'f with v = A x, |x - 2 A'f|^2 <= |x|^2 + 4 h |f|^2 with h >= |A|^2 - 1, and
    # |f| <= |A| |x|: the square of the constant is at most 1 + 4 h (1 + h) = (1 + 2 h)^2, so that
    # |A|^2 <= (1 + bound) / 2 suffices. For x -> G'f it is the same with [G / psi, psi V] and twice
    # the square: with g = psi f, |G'f|^2 <= (2 + 2 h) |g|^2 - |V' psi g|^2 <= 2 f' psi^2 V x -
    # |V' psi g|^2 + 2 h |g|^2, whose first two terms are at most |x|^2, and |g| <= |psi V| |x|.
    if not 1 <= bound <= 2.0**60:
        return Proof()
    square = (1 + Fraction(bound)) / (1 if operation.kind == "sandwich" else 2)
    inside, loss = _between_activations(operation)
    below = math.nextafter(float(root_down(square) - loss), 0.0)
    return prove(inside, below, effort) if below > 0 else Proof()


def _between_activations(operation: Operation) -> tuple[Operation, Fraction]:
    # [G / psi, psi V] or A as a linear map with rounded weights, and a bound on the norm of the
    # rounding.
    if operation.kind == "sandwich":
        first = operation.parts[0]
        inner = operation.wide("inner")
        psi = operation.wide("multiplier").reshape(-1, *(1,) * (inner.ndim - 1))
        product = np.concatenate([operation.wide("outer") / psi, inner * psi], axis=1)
    else:
        first = operation.parts[0].branches[1][0]
        weight = first.wide("weight")
        product = weight * operation.wide("scale").reshape(-1, *(1,) * (weight.ndim - 1))
    # A tap reads every input once at most, and its weights are wrong by a unit roundoff each.
    taps = math.isqrt(math.prod(product.shape[2:])) + 1
    inside = replace(first, tensors={"weight": product})
    return inside, frobenius(product) * Fraction(UNIT) * taps + UNDERFLOW


def step_of(operation: Operation) -> Operation:
    """The convolution of which a skew series is a polynomial."""
    return operation.parts[0].branches[1][-2]


def _series(operation: Operation, norm: Fraction) -> Fraction:
    # A bound of the polynomial p = sum c_k z^k at a skew A, which is unitarily diagonal with
    # eigenvalues it, |t| <= norm: of |p(it)|, by its distance from exp(it), of modulus 1, whose
    # k-th term is at most norm^k / k!. Terms after the last of p shrink by norm / (n + 2) each, at
    # least. And it is at most the sum of the moduli of its own terms.
    scales = [Fraction(float(scale)) for scale in operation.tensors["scales"]]
    product = power = near = plain = Fraction(1)
    for k, scale in enumerate(scales, 1):
        product, power = product * scale, power * norm
        near += abs(product - Fraction(1, math.factorial(k))) * power
        plain += abs(product) * power
    count = len(scales)
    if norm >= count + 2:
        return plain
    rest = power * norm / math.factorial(count + 1) / (1 - norm / (count + 2))
    return min(plain, near + rest)


def inner_norm(operation: Operation, bound: Fraction) -> float:
    """The largest norm of its step, roughly, with which a skew series obeys a bound; 0 if none."""
    low, high = 0.0, 1.0
    while high < 2.0**60 and _series(operation, Fraction(high)) <= bound:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if _series(operation, Fraction(middle)) <= bound:
            low = middle
        else:
            high = middle
    return low


def _estimate_linear(operation: Operation, effort: Effort) -> float:
    if operation.kind == "dense":
        weight = operation.wide("weight")
        effort.require(proof_seconds(proof_work(*weight.shape)))
        return estimate(weight[None])
    if operation.kind == "circular_convolution":
        circles = circles_of(operation)
        require_symbols(operation, *circles)
        return estimate_symbols(operation, *circles, effort)
    return estimate_convolution(operation, effort)


def work(operation: Operation) -> float:
    """Products that the proof of an operation's norm takes, roughly; infinite beyond the limits.

    They are those by symbols of a convolution, and by one matrix of a dense map.
    """
    if operation.kind in ("sandwich", "residual_block"):
        return work(_between_activations(operation)[0])
    if operation.kind == "skew_series":
        return work(step_of(operation))
    if operation.kind == "dense":
        shape = operation.tensors["weight"].shape
        return proof_work(*shape) if can_factor(shape) else math.inf
    if operation.kind == "circular_convolution":
        return symbol_work(operation, *circles_of(operation))
    if operation.kind == "convolution":
        return symbol_work(operation, *axes_of(operation))
    if operation.kind in ON_TORUS:
        # Its norm is known; what takes time is what proves it defined.
        rows, columns = operation.tensors["weight"].shape[:2]
        rows = columns if operation.kind == "reflection" else rows
        return MATRIX_WORK * frequency_count(operation) * rows * columns * min(rows, columns)
    return 0.0


def is_shared(operation: Operation) -> bool:
    """Whether processes share the proof of an operation's norm."""
    if operation.kind in ("sandwich", "residual_block"):
        return is_shared(_between_activations(operation)[0])
    if operation.kind == "skew_series":
        return is_shared(step_of(operation))
    if operation.kind not in ("convolution", "circular_convolution"):
        return False
    axes = (circles_of if operation.kind == "circular_convolution" else axes_of)(operation)
    return work(operation) >= MIN_SHARED_WORK and axes[0].points * axes[1].points > 1


def workspace(operation: Operation) -> int:
    """Bytes that :func:`prove` and :func:`find` take at most."""
    size = sum(array.size for array in operation.tensors.values())
    if operation.kind in ("sandwich", "residual_block"):
        # The linear map inside has weights of its own.
        inside, _ = _between_activations(operation)
        return workspace(inside) + 16 * size
    if operation.kind == "skew_series":
        return workspace(step_of(operation))
    copies = 8 * 8 * size
    if operation.kind == "dense":
        shape = operation.tensors["weight"].shape
        return 3 * 8 * size + (proof_bytes(*shape) if can_factor(shape) else 0)
    if operation.kind == "circular_convolution":
        shape, groups = operation.tensors["weight"].shape, operation.options.get("groups", 1)
        return copies + symbol_bytes(shape, groups, *circles_of(operation))
    if operation.kind != "convolution":
        return 0
    return copies + convolution_bytes(operation)
