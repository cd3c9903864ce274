"""EMMA: efficient margin maximisation (Hu et al., arXiv 2301.12549)."""

from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.objectives.temperature import check_temperature


class EMMA(nn.Module):
    r"""Cross-entropy in which each rival is attacked just as far as a tie, never beyond epsilon.

    With :math:`s_i = f_i - f_y`, the rival's own radius is :math:`r_i = -s_i / K_{yi}` and

    .. math:: CE\big((s_i + \min(\max(r_i, \epsilon / 100), \epsilon)\, K_{yi}) / T,\; y\big)

    with the clipped radius held constant. All rivals push at once, not only the nearest one.

    Reference: Hu, Zou, Wang, Leino and Fredrikson, `Unlocking Deterministic Robustness
    Certification on ImageNet <https://arxiv.org/abs/2301.12549>`_, NeurIPS 2023.

    Args:
        temperature: T, divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> EMMA()(logits, torch.tensor([0]), K, 0.5)
        tensor(0.2014)
        >>> EMMA()(logits, torch.tensor([0]), K, 9.0)  # attacked as far as the tie, at radius 2
        tensor(0.6931)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``."""
        constants = pairwise_lipschitz[target]
        deficit = logits - logits.gather(1, target[:, None])
        # K r clipped to [eps K / 100, eps K] is r clipped to [eps / 100, eps] without a division by
        # the target's own constant, which is 0.
        attack = constants.detach() * epsilon
        reach = (-deficit.detach()).clamp(attack / 100, attack)
        share = reach / attack.clamp_min(1e-30)
        return F.cross_entropy((deficit + share * epsilon * constants) / self.temperature, target)
