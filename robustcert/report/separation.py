r"""How far apart the classes of the data are, which no classifier can change.

If x and x' have different labels and both are classified correctly, the two certified balls do not
meet: :math:`r(x) + r(x') \le \lVert x - x' \rVert_2`. Half the distance to the nearest sample of
another class is what a classifier with its boundary in the middle could certify at best there.

Searches are exhaustive, yet few distances are computed. The map :math:`s(x) = (V^T x, \lVert x - V
V^T x \rVert)`, with orthonormal columns V, moves no two points apart (Pythagoras, and the triangle
inequality for the last entry). So distances of sketches in 161 numbers are lower bounds, and only
pairs whose lower bound does not rule them out are measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.data import as_numbers

# Multiplications that are worth a page: a minute or so on one core.
BUDGET = 4e12
# Number of columns of V, and of samples from whose principal directions they are taken.
DIRECTIONS = 160
MAX_SAMPLE = 1024
# Maximum number of entries of a table of distances, and of the inputs of measured pairs.
MAX_ENTRIES = 2**23


@dataclass(frozen=True)
class Separation:
    """Nearest samples of another class.

    Attributes:
        half: Half the l2 distance to it, in input units, for the first samples.
        reference: What was searched, in words.
    """

    half: NDArray[np.float64]
    reference: str


def half_distances(
    inputs: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    advance: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Half the distance from every input to the nearest of ``others`` with another label.

    Args:
        inputs: Shape ``(N, *)``, uint8 or floating point in [0, 1].
        labels: Shape ``(N,)``.
        others: Shape ``(M, *)``, alike.
        other_labels: Shape ``(M,)``.
        advance: Called with the number of inputs that are done.

    Returns:
        Shape ``(N,)``, float64; infinite where no label differs.
    """
    table, found = _Table(inputs, others), []
    for rows in table.blocks():
        square = table.square(rows)
        square.masked_fill_(labels[rows, None] == other_labels, torch.inf)
        least, nearest = square.min(dim=1)
        best = torch.where(torch.isinf(least), torch.inf, table.distance(rows, nearest))
        # Where none differs, none is nearer: infinity is not below infinity.
        i, j = (square < table.reach(best)[:, None]).nonzero().unbind(1)
        best.scatter_reduce_(0, i, table.distance(rows[i], j), "amin")
        found.append(best / 2)
        advance(len(rows))
    return torch.cat(found).numpy()


def largest_overlap(
    inputs: Tensor,
    prediction: Tensor,
    radius: Tensor,
    advance: Callable[[int], None] = lambda count: None,
) -> float:
    r"""Largest :math:`(r_i + r_j) / \lVert x_i - x_j \rVert` over pairs predicted differently.

    At most 1 for true certificates: a point in both balls would have two predictions.

    Args:
        inputs: Shape ``(N, *)``, uint8 or floating point in [0, 1].
        prediction: Shape ``(N,)``.
        radius: Certified radii, shape ``(N,)``.
        advance: Called with the number of inputs that are done.
    """
    table, largest = _Table(inputs, inputs), 0.0

    def together(i: Tensor, j: Tensor) -> float:
        # Zero over zero: two equal inputs that nothing is certified of.
        ratio = ((radius[i] + radius[j]) / table.distance(i, j)).nan_to_num(0.0, torch.inf)
        return float(ratio.max()) if len(ratio) else 0.0

    for rows in table.blocks():
        reached = (radius[rows, None] + radius).square_()
        reached.masked_fill_(prediction[rows, None] == prediction, 0.0)
        lower = (table.square(rows).double() - table.slack).clamp_min_(0.0)
        # The most promising pair of every input first, so that few others are left.
        nearest = (reached / lower).nan_to_num_(0.0, torch.inf).argmax(dim=1)
        apart = prediction[rows] != prediction[nearest]
        largest = max(largest, together(rows[apart], nearest[apart]))
        i, j = (reached > lower.mul_(largest**2)).nonzero().unbind(1)
        largest = max(largest, together(rows[i], j))
        advance(len(rows))
    return largest


def affordable(count: int, others: int, dimension: int) -> int:
    """How many samples can be searched for within the budget."""
    return min(count, max(1, int(BUDGET / (others * dimension))))


class _Table:
    """Distances between inputs and others: lower bounds of many, and exact ones of few.

    Attributes:
        slack: More than rounding adds to a squared lower bound.
    """

    def __init__(self, inputs: Tensor, others: Tensor) -> None:
        self._inputs, self._others = inputs, others
        directions = _principal(others)
        # In few dimensions nothing is left out, and points may be close together.
        dtype = torch.float64 if directions is None else torch.float32
        self._near = _sketch(inputs, directions).to(dtype)
        self._far = self._near if inputs is others else _sketch(others, directions).to(dtype)
        self._near_square, self._far_square = (t.square().sum(1) for t in (self._near, self._far))
        largest = float(self._near_square.max()) + float(self._far_square.max())
        self.slack = 4 * self._near.shape[1] * torch.finfo(dtype).eps * largest

    def blocks(self) -> Iterator[Tensor]:
        """Rows of inputs whose table of distances is of bounded size."""
        yield from torch.arange(len(self._inputs)).split(max(1, MAX_ENTRIES // len(self._far)))

    def square(self, rows: Tensor) -> Tensor:
        """Squared lower bounds less than ``slack`` too large, shape ``(R, M)``."""
        square = torch.addmm(self._far_square, self._near[rows], self._far.mT, alpha=-2)
        return square.add_(self._near_square[rows, None])

    def reach(self, distance: Tensor) -> Tensor:
        """Squared lower bound from which on no pair is nearer than a distance."""
        return distance.square() + self.slack

    def distance(self, i: Tensor, j: Tensor) -> Tensor:
        """Distances of pairs, computed directly, shape ``(P,)``, float64."""
        size = max(1, MAX_ENTRIES // max(1, self._inputs[0].numel()))
        found = [
            (_points(self._inputs[a]) - _points(self._others[b])).norm(dim=1)
            for a, b in zip(i.split(size), j.split(size), strict=True)
        ]
        return torch.cat(found)


def _principal(inputs: Tensor) -> Tensor | None:
    """Orthonormal principal directions, shape ``(d, 160)``; None if there are no more."""
    step = -(-len(inputs) // MAX_SAMPLE)
    sample = _points(inputs[::step])
    if min(sample.shape) <= DIRECTIONS:
        return None
    centred = sample - sample.mean(0)
    # Of whichever matrix is smaller; QR, as small singular values cost orthogonality.
    _, vectors = torch.linalg.eigh(centred @ centred.mT)
    return torch.linalg.qr(centred.mT @ vectors[:, -DIRECTIONS:]).Q


def _sketch(inputs: Tensor, directions: Tensor | None) -> Tensor:
    size = max(1, MAX_ENTRIES // max(1, inputs[0].numel()))
    blocks = (_points(block) for block in inputs.split(size))
    if directions is None:
        return torch.cat([*blocks])
    found = []
    for points in blocks:
        along = points @ directions
        rest = points.square().sum(1) - along.square().sum(1)
        found.append(torch.cat([along, rest.clamp_min(0).sqrt()[:, None]], 1))
    return torch.cat(found)


def _points(inputs: Tensor) -> Tensor:
    # Whatever their range: a dataset has checked it.
    numbers = as_numbers(inputs, "images" if inputs.dtype == torch.uint8 else "columns")
    return numbers.double().flatten(1)
