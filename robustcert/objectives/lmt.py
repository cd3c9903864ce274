"""Lipschitz-margin training (Tsuzuku et al., arXiv 1802.04034)."""

from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.objectives.temperature import check_temperature


class LMT(nn.Module):
    r"""Cross-entropy after every rival is raised by what an attack of size epsilon could add.

    .. math:: CE\big((f + \epsilon K_{y \cdot}) / T,\; y\big)

    with the constants of the pairs (y, j) in place of :math:`\sqrt 2 L` for all of them. At
    epsilon 0 it is cross-entropy.

    Reference: Tsuzuku, Sato and Sugiyama, `Lipschitz-Margin Training: Scalable Certification of
    Perturbation Invariance for Deep Neural Networks <https://arxiv.org/abs/1802.04034>`_, NeurIPS
    2018.

    Args:
        temperature: T, divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> LMT()(logits, torch.tensor([0]), K, 0.0), LMT()(logits, torch.tensor([0]), K, 2.0)
        (tensor(0.1269), tensor(0.6931))
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        # The target's own constant is 0.
        raised = logits + epsilon * pairwise_lipschitz[target]
        return F.cross_entropy(raised / self.temperature, target)
