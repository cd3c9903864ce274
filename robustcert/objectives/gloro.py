"""GloRo: training with a logit for 'not certified' (Leino et al., arXiv 2102.08452)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.objectives.temperature import check_temperature


def bottom_logit(logits: Tensor, pairwise_lipschitz: Tensor, epsilon: float) -> Tensor:
    r"""The strongest rival after an attack of size epsilon on the predicted class j.

    :math:`f_\bot = \max_{i \ne j} f_i + \epsilon K_{ji}`; the prediction is certified at epsilon
    where :math:`f_j > f_\bot`.

    Args:
        logits: Shape ``(N, C)``.
        pairwise_lipschitz: Shape ``(C, C)``.
        epsilon: Radius, in input units.

    Returns:
        Shape ``(N, 1)``.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> bottom_logit(logits, K, 0.5)  # the rival's 0 and what it may gain
        tensor([[0.5000]])
    """
    predicted = logits.argmax(1)
    rivals = logits + epsilon * pairwise_lipschitz[predicted]
    return rivals.scatter(1, predicted[:, None], -torch.inf).amax(1, keepdim=True)


class GloRo(nn.Module):
    r"""Cross-entropy over the C logits and the bottom logit.

    At epsilon 0 the bottom logit is the runner-up, so the loss is cross-entropy with that class
    counted twice.

    Reference: Leino, Wang and Fredrikson, `Globally-Robust Neural Networks
    <https://arxiv.org/abs/2102.08452>`_, ICML 2021.

    Args:
        temperature: Divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> GloRo()(logits, torch.tensor([0]), K, 0.5)
        tensor(0.3064)
        >>> torch.tensor([2.0, 0.0, 0.5]).logsumexp(0) - 2.0
        tensor(0.3064)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        bottom = bottom_logit(logits, pairwise_lipschitz, epsilon)
        return F.cross_entropy(torch.cat([logits, bottom], 1) / self.temperature, target)


class TradesGloRo(nn.Module):
    r"""Cross-entropy plus the divergence that the bottom logit causes.

    .. math:: CE(f, y) + \lambda\, KL\big(\mathrm{softmax}(f) \Vert 0 \;\big\|\;
        \mathrm{softmax}(f \Vert f_\bot)\big)

    The divergence is :math:`\mathrm{softplus}(f_\bot - \mathrm{logsumexp}(f))`, because adding a
    logit scales all probabilities by the same factor.

    Reference: Leino et al., ICML 2021, section 3.2, after Zhang et al.'s TRADES.

    Args:
        trade_off: :math:`\lambda`.
        temperature: Divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> TradesGloRo(trade_off=0.0)(logits, torch.tensor([0]), K, 0.5)  # cross-entropy
        tensor(0.1269)
        >>> TradesGloRo(trade_off=1.5)(logits, torch.tensor([0]), K, 0.5)
        tensor(0.3961)
    """

    def __init__(self, trade_off: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        if not trade_off >= 0:
            raise ValueError(
                f"expected a trade-off of at least 0, got {trade_off}: set objective.trade_off"
            )
        self.trade_off = trade_off
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        bottom = bottom_logit(logits, pairwise_lipschitz, epsilon) / self.temperature
        scaled = logits / self.temperature
        divergence = F.softplus(bottom - scaled.logsumexp(1, keepdim=True)).mean()
        return F.cross_entropy(scaled, target) + self.trade_off * divergence
