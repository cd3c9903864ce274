"""Certificate regularisation (Singla, Singla and Feizi, arXiv 2108.04062)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.margins import certified_radius
from robustcert.objectives.temperature import check_temperature


class CertificateRegularization(nn.Module):
    r"""Cross-entropy less a reward for the certified radius.

    .. math:: CE(f / T,\; y) - \gamma\, \overline{\min\big(\max(r, 0),\; c\big)}, \qquad
        r = \min_{j \ne y} \frac{f_y - f_j}{K_{yj}}

    averaged over samples: right ones are pushed further than they need, wrong ones are left to the
    cross-entropy. The radius is whatever the sample has, so that epsilon is not used. Where every
    rival is a constant distance away, no reward can be earned.

    Reference: Singla, Singla and Feizi, `Improved deterministic l2 robustness on CIFAR-10 and
    CIFAR-100 <https://arxiv.org/abs/2108.04062>`_, ICLR 2022.

    Args:
        gamma: :math:`\gamma`, per unit of radius; at 0 the loss is cross-entropy.
        cap: Radius c, in input units, beyond which nothing more is earned; none in the paper.
        temperature: T, divides the logits of the cross-entropy.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> target = torch.tensor([0])
        >>> CertificateRegularization(gamma=0.0)(logits, target, K, 0.5)  # cross-entropy
        tensor(0.1269)
        >>> CertificateRegularization(gamma=0.5)(logits, target, K, 0.5)  # less 0.5 times 2
        tensor(-0.8731)
    """

    def __init__(
        self, gamma: float = 0.5, cap: float | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise ValueError(f"expected gamma to be at least 0, got {gamma}: set objective.gamma")
        if cap is not None and not cap > 0:
            raise ValueError(f"expected a cap above 0 or null, got {cap}: set objective.cap")
        self.gamma = gamma
        self.cap = cap
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C); the radius ``epsilon`` is not used."""
        radius = certified_radius(logits, target, pairwise_lipschitz)
        earned = torch.where(torch.isfinite(radius), radius, 0.0).clamp(0, self.cap)
        return F.cross_entropy(logits / self.temperature, target) - self.gamma * earned.mean()
