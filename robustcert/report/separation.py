r"""How far apart the classes of the data are, which no classifier can change.

If x and x' have different labels and both are classified correctly, the two certified balls do not
meet: :math:`r(x) + r(x') \le \lVert x - x' \rVert_2`. Half the distance to the nearest sample of
another class is what a classifier with its boundary in the middle could certify at best there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.data import Kind, as_numbers

# Multiplications that are worth a page: a minute or so on one core.
BUDGET = 4e12
# Numbers of samples, and of entries of a table of distances, that are compared at once.
_ROWS = 1024
_ENTRIES = 2**23


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
    inputs: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor
) -> NDArray[np.float64]:
    """Half the distance from every input to the nearest of ``others`` with another label.

    The search is exhaustive, in float64; the distance to what it finds is computed directly, so
    that cancellation in the search cannot make it smaller.

    Args:
        inputs: Shape ``(N, *)``, uint8 or floating point in [0, 1].
        labels: Shape ``(N,)``.
        others: Shape ``(M, *)``, alike.
        other_labels: Shape ``(M,)``.

    Returns:
        Shape ``(N,)``; infinite where no label differs.
    """
    found = []
    for x, y in zip(inputs.split(_ROWS), labels.split(_ROWS), strict=True):
        points = _points(x)
        best = torch.full((len(x),), torch.inf, dtype=torch.float64)
        for block, block_labels in _blocks(others, other_labels):
            distance = _distances(points, block)
            distance = distance.masked_fill(y[:, None] == block_labels, torch.inf)
            least, nearest = distance.min(dim=1)
            direct = (points - block[nearest]).norm(dim=1)
            best = torch.minimum(best, torch.where(torch.isinf(least), torch.inf, direct))
        found.append(best / 2)
    return torch.cat(found).numpy()


def largest_overlap(inputs: Tensor, prediction: Tensor, radius: Tensor) -> float:
    r"""Largest :math:`(r_i + r_j) / \lVert x_i - x_j \rVert` over pairs predicted differently.

    At most 1 for true certificates: a point in both balls would have two predictions.

    Args:
        inputs: Shape ``(N, *)``, uint8 or floating point in [0, 1].
        prediction: Shape ``(N,)``.
        radius: Certified radii, shape ``(N,)``.
    """
    largest = 0.0
    rows = torch.arange(len(inputs))
    for x, i in zip(inputs.split(_ROWS), rows.split(_ROWS), strict=True):
        points = _points(x)
        for block, j in _blocks(inputs, rows):
            differ = prediction[i][:, None] != prediction[j]
            ratio = (radius[i][:, None] + radius[j]) / _distances(points, block)
            nearest = torch.where(differ, ratio, 0.0).nan_to_num(nan=0.0).argmax(dim=1)
            direct = (points - block[nearest]).norm(dim=1)
            together = (radius[i] + radius[j][nearest]) / direct
            apart = prediction[i] != prediction[j][nearest]
            largest = max(largest, float(torch.where(apart, together, 0.0).nan_to_num(0.0).max()))
    return largest


def affordable(count: int, others: int, dimension: int) -> int:
    """How many samples can be searched for within the budget."""
    return min(count, max(1, int(BUDGET / (others * dimension))))


def _points(inputs: Tensor) -> Tensor:
    # Whatever their range: a dataset has checked it.
    kind: Kind = "images" if inputs.dtype == torch.uint8 else "columns"
    return as_numbers(inputs, kind).double().flatten(1)


def _blocks(inputs: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # Of bounded size as float64, whatever the size of the data set.
    size = max(1, min(_ENTRIES // _ROWS, _ENTRIES // max(1, inputs[0].numel())))
    for block, numbers in zip(inputs.split(size), rows.split(size), strict=True):
        yield _points(block), numbers


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")
