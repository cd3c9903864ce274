"""Metrics over per-sample certified radii; each holds sums of counts, so ranks simply add."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from robustcert.metrics.thresholds import check_radii


class VerifiedRobustAccuracy(Metric):
    r"""Share of samples that are classified correctly and certified beyond a radius.

    .. math:: \mathrm{VRA}(\epsilon) = \frac1N \#\{i : \hat y_i = y_i,\; r_i > \epsilon\}

    Args:
        radii: The thresholds epsilon, in input units; ``compute`` returns one share for each.

    Example:
        >>> metric = VerifiedRobustAccuracy(radii=[0.25, 0.75])
        >>> radius = torch.tensor([0.5, 1.0, 2.0, 0.0])
        >>> correct = torch.tensor([True, True, False, True])
        >>> metric(radius, correct)
        tensor([0.5000, 0.2500])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    certified: Tensor
    total: Tensor

    def __init__(self, radii: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_radii(radii)
        self.radii = tuple(radii)
        self.add_state("certified", torch.zeros(len(radii), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor, correct: Tensor) -> None:
        """Count samples of certified ``radius`` (N,) whose prediction is ``correct`` (N,)."""
        # Compared in float64: a rounded threshold might be lower. NaN compares false, so a broken
        # radius is never counted as certified.
        radius = radius.double()
        # Numbers, not a tensor of them, which a training step would wait to see copied.
        above = torch.stack([radius > threshold for threshold in self.radii], 1)
        certified = above & correct[:, None]
        self.certified += certified.sum(0)
        self.total += radius.numel()

    def compute(self) -> Tensor:
        """Shape ``(len(radii),)``; a scalar for one radius, as torchmetrics squeezes it."""
        return self.certified / self.total


class AverageCertifiedRadius(Metric):
    r"""Mean certified radius, where a wrong or uncertified sample counts 0.

    Reference: Zhai et al., `MACER <https://arxiv.org/abs/2001.02378>`_, ICLR 2020.

    Example:
        >>> metric = AverageCertifiedRadius()
        >>> radius = torch.tensor([0.5, 1.0, 2.0, 0.0])
        >>> correct = torch.tensor([True, True, False, True])
        >>> metric(radius, correct)
        tensor(0.3750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    radius_sum: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("radius_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor, correct: Tensor) -> None:
        """Add samples of certified ``radius`` (N,) whose prediction is ``correct`` (N,)."""
        counted = torch.where(correct & (radius > 0), radius.to(self.radius_sum.dtype), 0.0)
        self.radius_sum += counted.sum()
        self.total += radius.numel()

    def compute(self) -> Tensor:
        """A scalar, in input units."""
        return self.radius_sum / self.total


class RejectionRate(Metric):
    r"""Share of samples whose prediction, right or wrong, is not certified beyond a radius.

    Args:
        epsilon: The threshold, in input units.

    Example:
        >>> RejectionRate(epsilon=0.75)(torch.tensor([0.5, 1.0, 2.0, 0.0]))
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    rejected: Tensor
    total: Tensor

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = check_radii([epsilon])[0]
        self.add_state("rejected", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor) -> None:
        """Count samples of certified ``radius`` (N,)."""
        # Written with 'not', so that NaN is rejected.
        self.rejected += (~(radius.double() > self.epsilon)).sum()
        self.total += radius.numel()

    def compute(self) -> Tensor:
        """A scalar."""
        return self.rejected / self.total
