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
from torch.nn import functional as F

from robustcert.data import as_numbers

# Multiplications that are worth a page: a minute or so on one core.
BUDGET = 4e12
# Number of columns of V, and of samples from whose principal directions they are taken.
DIRECTIONS = 160
MAX_SAMPLE = 512
# Maximum number of entries of a table of distances, which is allocated once: fresh memory costs
# the system more time than the arithmetic does.
MAX_ENTRIES = 2**23
# Maximum number of float64 inputs at a time, for the same reason: 2 MiB are kept by the allocator.
MAX_POINTS = 2**18
# Entries of a row of which only the best is looked at first.
PART = 64


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
    table = _Table(inputs, labels, others, other_labels)
    found = torch.empty(len(inputs), dtype=torch.float64)
    for rows, same in table.blocks():
        square = table.square(rows)
        square[:, same] = torch.inf
        parts = square.view(len(rows), -1, PART)
        least = parts.amin(dim=2)
        nearest = _nearest(parts, least)
        best = torch.where(least.amin(dim=1).isinf(), torch.inf, table.distance(rows, nearest))
        # Where none differs, none is nearer: infinity is not below infinity.
        i, j = _below(parts, least, (best.square() + table.slack).to(table.dtype))
        best.scatter_reduce_(0, i, table.distance(rows[i], j), "amin")
        found[rows] = best / 2
        advance(len(rows))
    return found.numpy()


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
    table, largest = _Table(inputs, prediction, inputs, prediction), 0.0
    reach = radius.to(table.dtype)
    far, room = reach[table.order], table.room()

    def together(i: Tensor, j: Tensor) -> float:
        # Zero over zero: two equal inputs that nothing is certified of.
        sums = radius[i] + radius[table.order[j]]
        ratio = (sums / table.distance(i, j)).nan_to_num(0.0, torch.inf)
        return float(ratio.max()) if len(ratio) else 0.0

    for rows, same in table.blocks():
        # Lower bounds of one over the squared quotient, but for rounding.
        lower = table.square(rows).sub_(table.slack).clamp_min_(torch.finfo(table.dtype).tiny)
        lower.div_(torch.add(reach[rows, None], far, out=room[: len(rows)]).square_())
        lower[:, same] = lower[:, table.padding] = torch.inf
        parts = lower.view(len(rows), -1, PART)
        least = parts.amin(dim=2)
        # The most promising pair of every input first, so that few others are left.
        apart = least.amin(dim=1).isfinite()
        largest = max(largest, together(rows[apart], _nearest(parts, least)[apart]))
        most = (1 + 16 * torch.finfo(table.dtype).eps) / largest**2 if largest else torch.inf
        i, j = _below(parts, least, lower.new_full((len(rows),), most))
        largest = max(largest, together(rows[i], j))
        advance(len(rows))
    return largest


def affordable(count: int, others: int, dimension: int) -> int:
    """How many samples can be searched for within the budget."""
    return min(count, max(1, int(BUDGET / (others * dimension))))


class _Table:
    """Distances between inputs and others: lower bounds of many, and exact ones of few.

    The others stand in the order of their classes, and are padded to a multiple of :data:`PART` by
    some that are infinitely far away.

    Attributes:
        order: Which of the others is where, shape ``(M,)``; padding has the number 0.
        padding: Where the padding is.
        slack: More than rounding adds to a squared lower bound.
    """

    def __init__(
        self, inputs: Tensor, classes: Tensor, others: Tensor, other_classes: Tensor
    ) -> None:
        self._inputs, self._others, self._classes = inputs, others, classes
        directions = _principal(others)
        # In few dimensions nothing is left out, and points may be close together.
        self.dtype = torch.float64 if directions is None else torch.float32
        self._near = _sketch(inputs, directions, self.dtype)
        far = self._near if inputs is others else _sketch(others, directions, self.dtype)
        self._sorted, order = other_classes.sort(stable=True)
        missing = -len(others) % PART
        self.padding = slice(len(others), len(others) + missing)
        self.order = F.pad(order, (0, missing))
        self._far = far[self.order]
        self._near_square, self._far_square = (v.square().sum(1) for v in (self._near, self._far))
        largest = float(self._near_square.max()) + float(self._far_square.max())
        self._far_square[self.padding] = torch.inf
        self.slack = 4 * far.shape[1] * torch.finfo(self.dtype).eps * largest
        self._room = self.room()

    def blocks(self) -> Iterator[tuple[Tensor, slice]]:
        """Inputs of one class whose table is of bounded size, and the others of that class."""
        for value in self._classes.unique():
            ends = [int(torch.searchsorted(self._sorted, value, right=r)) for r in (False, True)]
            for rows in (self._classes == value).nonzero()[:, 0].split(len(self._room)):
                yield rows, slice(*ends)

    def room(self) -> Tensor:
        """Memory for what is computed of one block, shape ``(R, M)``."""
        size = max(1, MAX_ENTRIES // len(self._far))
        return torch.empty(min(size, len(self._near)), len(self._far), dtype=self.dtype)

    def square(self, rows: Tensor) -> Tensor:
        """Squared lower bounds less than ``slack`` too large, shape ``(R, M)``.

        They are overwritten by those of the next rows.
        """
        out = self._room[: len(rows)]
        torch.addmm(self._far_square, self._near[rows], self._far.mT, alpha=-2, out=out)
        return out.add_(self._near_square[rows, None])

    def distance(self, i: Tensor, j: Tensor) -> Tensor:
        """Distances to others in this order, computed directly, shape ``(P,)``, float64."""
        size = _at_a_time(self._inputs)
        found = [
            (_points(self._inputs[a]) - _points(self._others[self.order[b]])).norm(dim=1)
            for a, b in zip(i.split(size), j.split(size), strict=True)
        ]
        return torch.cat(found)


def _nearest(parts: Tensor, least: Tensor) -> Tensor:
    """Column of the least entry of every row, shape ``(R,)``; ``least`` has that of every part."""
    part = least.argmin(dim=1)
    rows = torch.arange(len(parts), dtype=torch.int64, device=parts.device)
    return part * PART + parts[rows, part].argmin(dim=1)


def _below(parts: Tensor, least: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries below their row's bound: few parts have any."""
    i, part = (least < bound[:, None]).nonzero().unbind(1)
    k, column = (parts[i, part] < bound[i, None]).nonzero().unbind(1)
    return i[k], part[k] * PART + column


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


def _sketch(inputs: Tensor, directions: Tensor | None, dtype: torch.dtype) -> Tensor:
    count = inputs[0].numel() if directions is None else directions.shape[1] + 1
    found = torch.empty(len(inputs), count, dtype=dtype)
    size = _at_a_time(inputs)
    for block, sketch in zip(inputs.split(size), found.split(size), strict=True):
        points = _points(block)
        if directions is None:
            sketch.copy_(points)
            continue
        along = points @ directions
        rest = points.square().sum(1) - along.square().sum(1)
        sketch[:, :-1], sketch[:, -1] = along, rest.clamp_min(0).sqrt()
    return found


def _at_a_time(inputs: Tensor) -> int:
    return max(1, MAX_POINTS // max(1, inputs[0].numel()))


def _points(inputs: Tensor) -> Tensor:
    # Whatever their range: a dataset has checked it.
    numbers = as_numbers(inputs, "images" if inputs.dtype == torch.uint8 else "columns")
    return numbers.double().flatten(1)
