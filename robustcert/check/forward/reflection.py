r"""Reflections at the range of a circular convolution: their norm, values and errors.

Let V be a convolution on a torus of M positions, :math:`(V d)(p) = \sum_a V_a d(p + a)`, and let
A = V'V have the blocks :math:`A(\omega) = \sum_k A_k e^{i \omega k}`, :math:`A_k = \sum_a V_a^T
V_{a + k}`.
The map is W = I - 2 V (A + D)^-1 V', where D is the multiple ``ridge`` of the mean of the diagonal
of each block, and nonnegative.

*Norm.* V (A + D)^-1 V' has the eigenvalues s^2 / (s^2 + d) for singular values s of a block and its
d, and 0. They are from 0 to 1, so that those of W are from -1 to 1: its norm is at most 1. It is
defined where A + D is invertible, which the inverses found here prove. Embedding by zeros and
dropping outputs do not raise the norm.

*Values.* H is taken for the inverse of B = A(w) + D, Hermitian to the last bit. The square root of
B makes of HB a Hermitian matrix of the same eigenvalues, which are within e of 1, if no sum of a
row of absolute values of HB - I passes e; both parts of an entry are counted. As A is at most B,
the map with H is within 2 e of W. Also, ||V|| <= v, v^2 the largest sum of a row of A, and with h
that of H, ||VH|| and ||HV'|| are at most q with q^2 = h (1 + e). Of e, the share that is not seen
in the computed HB - I is 2 h times the error of both parts of B: gamma T for the A_k, with T the
largest row sum of S'S, S = sum |V_a|, in sums of 32 products that are added in pairs; and (gamma +
10 u) of sum |A_k| for that over all k, whose phases are within 10 units. Another is gamma h v^2 for
the product HB, in sums of 2 n terms.

*Errors.* A deployed network may take any order of summation and another H, for which the same e
holds. Convolutions with V and V' are wrong by e_V = gamma ||S||, each product with the orthonormal
cosines and sines, in sums of F terms, by e_F = gamma sqrt(F) and the error of the cosines, 2^-48 in
a deployed network, and HB, as above, by e_H = gamma h. The values are wrong by at most twice
t = e + 2 q e_V + 2 q e_F v + v^2 e_H, relative to x, but for products of errors, which are at most
2 t^2 as q v is at least 1; and the sum with x takes three roundings more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT64, SLACK, UNIT, Arithmetic
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.linear import absolute_norm, linear
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

# Rows of V in a single product of matrices.
ROWS = 32
# Values of the blocks that are inverted at once.
MAX_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class Inverses:
    """H of all frequencies, shape ``(F, n, n)``, with e, h and the square of v."""

    values: Complexes
    error: float
    size: float
    gram: float


def reflect(operation: Operation, x: Floats) -> Floats:
    """Values at inputs ``(N, *input_shape)``, in float64."""
    options, weight = operation.options, operation.wide("weight")
    signal = on_circle(operation, x)
    channels = signal.shape[1]
    back = np.flip(weight[:channels].swapaxes(0, 1), (2, 3))
    inner = _around(operation, signal, np.ascontiguousarray(back), before=True)
    solved = by_frequency(inner, inverses_of(operation).values)
    outer = _around(operation, solved, weight[: options["outputs"]], before=False)
    same = min(channels, options["outputs"])
    found = -2 * outer
    found[:, :same] += signal[:, :same]
    return within_map(operation, found)


def reflection_error(operation: Operation, arithmetic: Arithmetic) -> tuple[float, float]:
    """``(a, b)``: values computed in an arithmetic are wrong by at most ``a |x| + b``.

    Infinite where the arithmetic is too coarse, or values on the way may be 2^40 times larger.

    Raises:
        UnreadableError: no inverse is close enough.
    """
    inverses, weight = inverses_of(operation), operation.wide("weight")
    rows, columns = weight.shape[:2]
    points = 2 * len(inverses.values) + 4
    size = _absolute(operation)
    kernel = arithmetic.gamma(rows * math.prod(weight.shape[2:]) + 2) * size
    phases = phase_error(operation, arithmetic, points)
    inverse = arithmetic.gamma(2 * columns + 4) * inverses.size
    v, q = math.sqrt(inverses.gram), math.sqrt(inverses.size * (1 + inverses.error))
    parts = inverses.error, 2 * q * kernel, 2 * q * phases * v, v * v * inverse
    total = sum(parts)
    if not total <= MAX_TOTAL or not max(size, v, q, inverses.size) <= MAX_NORM:
        return math.inf, math.inf
    relative = 2 * total * (1 + 2 * total) + 8 * arithmetic.unit
    entries = math.sqrt(math.prod(operation.output_shape) + math.prod(operation.input_shape))
    lost = arithmetic.least * entries * points * 2.0**20
    lost *= (1 + q + v + float(abs(weight).max())) ** 4
    return (relative + lost) * SLACK, (bias_error(operation, arithmetic) + lost) * SLACK


def inverses_of(operation: Operation) -> Inverses:
    """The inverses of an operation."""
    return kept(operation, _invert)


def _around(operation: Operation, x: Floats, weight: Floats, *, before: bool) -> Floats:
    """Correlation on the torus, with the taps at the positions before an output or after it."""
    for d in (2, 3):
        more = weight.shape[d] - 1
        reads = np.arange(x.shape[d] + more) - (more if before else 0)
        x = np.take(x, reads % x.shape[d], axis=d)
    ones = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    shape = (len(weight), *circle_of(operation))
    tensors = {"weight": weight}
    window = Operation("convolution", "", operation.path, ones, tensors, x.shape[1:], shape)
    return linear(window, x, weight)


def _absolute(operation: Operation) -> float:
    ones = {"groups": 1}
    tensors = {"weight": operation.tensors["weight"]}
    return absolute_norm(Operation("convolution", "", "", ones, tensors, (), ()))


def _invert(operation: Operation) -> Inverses:
    weight, ridge = operation.wide("weight"), float.fromhex(operation.options["ridge"])
    rows, columns, *sides = weight.shape
    every = abs(weight).sum(axis=(2, 3))
    total = float((every.T @ every.sum(axis=1)).max()) * SLACK
    shifts, taps = _taps(weight)
    added = float(abs(taps).sum(axis=(0, 2)).max()) * SLACK
    gamma = FLOAT64.gamma
    wrong = gamma(ROWS + 1 + math.ceil(math.log2(rows * math.prod(sides)))) * total
    phased = (gamma(len(taps) + 4) + OWN_PHASES * UNIT) * (added + wrong)
    lost = 2 * (wrong + phased) * (1 + ridge) + gamma(columns + 4) * ridge * total
    found, error, size, gram = [], 0.0, 0.0, 0.0
    identity = np.eye(columns)
    for block in _blocks(shifts, taps, circle_of(operation)):
        block = (block + block.conj().swapaxes(1, 2)) / 2
        mean = np.trace(block, axis1=1, axis2=2).real / columns
        block = block + ridge * mean[:, None, None] * identity
        try:
            inverse = np.linalg.inv(block)
        except np.linalg.LinAlgError:
            raise UnreadableError(
                f"{operation.label}: columns of its kernel are dependent"
            ) from None
        inverse = (inverse + inverse.conj().swapaxes(1, 2)) / 2
        seen = _row_sums(inverse @ block - identity)
        own, of_block = _row_sums(inverse), _row_sums(block)
        error = max(error, seen + gamma(2 * columns + 4) * own * of_block + own * lost)
        size, gram = max(size, own), max(gram, of_block + lost)
        found.append(inverse)
    if not error <= MAX_ERROR:
        raise UnreadableError(
            f"{operation.label}: columns of its kernel depend on each other too much: inverses are "
            f"known up to {error:.3g}"
        )
    return Inverses(np.concatenate(found), error * SLACK, size * SLACK, gram * SLACK)


def _row_sums(blocks: NDArray[Any]) -> float:
    found = float((abs(blocks.real) + abs(blocks.imag)).sum(axis=2).max()) * SLACK
    return found if math.isfinite(found) else math.inf


def _taps(weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Shifts k, shape ``(K, 2)``, and A_k, shape ``(K, n, n)``."""
    height, width = weight.shape[2:]
    shifts = [(k, m) for k in range(1 - height, height) for m in range(1 - width, width)]
    found = []
    for k, m in shifts:
        rows = slice(max(0, -k), height - max(0, k)), slice(max(0, k), height + min(0, k))
        places = slice(max(0, -m), width - max(0, m)), slice(max(0, m), width + min(0, m))
        left, right = (weight[:, :, r, p] for r, p in zip(rows, places, strict=True))
        found.append(_summed(left, right))
    return np.array(shifts, dtype=np.int64), np.array(found)


def _summed(left: Floats, right: Floats) -> Floats:
    """Sums over rows and taps of products of channels, of at most ROWS first, then of pairs."""
    columns = left.shape[1]
    x, y = (part.transpose(0, 2, 3, 1).reshape(-1, columns) for part in (left, right))
    sums = [x[i : i + ROWS].T @ y[i : i + ROWS] for i in range(0, len(x), ROWS)]
    while len(sums) > 1:
        sums = [sum(sums[i : i + 2][1:], sums[i]) for i in range(0, len(sums), 2)]
    return sums[0]


def _blocks(shifts: NDArray[np.int64], taps: Floats, size: tuple[int, int]) -> Iterator[Complexes]:
    """Blocks of V'V, some frequencies after the others."""
    columns, phases = taps.shape[1], phases_at(size, shifts)
    flat = taps.reshape(len(taps), -1)
    step = max(1, MAX_BLOCK_VALUES // columns**2)
    for start in range(0, len(phases), step):
        some = phases[start : start + step]
        values = (some.real @ flat) + 1j * (some.imag @ flat)
        yield values.reshape(-1, columns, columns)
