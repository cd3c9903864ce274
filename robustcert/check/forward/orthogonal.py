r"""Orthogonal convolutions that are given by a small kernel and a rule: norm, values and errors.

On a torus let the kernel have the blocks :math:`K(w) = \sum_k K_k e^{i w (k - o)}`, where o is its
middle tap. The block W of the map at w is

* ``exponential``: exp(S), S = K - K^H. It is unitary, as S^H = -S.
* ``cayley``: with U the first rows of K, as many as there are columns, V the others and R = I + U -
  U^H + V^H V, it has the rows 2 R^-1 - I and then -2 V R^-1. x^H R x has a real part of |x|^2 +
  |V x|^2, so that R is invertible and |R^-1| <= 1; and with z = R^-1 x, |2 z - x|^2 + 4 |V z|^2 =
  |x|^2 + 4 (|z|^2 + |V z|^2 - Re z^H x) = |x|^2, as x = R z. W keeps norms. Wide K: (W of K^H)^H.
* ``polar``: Y_0 = K / f, f^2 the Frobenius norm of K^H K, which is at least |K|^2; Y_{k+1} = Y_k
  (3 - Y_k^H Y_k) / 2 and W = Y_10. Singular values stay in [0, 1], as t (3 - t^2) / 2 does there.

Every W has a norm of at most 1, whatever K is, and W at -w is the conjugate of that at w, so that
the map is real. Zeros around inputs, and outputs that are dropped, do not raise its norm.

*Blocks.* m(X) is the root of the largest row sum times the largest column sum of moduli of X. It is
no less than the norm of X, or of a matrix with smaller moduli. A product X Y of k terms is computed
within sqrt(2) gamma_2k m(X) m(Y): each part of an entry is a sum of 2k products, whose moduli add
up to the sum of |x| |y| at most. The same holds in Frobenius norms, for their product. Blocks K are
within w = 2 (gamma + 10 u) |S_K| for S_K the kernel of moduli.

* ``exponential``: exp moves by no more than S between skew S, and the computed S is skew to the
  last bit. |S|^2 = |S^2|, as S is normal, gives the halvings after which |B| <= t <= 1. 18 terms of
  the series, three by three, miss exp(B) by 2 t^18 / 18!; a square of a unitary X moves by
  2 a + a^2 if X moves by a.
* ``cayley``: H - R^-1 = R^-1 (R H - 1) is at most the norm of R H - 1, for any H.
* ``polar``: f is known from the computed K^H K, within sqrt(n) of what that is wrong by. A step is
  an odd polynomial of slopes within 3/2, also beyond 1 by a little. Applied to the Hermitian matrix
  of blocks 0, Y, Y^H, 0, such a function moves by 3/2 of what its argument does, in the Frobenius
  norm.

*Errors.* A deployed network may have other blocks, within the same e of W, and take any order of
summation. The products with cosines and sines are wrong by e_F = gamma sqrt(F) and the error of the
cosines, that with blocks by gamma m(W); the sum t of e, that and 2 e_F is relative to x, with
products of errors of at most 2 t^2. The bias takes a rounding more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robustcert.check.arithmetic import FLOAT64, SLACK, UNIT, Arithmetic
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.linear import absolute_norm
from robustcert.check.forward.torus import (
    MAX_ERROR,
    MAX_NORM,
    MAX_TOTAL,
    OWN_PHASES,
    Complexes,
    bias_error,
    by_frequency,
    circle_of,
    kept,
    on_circle,
    phase_error,
    phases_at,
    within_map,
)
from robustcert.check.network.operation import Operation
from robustcert.check.reader import UnreadableError

# Steps of the rule ``polar``.
POLAR_STEPS = 10
# Values of the blocks that are computed at once.
MAX_VALUES = 2**19


@dataclass(frozen=True)
class Blocks:
    """W of all frequencies, shape ``(F, m, n)``, with e and the largest m(W)."""

    values: Complexes
    error: float
    size: float


def rotate(operation: Operation, x: Floats) -> Floats:
    """Values at inputs ``(N, *input_shape)``, in float64."""
    options, signal = operation.options, on_circle(operation, x)
    values = blocks_of(operation).values[:, : options["outputs"], : signal.shape[1]]
    return within_map(operation, by_frequency(signal, values))


def rotation_error(operation: Operation, arithmetic: Arithmetic) -> tuple[float, float]:
    """``(a, b)``: values computed in an arithmetic are wrong by at most ``a |x| + b``.

    Infinite where the arithmetic is too coarse.

    Raises:
        UnreadableError: no blocks are close enough.
    """
    blocks = blocks_of(operation)
    points = 2 * len(blocks.values) + 4
    phases = phase_error(operation, arithmetic, points)
    # Both parts are rounded: sqrt(2) covers moduli.
    products = math.sqrt(2) * arithmetic.gamma(2 * blocks.values.shape[2] + 4) * blocks.size
    total = blocks.error + products + 2 * phases
    if not total <= MAX_TOTAL:
        return math.inf, math.inf
    entries = math.sqrt(math.prod(operation.output_shape) + math.prod(operation.input_shape))
    lost = arithmetic.least * entries * points * (1 + blocks.size) * 2.0**8
    relative = total * (1 + 2 * total) + 4 * arithmetic.unit
    return (relative + lost) * SLACK, (bias_error(operation, arithmetic) + lost) * SLACK


def blocks_of(operation: Operation) -> Blocks:
    """The blocks of an operation."""
    return kept(operation, _compute)


def _compute(operation: Operation) -> Blocks:
    weight, rule = operation.wide("weight"), operation.options["rule"]
    rows, columns, *sides = weight.shape
    norm = absolute_norm(
        Operation("convolution", "", "", {"groups": 1}, {"weight": weight}, (), ())
    )
    if not norm <= MAX_NORM:
        raise UnreadableError(f"{operation.label}: a kernel of norm {norm:.3g} is too large")
    shifts = np.stack(np.divmod(np.arange(math.prod(sides)), sides[1]), axis=1)
    phases = phases_at(circle_of(operation), shifts - [sides[0] // 2, sides[1] // 2])
    flat = weight.reshape(rows, columns, -1).transpose(2, 0, 1).reshape(len(shifts), -1)
    away = 2 * (FLOAT64.gamma(len(shifts) + 4) + OWN_PHASES * UNIT) * norm
    wide = rule != "exponential" and rows < columns
    found, error, size = [], 0.0, 0.0
    step = max(1, MAX_VALUES // (rows * columns))
    for start in range(0, len(phases), step):
        some = phases[start : start + step]
        free = ((some.real @ flat) + 1j * (some.imag @ flat)).reshape(-1, rows, columns)
        try:
            values, wrong = BLOCK_RULES[rule](_turned(free) if wide else free, away)
        except np.linalg.LinAlgError:
            wrong = math.inf
        if not wrong <= MAX_ERROR:
            raise UnreadableError(f"{operation.label}: its blocks are known up to {wrong:.3g} only")
        found.append(_turned(values) if wide else values)
        error, size = max(error, wrong), max(size, _size(values))
    return Blocks(np.concatenate(found), error * SLACK, size)


def _turned(x: Complexes) -> Complexes:
    return x.conj().swapaxes(1, 2)


def _size(x: Complexes) -> float:
    # The largest m(X).
    moduli = abs(x)
    found = np.sqrt(moduli.sum(axis=1).max(axis=1) * moduli.sum(axis=2).max(axis=1)).max()
    return float(found) * SLACK if np.isfinite(found) else math.inf


def _frobenius(x: Complexes) -> float:
    # The largest Frobenius norm.
    found = math.sqrt(float((x.real**2 + x.imag**2).sum(axis=(1, 2)).max()))
    return found * SLACK if math.isfinite(found) else math.inf


def _rounded(terms: int, x: float, y: float) -> float:
    # What a product of complex matrices of these sizes is wrong by.
    return math.sqrt(2) * FLOAT64.gamma(2 * terms + 4) * x * y * SLACK + 2.0**-900


def _exponential(free: Complexes, away: float) -> tuple[Complexes, float]:
    n = free.shape[2]
    skew = free - _turned(free)
    moved = 2 * away + 4 * UNIT * _size(free)
    square = skew @ skew
    size = _size(skew)
    norm = math.sqrt(_size(square) + _rounded(n, size, size)) * SLACK
    halvings = max(0, math.frexp(norm)[1])
    t, base, size = math.ldexp(norm, -halvings), skew * 0.5**halvings, size * 0.5**halvings
    second = square * 0.25**halvings
    third = second @ base
    of_second = _rounded(n, size, size)
    of_third = of_second * t + _rounded(n, _size(second), size)
    size, of_cube = size + _size(second) + 1, _size(third)

    def three_terms(k: int) -> tuple[Complexes, float]:
        first, middle, last = (1 / math.factorial(j) for j in (k, k + 1, k + 2))
        return first * np.eye(n) + middle * base + last * second, first * (
            of_second + 6 * UNIT * size
        )

    values, wrong = three_terms(15)
    for k in (12, 9, 6, 3, 0):
        rounded = _rounded(n, _size(values), of_cube)
        terms, of_terms = three_terms(k)
        values = values @ third
        # Three is more than any of the sums, exp(t) at most.
        wrong = wrong * t**3 + (3 + wrong) * of_third + rounded + of_terms
        wrong += UNIT * 2 * (_size(values) + size)
        values = values + terms
    wrong += 2 * t**18 / math.factorial(18)
    for _ in range(halvings):
        much = _size(values)
        values = values @ values
        wrong = (2 + wrong) * wrong + _rounded(n, much, much)
    return values, (wrong + moved) * SLACK


def _cayley(free: Complexes, away: float) -> tuple[Complexes, float]:
    n = free.shape[2]
    upper, lower = free[:, :n], free[:, n:]
    one, size = np.eye(n), _size(free)
    form = one + (upper - _turned(upper))
    wrong = 2 * away + 4 * UNIT * (1 + 2 * size)
    if lower.size:
        gram = _turned(lower) @ lower
        form = form + gram
        wrong += _rounded(len(lower[0]), size, size) + (2 * size + away) * away
        wrong += 2 * UNIT * (_size(form) + _size(gram))
    inverse = np.asarray(np.linalg.inv(form), dtype=np.complex128)
    much, of_form = _size(inverse), _size(form)
    left = form @ inverse - one
    left_size = _size(left) * (1 + 2 * UNIT) + _rounded(n, of_form, much) + much * wrong
    result = 2 * inverse - one
    error = 2 * left_size + 4 * UNIT * (2 * much + 1)
    if lower.size:
        below = 2 * (away + size * left_size + _rounded(n, size, much))
        return np.concatenate((result, -2 * (lower @ inverse)), axis=1), (error + below) * SLACK
    return result, error * SLACK


def _polar(free: Complexes, away: float) -> tuple[Complexes, float]:
    m, n = free.shape[1:]
    gram, size, root = _turned(free) @ free, _size(free), math.sqrt(n)
    lost = _rounded(m, size, size)
    norm = math.sqrt(_size(gram) + lost) * SLACK
    doubt = lost + (2 * norm + away) * away
    # Rows first: sums of 2 n terms, and of n.
    lengths = np.sqrt((gram.real**2 + gram.imag**2).sum(axis=2).sum(axis=1))
    if not (lengths > 0).all():
        return free, math.inf
    unsure = root * doubt / lengths + FLOAT64.gamma(2 * n + 8)
    scale = 1 / np.sqrt(lengths)
    if not unsure.max() <= 0.25:
        return free, math.inf
    values = free * scale[:, None, None]
    wrong = root * float((2 * (scale * away + unsure) + 4 * UNIT * size * scale).max())
    for _ in range(POLAR_STEPS):
        much = _frobenius(values)
        rest = 3 * np.eye(n) - _turned(values) @ values
        of_rest = _frobenius(rest)
        own = _rounded(m, much, much) + 4 * UNIT * (of_rest + 3 * root)
        own = (1 + wrong) * own + _rounded(n, much, of_rest)
        values = values @ rest / 2
        wrong = (1.5 * wrong + own / 2) * SLACK
        # Within 1.1, where the slope is what it is said to be.
        if not wrong <= 0.05:
            return values, math.inf
    return values, wrong


# Blocks W and what they are wrong by, of K and what that is wrong by.
BLOCK_RULES: dict[str, Callable[[Complexes, float], tuple[Complexes, float]]] = {
    "exponential": _exponential,
    "cayley": _cayley,
    "polar": _polar,
}
