r"""Whether a confidence of p is right in a share p of the cases.

Confidence is the largest softmax probability. Over equal bins, the expected calibration error is
:math:`\sum_b \frac{n_b}{N} \lvert \mathrm{accuracy}_b - \mathrm{confidence}_b \rvert`.

Reference: Guo et al., `On calibration of modern neural networks
<https://arxiv.org/abs/1706.04599>`_, ICML 2017.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Number of bins of confidence.
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Reliability of a softmax.

    Attributes:
        temperature: What the logits were divided by.
        error: Expected calibration error.
        confidence: Mean confidence in every bin that is not empty.
        accuracy: Accuracy there.
        count: Samples there.
    """

    temperature: float
    error: float
    confidence: list[float]
    accuracy: list[float]
    count: list[int]


def calibrate(logits: NDArray[Any], labels: NDArray[Any], temperature: float = 1.0) -> Calibration:
    """Reliability of ``softmax(logits / temperature)`` on samples with these labels."""
    import torch

    probability = torch.softmax(torch.from_numpy(logits) / temperature, dim=1)
    confidence, prediction = (values.numpy() for values in probability.max(dim=1))
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    filled = np.unique(place)
    means = [float(confidence[place == b].mean()) for b in filled]
    shares = [float((prediction == labels)[place == b].mean()) for b in filled]
    counts = [int((place == b).sum()) for b in filled]
    # Not by torchmetrics, whose import takes longer than all else of a page but its distances.
    gaps = zip(counts, shares, means, strict=True)
    error = sum(count * abs(share - mean) for count, share, mean in gaps) / len(labels)
    return Calibration(temperature, error, means, shares, counts)
