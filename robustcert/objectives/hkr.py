"""Hinge-Kantorovich-Rubinstein loss (Serrurier et al., arXiv 2006.06520)."""

from torch import Tensor, nn

from robustcert.margins import margins
from robustcert.objectives.temperature import check_temperature


class HKR(nn.Module):
    r"""Mean margin, as in optimal transport, and a hinge for every rival.

    With margins :math:`m_j = f_y - f_j`,

    .. math:: \frac{1}{T} \Big( -\overline{m_j}
        + \alpha\, \overline{\max(0,\; o\, \epsilon K_{yj} - m_j)} \Big)

    averaged over samples and rivals j. The first term has no minimum unless the Lipschitz constant
    is bounded: it needs constrained layers and a head with normalised rows.

    Reference: Serrurier et al., `Achieving robustness in classification using optimal transport
    with hinge regularization <https://arxiv.org/abs/2006.06520>`_, CVPR 2021.

    Args:
        alpha: Weight of the hinge.
        offset: Multiple o of the certifying margin at which the hinge opens.
        temperature: T, divides the loss.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> HKR(alpha=10.0, offset=2.0)(logits, torch.tensor([0]), K, 0.5)  # minus the margin
        tensor(-2.)
        >>> HKR(alpha=10.0, offset=2.0)(logits, torch.tensor([0]), K, 1.25)  # 0.5 are missing
        tensor(3.)
    """

    def __init__(self, alpha: float = 10.0, offset: float = 2.0, temperature: float = 1.0) -> None:
        super().__init__()
        for key, value in (("alpha", alpha), ("offset", offset)):
            if not value >= 0:
                raise ValueError(
                    f"expected {key} to be at least 0, got {value}: set objective.{key}"
                )
        self.alpha = alpha
        self.offset = offset
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        own = target[:, None]
        margin = margins(logits, target)
        wanted = self.offset * epsilon * pairwise_lipschitz[target]
        hinge = (wanted - margin).clamp_min(0).scatter(1, own, 0.0)
        loss = (self.alpha * hinge - margin).sum(1) / (logits.shape[1] - 1)
        return loss.mean() / self.temperature
