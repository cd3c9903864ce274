r"""Norms of sums that subtract from every entry a multiple of a weighted sum of its group.

On a group x goes to :math:`a x + c (r \cdot x) \mathbf 1`. Let e be the unit vector along r, and
:math:`\mathbf 1 = \alpha e + \beta f` with a unit vector f that is orthogonal to e. What is
orthogonal to both is multiplied by a, and in the basis e, f the map is

.. math:: \begin{pmatrix} a + c |r| \alpha & 0 \\ c |r| \beta & a \end{pmatrix}.

A matrix of two rows has norm t at most if :math:`t^2` is not below half of the sum F of the squares
of its entries, and :math:`t^4 - F t^2 + d^2 \ge 0` with its determinant d: the squares of its
singular values have the sum F and the product d^2. Here :math:`|r| \alpha = \sum r_i` and
:math:`|r|^2 \beta^2 = n |r|^2 - (\sum r_i)^2`; all of it is rational. The second column
is as long as :math:`|a|`, so that t is no less.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustcert.check.network.operation import Operation
from robustcert.check.reader import Array

# Kinds that only move entries.
MOVING = ("flatten", "reshape", "gather")


class Group(NamedTuple):
    """What a sum is on a group of entries: ``x -> a x + c (r.x) 1``, r having n entries."""

    a: Fraction
    c: Fraction
    size: int
    total: Fraction
    squares: Fraction

    def obeys(self, norm: Fraction) -> bool:
        """Whether the map has this norm at most."""
        diagonal = self.a + self.c * self.total
        below = self.c**2 * (self.size * self.squares - self.total**2)
        entries, determinant = diagonal**2 + below + self.a**2, self.a * diagonal
        square = norm**2
        return 2 * square >= entries and square * (square - entries) + determinant**2 >= 0


def centred_norm(operation: Operation) -> float:
    """The least float that is no less than the norm of a sum of this kind; infinite of others."""
    groups = _groups(operation)
    if not groups:
        return math.inf
    return max(map(_least, groups))


def _least(group: Group) -> float:
    trace = float(group.a**2 + group.c**2 * group.size * group.squares)
    low, high = 0.0, 2 * math.sqrt(trace) + 2.0**-500
    if not math.isfinite(high) or not group.obeys(Fraction(high)):
        return math.inf
    # Non-negative floats are ordered as their bits are.
    least, most = (int(np.float64(value).view(np.int64)) for value in (low, high))
    while least < most:
        middle = (least + most) // 2
        if group.obeys(Fraction(float(np.int64(middle).view(np.float64)))):
            most = middle
        else:
            least = middle + 1
    return float(np.int64(most).view(np.float64))


def _groups(operation: Operation) -> list[Group]:
    if operation.kind != "sum" or len(operation.branches) != 2:
        return []
    first, second = operation.branches
    plain, summing = (first, second) if len(first) <= len(second) else (second, first)
    multiple = _multiple(plain)
    rows = [i for i, op in enumerate(summing) if op.kind == "dense"]
    if multiple is None or len(rows) != 1 or summing[-1].output_shape != operation.input_shape:
        return []
    dense = summing[rows[0]]
    weights = dense.wide("weight")
    if len(weights) != 1:
        return []
    size = math.prod(operation.input_shape)
    read = _moved(np.arange(size), summing[: rows[0]])
    if read is None or read[1] is not None:
        return []
    # Which group every entry is in: each has to be in exactly one.
    members = read[0].reshape(-1, weights.shape[1])
    owner = np.full(size, -1)
    if members.size != size or members.min() < 0:
        return []
    owner[members] = np.arange(len(members))[:, None]
    given = _moved(np.arange(len(members)), summing[rows[0] + 1 :])
    if owner.min() < 0 or given is None or (given[0].ravel() != owner).any():
        return []
    factors = np.ones(size) if given[1] is None else given[1].ravel()
    least, most = (f(factors[members], axis=1) for f in (np.min, np.max))
    if (least != most).any():
        return []
    r = [Fraction(float(w)) for w in weights[0]]
    total, squares = sum(r, Fraction(0)), sum((w * w for w in r), Fraction(0))
    return [Group(multiple, Fraction(float(c)), len(r), total, squares) for c in np.unique(least)]


def _multiple(branch: Sequence[Operation]) -> Fraction | None:
    if not branch:
        return Fraction(1)
    if len(branch) > 1 or branch[0].kind != "affine":
        return None
    scales = np.unique(branch[0].wide("scale"))
    return Fraction(float(scales[0])) if len(scales) == 1 else None


def _moved(
    places: NDArray[np.int64], branch: Sequence[Operation]
) -> tuple[NDArray[np.int64], Array | None] | None:
    # Where operations put numbered entries, and the factors that they get on the way; -1 is none.
    factors: Array | None = None
    for op in branch:
        if op.kind not in (*MOVING, "affine"):
            return None
        if op.kind == "affine":
            if factors is not None:
                return None
            along = op.wide("scale").reshape(-1, *(1,) * (len(op.input_shape) - 1))
            factors = np.broadcast_to(along, op.input_shape).ravel()
        elif op.kind == "gather":
            index = op.tensors["index"].ravel()
            places = np.where(index < 0, -1, places.ravel()[index])
            factors = None if factors is None else factors[index]
    return places, factors
