r"""Losses of real targets in their worst case within a radius.

Let K bound the Lipschitz constant of an output f. Within l2 distance :math:`\epsilon` of an input
the residual :math:`e = f - y` stays in :math:`[e - K \epsilon, e + K \epsilon]`, so a loss
:math:`\ell(e)` is at most its largest value there. All losses here are convex, and so this value is
at one of the two ends; for those that depend on :math:`|e|` alone it is
:math:`\ell(|e| + K \epsilon)`. With an estimate of K in training, the loss is an estimate as well.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RegressionObjective(nn.Module):
    """Mean over samples of the largest loss within the radius."""

    # Targets that it is for; an objective that does not say so is for classes.
    task: ClassVar[str] = "regression"

    @abstractmethod
    def loss(self, residual: Tensor) -> Tensor:
        """Convex loss of residuals ``f - y``, shape ``(N,)``."""

    def forward(self, outputs: Tensor, target: Tensor, lipschitz: Tensor, epsilon: float) -> Tensor:
        """Mean worst loss.

        Args:
            outputs: Shape ``(N, 1)``.
            target: Real targets, shape ``(N,)``.
            lipschitz: Constant of the output, a scalar, in units of the target per input unit.
            epsilon: Radius, in input units.
        """
        residual, moved = outputs[:, 0] - target, epsilon * lipschitz
        return torch.maximum(self.loss(residual - moved), self.loss(residual + moved)).mean()


class Squared(RegressionObjective):
    r"""Squared error, :math:`(|e| + K \epsilon)^2`.

    Example:
        >>> Squared()(torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor(2.0), 0.5)
        tensor(9.)
    """

    def loss(self, residual: Tensor) -> Tensor:
        """The squares."""
        return residual.square()


class Huber(RegressionObjective):
    r"""Huber's loss at :math:`|e| + K \epsilon`: quadratic up to ``delta``, linear beyond.

    Reference: Huber, `Robust estimation of a location parameter
    <https://doi.org/10.1214/aoms/1177703732>`_, 1964.

    Args:
        delta: Residual at which the loss becomes linear, in units of the target.

    Example:
        >>> Huber()(torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor(2.0), 0.5)
        tensor(2.5000)
    """

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"expected a delta above 0, got {delta}: set objective.delta")
        self.delta = delta

    def loss(self, residual: Tensor) -> Tensor:
        """Half the squares, or ``delta (|e| - delta / 2)``."""
        zero = torch.zeros_like(residual)
        return F.huber_loss(residual, zero, reduction="none", delta=self.delta)


class Quantile(RegressionObjective):
    r"""The pinball loss, whose minimum over constants is a quantile of the targets.

    :math:`\max(\tau (y - f), (1 - \tau)(f - y))`; its worst case within the radius is the larger
    of its values at :math:`e \pm K \epsilon`.

    Reference: Koenker and Bassett, `Regression quantiles <https://doi.org/10.2307/1913643>`_, 1978.

    Args:
        level: :math:`\tau`, the share of targets that should lie below the output.

    Example:
        >>> Quantile(0.9)(torch.tensor([[1.0]]), torch.tensor([3.0]), torch.tensor(2.0), 0.5)
        tensor(2.7000)
    """

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        if not 0 < level < 1:
            raise ValueError(f"expected a level between 0 and 1, got {level}: set objective.level")
        self.level = level

    def loss(self, residual: Tensor) -> Tensor:
        """The pinball loss."""
        return torch.maximum(-self.level * residual, (1 - self.level) * residual)
