"""What a certificate is worth, from labels, predictions and radii alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AtRadius:
    r"""One threshold :math:`\epsilon`; shares of all samples unless said otherwise.

    Attributes:
        radius: The threshold, in input units.
        verified: Correct and certified beyond it.
        low: Lower end of the 95 % Wilson interval of ``verified``.
        high: Its upper end.
        attacked: Accuracy under attack within it, of the attacked samples; None without attack.
        verified_of_attacked: ``verified``, of the attacked samples; None without attack.
        rejected: Not certified beyond it.
        false_rejection: Not certified beyond it, of those that are predicted correctly.
        accepted_accuracy: Predicted correctly, of those certified beyond it; None without any.
    """

    radius: float
    verified: float
    low: float
    high: float
    attacked: float | None
    verified_of_attacked: float | None
    rejected: float
    false_rejection: float | None
    accepted_accuracy: float | None

    @property
    def unknown(self) -> float | None:
        """What is neither proved nor broken, of the attacked samples."""
        if self.attacked is None or self.verified_of_attacked is None:
            return None
        return self.attacked - self.verified_of_attacked


@dataclass(frozen=True)
class OfClass:
    """Samples of one class.

    Attributes:
        label: The class.
        count: Its samples.
        accuracy: Share predicted correctly.
        verified: VRA at each radius.
        median: Median radius of the correct ones, in input units; None if there are none.
        confused: The class most often predicted instead, and how often.
    """

    label: int
    count: int
    accuracy: float
    verified: list[float]
    median: float | None
    confused: tuple[int, int] | None


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share: the sampling error of a split of ``count``."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def at_radius(
    correct: Bools,
    radius: Floats,
    epsilon: float,
    attacked: float | None,
    rows: NDArray[np.int64],
) -> AtRadius:
    """The measures at one threshold; see :class:`AtRadius`.

    Args:
        correct: Whether a prediction is right, shape ``(N,)``.
        radius: Certified radii, shape ``(N,)``.
        epsilon: The threshold.
        attacked: Accuracy under attack within it.
        rows: Which samples were attacked.
    """
    accepted = radius > epsilon
    verified = correct & accepted
    count = len(radius)
    return AtRadius(
        epsilon,
        float(verified.mean()),
        *wilson(int(verified.sum()), count),
        attacked,
        None if attacked is None else float(verified[rows].mean()),
        float(1 - accepted.mean()),
        float(1 - verified.sum() / correct.sum()) if correct.any() else None,
        float(correct[accepted].mean()) if accepted.any() else None,
    )


def average_radius(correct: Bools, radius: Floats) -> float:
    """Mean radius, where a wrong prediction counts 0 (ACR), in input units."""
    return float(np.where(correct, radius, 0.0).mean())


def curve(correct: Bools, radius: Floats) -> tuple[Floats, Floats]:
    """Every radius at which VRA falls, from 0 on, and VRA just beyond it."""
    reached = np.sort(radius[correct & np.isfinite(radius)])
    always = int((correct & np.isinf(radius)).sum())
    left = len(reached) - np.arange(len(reached) + 1) + always
    return np.concatenate([[0.0], reached]), left / len(radius)


def acceptance(correct: Bools, radius: Floats) -> tuple[Floats, Floats]:
    """Share of samples accepted and accuracy among them, as the demanded radius grows."""
    order = np.argsort(-radius, kind="stable")
    hits = np.cumsum(correct[order])
    count = np.arange(1, len(order) + 1)
    # Equal radii are accepted together.
    ends = np.flatnonzero(np.append(np.diff(radius[order]) != 0, True))
    return count[ends] / len(order), hits[ends] / count[ends]


def by_class(
    labels: NDArray[Any], prediction: NDArray[Any], radius: Floats, radii: Sequence[float]
) -> list[OfClass]:
    """The measures of every class that occurs."""
    found = []
    for label in np.unique(labels).tolist():
        mine = labels == label
        correct = mine & (prediction == label)
        wrong = prediction[mine & ~correct]
        values, counts = np.unique(wrong, return_counts=True)
        found.append(
            OfClass(
                label,
                int(mine.sum()),
                float(correct.sum() / mine.sum()),
                [float((correct & (radius > r)).sum() / mine.sum()) for r in radii],
                float(np.median(radius[correct])) if correct.any() else None,
                (int(values[counts.argmax()]), int(counts.max())) if len(wrong) else None,
            )
        )
    return found
