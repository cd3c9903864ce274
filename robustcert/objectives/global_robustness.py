"""Cross-entropy with a penalty on how far any two logits can move apart, anywhere."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.objectives.temperature import check_temperature


class GlobalRobustness(nn.Module):
    r"""Cross-entropy plus a share of the largest change of a difference of logits.

    .. math:: CE(f / T,\; y) + \frac{\lambda}{T} \max_{i, j} \epsilon K_{ij}

    :math:`\epsilon K_{ij}` bounds the change of logit i minus logit j over all pairs of inputs
    within l2 distance epsilon: what ``certifier=global_robustness`` proves of every network. As
    :math:`CE(f / T, y) = \log \sum_j \exp((f_j - f_y) / T)`, within that distance no exponent
    grows by more than :math:`\max \epsilon K_{ij} / T`, and so with :math:`\lambda = 1` the loss
    bounds the cross-entropy at every input within epsilon of the sample. The penalty is the same
    for all samples: it speaks of the whole space, as Wang et al. (`GROCET
    <https://arxiv.org/abs/2208.07289>`_) train with bounds of differences, here with the
    Lipschitz bound, which is differentiable for every layer.

    Args:
        weight: :math:`\lambda`; at 0 the loss is cross-entropy.
        temperature: T, divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> GlobalRobustness()(logits, torch.tensor([0]), K, 0.5)  # cross-entropy + 0.5
        tensor(0.6269)
    """

    def __init__(self, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"expected a weight of at least 0, got {weight}: set objective.weight")
        self.weight = weight
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        change = epsilon * torch.amax(pairwise_lipschitz)
        loss = F.cross_entropy(logits / self.temperature, target)
        return loss + self.weight * change / self.temperature
