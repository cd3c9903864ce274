r"""Proofs of pairwise constants of dense networks from given multipliers, by one matrix.

Let d be the difference of two inputs, v that of the inputs of an activation, a linear function of
earlier differences, and e that of its outputs. The slopes of the activation are within
[m - r, m + r], entry by entry, so that e = m v + w with :math:`|w_k| \le r_k |v_k|`; entries
whose slope is known, r = 0, need no w. The folder gives a multiplier :math:`l_k > 0` for every w.
With y the vector of d and all l w, every v and e is a linear function of y, and with the rows
:math:`l_k r_k v_k` of all layers as a matrix B,

.. math:: |y|^2 - |B y|^2 = |d|^2 + \sum_k (l_k^2 w_k^2 - l_k^2 r_k^2 v_k^2) \le |d|^2 .

B is computed as B~, in float64, with :math:`|B y - B~ y| \le \phi |y|`. Let R be any matrix and
:math:`E = I - B~'B~ - R'R`, which is computed exactly, as in ``norms/dense.py``. Then

.. math:: |R y|^2 \le |d|^2 + \eta |y|^2, \quad
    \eta = \lVert E \rVert + 2 \phi \sqrt{1 + \lVert E \rVert} + \phi^2,

for :math:`\lVert B~ \rVert^2 \le 1 + \lVert E \rVert`. The proved norms give :math:`|y| \le Z |d|`.
A difference of logits is a y, a = g R + f for any g, so that it is at most

.. math:: |g| \sqrt{1 + \eta Z^2} + |f| Z \quad \text{times } |d| .

Errors of rows are bounded in the l2 norm: a sum of n products of rows with entries of V is within
:math:`\gamma_n |V|` times their norms, and carries their errors on by :math:`|V|`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustcert.check.activations.kind import slopes_of
from robustcert.check.arithmetic import FLOAT64, SLACK, UNIT, product
from robustcert.check.exact_products import digit_bits, residual_norm, split_floats
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation

# Allowance for the products in a row that underflow.
ROW_UNDERFLOW = 2.0**-700
# Maximum number of variables of the quadratic form: inputs and activation entries together.
MAX_FORM = 4096
# Range of the multipliers of a folder.
MIN_MULTIPLIER, MAX_MULTIPLIER = 2.0**-200, 2.0**200

# Least and largest slope of activations that act on the difference of two neighbours and keep their
# sum.
PAIR_SLOPES = {"group_sort": (-1.0, 1.0), "smooth_maxmin": (-1.0, 1.0)}


class NotCoveredError(ValueError):
    """The network has operations for which no pairwise constants are proved here."""


def layers(operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
    """Every activation that takes multipliers, with their number.

    Raises:
        NotCoveredError: an operation is not covered, or there are too many variables.
    """
    found = []
    for operation in operations:
        size = math.prod(operation.input_shape)
        if operation.kind in ("affine", "flatten"):
            continue
        if operation.kind == "dense" and len(operation.input_shape) == 1:
            continue
        if operation.kind == "activation" and len(operation.input_shape) == 1:
            if _in_pairs(operation):
                found.append((operation, size // 2))
                continue
            low, high = _slopes(operation)
            if low < high:
                found.append((operation, size))
                continue
            if low == high == 1:
                continue
        raise NotCoveredError(f"semidefinite bounds through {operation.label}")
    total = math.prod(operations[0].input_shape) + sum(count for _, count in found)
    if total > MAX_FORM:
        raise NotCoveredError(f"semidefinite bounds with {total} variables, more than {MAX_FORM}")
    return found


def _in_pairs(operation: Operation) -> bool:
    function = operation.options["function"]
    return function in PAIR_SLOPES and operation.options.get("group_size", 2) == 2


def _slopes(operation: Operation) -> tuple[float, float]:
    constants = {key: operation.wide(key) for key in operation.tensors}
    slopes = slopes_of(operation.options["function"], constants)
    if slopes is None:
        raise NotCoveredError(f"semidefinite bounds through {operation.label}")
    return slopes


@dataclass
class _Rows:
    # Linear functions of y, one a row: computed coefficients; bounds on the errors of the rows;
    # bounds on the values if |d| = 1, for each row and for the vector of all.
    matrix: Floats
    error: Floats
    each: Floats
    size: float

    @property
    def length(self) -> Floats:
        return _lengths(self.matrix)

    def times(self, factor: Floats) -> "_Rows":
        """The rows, each times a factor."""
        big = abs(factor)
        matrix = self.matrix * factor[:, None]
        error = (big * (self.error + UNIT * self.length) + ROW_UNDERFLOW) * SLACK
        size = float(product(big.max(), self.size)) * SLACK
        return _Rows(matrix, error, product(big, self.each) * SLACK, size)

    def through(self, weight: Floats, norm: float) -> "_Rows":
        """The rows after a dense map."""
        big = abs(weight)
        gamma = FLOAT64.gamma(weight.shape[1] + 1)
        error = (big @ (self.error + gamma * self.length) + ROW_UNDERFLOW) * SLACK
        size = float(product(norm, self.size)) * SLACK
        lengths = product(_lengths(weight), self.size)
        each = np.minimum(lengths, big @ self.each + ROW_UNDERFLOW) * SLACK
        return _Rows(weight @ self.matrix, error, each, size)


def _lengths(matrix: Floats) -> Floats:
    # In units of the largest entry, whose square is no subnormal number.
    largest = abs(matrix).max(axis=1, initial=0.0)
    rows = matrix / np.where(largest > 0, largest, 1.0)[:, None]
    return np.sqrt(np.einsum("ij,ij->i", rows, rows)) * largest * SLACK + ROW_UNDERFLOW


def constants(
    operations: Sequence[Operation],
    norms: Mapping[str, float],
    multipliers: Sequence[Floats],
) -> Iterator[Floats]:
    """Tables of proved pairwise constants from one list of multipliers, the coarsest first.

    There are none if no constants can be proved from it.

    Args:
        operations: Operations of the network.
        norms: Proved norms by path.
        multipliers: One array for each of :func:`layers`, of positive numbers.
    """
    with np.errstate(all="ignore"):
        logits, stretched, norm = _unroll(operations, norms, multipliers)
        # A row of zeros, so that networks without activations have a matrix too.
        nothing = np.zeros((1, logits.matrix.shape[1]))
        matrix = np.concatenate([nothing, *(rows.matrix for rows in stretched)])
        error = np.concatenate([nothing[:, 0], *(rows.error for rows in stretched)])
    if not np.isfinite(matrix).all() or not np.isfinite(logits.matrix).all():
        return
    for count in (2, 3):
        with np.errstate(all="ignore"):
            found = _bound(logits, matrix, error, norm, count)
        if found is not None:
            yield found


def _unroll(
    operations: Sequence[Operation], norms: Mapping[str, float], multipliers: Sequence[Floats]
) -> tuple[_Rows, list[_Rows], float]:
    # The rows of the logits, the rows of B, and Z.
    inputs = math.prod(operations[0].input_shape)
    total = inputs + sum(map(len, multipliers))
    now = _Rows(np.eye(inputs, total), np.zeros(inputs), np.ones(inputs), 1.0)
    stretched, square, place, left = [], 1.0, inputs, list(multipliers)
    for operation in operations:
        norm = norms[operation.path]
        if operation.kind == "dense":
            now = now.through(operation.wide("weight"), norm)
        elif operation.kind == "affine":
            scale = operation.wide("scale")
            now = now.times(scale.repeat(len(now.matrix) // len(scale)))
        elif operation.kind == "activation":
            pairs = _in_pairs(operation)
            low, high = PAIR_SLOPES[operation.options["function"]] if pairs else _slopes(operation)
            if low == high:
                continue
            size = now.size * norm * SLACK
            kept, moved = (_sums(now, 1), _sums(now, -1)) if pairs else (None, now)
            multiplier = left.pop(0)
            part, moved = _activate(moved, multiplier, low, high, place)
            place += len(multiplier)
            stretched.append(part)
            alone = float(np.sqrt((part.each**2).sum()))
            square = (square + min(alone, part.size) ** 2) * SLACK
            now = moved if kept is None else _pairs(kept, moved)
            now = _Rows(now.matrix, now.error, np.minimum(now.each, size), size)
    return now, stretched, math.sqrt(square) * SLACK


def _activate(
    v: _Rows, multiplier: Floats, low: float, high: float, place: int
) -> tuple[_Rows, _Rows]:
    # The rows of l r v, and those of e = m v + w.
    middle = (low + high) / 2
    radius = max(high - middle, middle - low) * (1 + 2.0**-50)
    part = v.times(multiplier * radius)
    part.error += 2 * UNIT * _lengths(part.matrix)
    after = v.times(np.full(len(multiplier), middle))
    places = np.arange(len(multiplier))
    after.matrix[places, place + places] = 1 / multiplier
    after.error += 2 * UNIT / multiplier
    largest = max(abs(low), abs(high))
    return part, _Rows(after.matrix, after.error, largest * v.each, largest * v.size)


def _sums(now: _Rows, sign: int) -> _Rows:
    # Sums of neighbours, or their differences: the second entry minus the first.
    first, second = now.matrix[::2], now.matrix[1::2]
    matrix = second + sign * first
    error = (now.error[::2] + now.error[1::2] + UNIT * _lengths(matrix)) * SLACK + ROW_UNDERFLOW
    each = (now.each[::2] + now.each[1::2]) * SLACK
    return _Rows(matrix, error, each, now.size * 1.4142135623731 * SLACK)


def _pairs(sums: _Rows, differences: _Rows) -> _Rows:
    matrix = np.stack((sums.matrix - differences.matrix, sums.matrix + differences.matrix), 1)
    matrix = matrix.reshape(-1, matrix.shape[2]) / 2
    error = ((sums.error + differences.error) / 2).repeat(2)
    error = (error + UNIT * _lengths(matrix)) * SLACK + ROW_UNDERFLOW
    each = ((sums.each + differences.each) / 2).repeat(2) * SLACK
    return _Rows(matrix, error, each, (sums.size + differences.size) * SLACK)


def _bound(logits: _Rows, matrix: Floats, error: Floats, norm: float, count: int) -> Floats | None:
    size = matrix.shape[1]
    bits = digit_bits(max(matrix.shape))
    places = bits * count - 2
    try:
        form = np.eye(size) - matrix.T @ matrix
        factor = np.rint(np.linalg.cholesky(form).T * 2.0**places)
        whole = np.rint(matrix * 2.0**places)
        digits = split_floats(whole[None], bits, count)
        guess = split_floats(factor[None], bits, count)
    except (np.linalg.LinAlgError, ValueError):
        return None
    cut = float(np.linalg.norm(matrix - whole * 2.0**-places))
    phi = (cut + float(np.linalg.norm(error))) * SLACK
    rest = residual_norm(4**places, digits, guess, bits) * 4.0**-places
    eta = (rest + 2 * phi * math.sqrt(1 + rest) + phi**2) * SLACK
    grown = math.sqrt(1 + eta * norm**2) * SLACK
    factor = factor * 2.0**-places
    try:
        image = np.linalg.solve(factor.T, logits.matrix.T).T
    except np.linalg.LinAlgError:
        return None
    left = logits.matrix - image @ factor
    gamma = FLOAT64.gamma(size + 2)
    rounding = gamma * (logits.length + _lengths(image) * float(np.linalg.norm(factor)))
    each = (_lengths(left) + rounding + logits.error) * SLACK
    # Allowance for the differences of rows, whose entries are rounded once.
    apart = np.stack([_lengths(image - row) for row in image])
    apart += UNIT * SLACK * (_lengths(image)[:, None] + _lengths(image))
    found = (apart * grown + (each[:, None] + each) * norm) * SLACK
    np.fill_diagonal(found, 0.0)
    return found if np.isfinite(found).all() else None
