"""Logit annealing (Lai et al., arXiv 2505.15174)."""

import math

from torch import Tensor, nn

from robustcert.objectives.cross_entropy import at_target
from robustcert.objectives.temperature import check_temperature


class LogitAnnealing(nn.Module):
    r"""Offset cross-entropy that stops pushing samples whose margin is large enough.

    .. math:: -T (1 - p_y)^\gamma \log p_y, \qquad
        p = \mathrm{softmax}\big((f - \xi \mathbf 1_y) / T\big)

    A Lipschitz network has a limited capacity for margins; the factor :math:`(1 - p_y)^\gamma`
    anneals the loss of samples that have one already. At :math:`\gamma = 0` and :math:`\xi = 0` it
    is cross-entropy.

    Reference: Lai et al., `Enhancing Certified Robustness via Block Reflector Orthogonal Layers and
    Logit Annealing Loss <https://arxiv.org/abs/2505.15174>`_, ICML 2025.

    Args:
        offset: Multiple of :math:`\epsilon K` taken from the target's logit, K the mean constant of
            its pairs: :math:`\xi = \mathrm{offset} \cdot \epsilon K`.
        anneal: :math:`\gamma`.
        temperature: T.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> pushed = LogitAnnealing(anneal=0.0)(logits, torch.tensor([0]), K, 0.25)
        >>> spared = LogitAnnealing(anneal=5.0)(logits, torch.tensor([0]), K, 0.25)
        >>> f"{pushed:.4f} {spared:.4f}"
        '0.0952 0.0000'
    """

    def __init__(self, offset: float = 2.0, anneal: float = 5.0, temperature: float = 0.75) -> None:
        super().__init__()
        for key, value in (("offset", offset), ("anneal", anneal)):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"expected {key} to be at least 0, got {value}: set objective.{key}"
                )
        self.offset = offset
        self.anneal = anneal
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        constant = pairwise_lipschitz[target].sum(1, keepdim=True) / (logits.shape[1] - 1)
        shift = self.offset * epsilon * constant * at_target(logits, target)
        logs = ((logits - shift) / self.temperature).log_softmax(1)
        log_p = logs.gather(1, target[:, None])[:, 0]
        # 1 - p from the rivals' probabilities: no cancellation, and a gradient at p = 1.
        rest = logs.scatter(1, target[:, None], -math.inf).logsumexp(1)
        return -self.temperature * ((self.anneal * rest).exp() * log_p).mean()
