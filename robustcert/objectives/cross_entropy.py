"""Plain and offset cross-entropy."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.objectives.temperature import check_temperature


class CrossEntropy(nn.Module):
    r"""Cross-entropy of ``logits / temperature``: no certified training, the control.

    Args:
        temperature: Divides the logits.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> CrossEntropy()(logits, torch.tensor([0]), K, 0.5)
        tensor(0.1269)
        >>> CrossEntropy(temperature=0.5)(logits, torch.tensor([0]), K, 0.5)
        tensor(0.0181)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C); constants and radius are not used."""
        return F.cross_entropy(logits / self.temperature, target)


class OffsetCrossEntropy(nn.Module):
    r"""Cross-entropy after taking an offset from the target's logit.

    .. math:: T \cdot CE\big((f - \sqrt 2\, o\, \epsilon\, \mathbf 1_y) / T,\; y\big)

    A network that is 1-Lipschitz as a whole is certified at :math:`\epsilon` once its margin is
    above :math:`\sqrt 2 \epsilon`; the offset asks for ``o`` times that.

    Reference: Prach and Lampert, `Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
    Networks <https://arxiv.org/abs/2208.03160>`_, ECCV 2022.

    Args:
        offset: Multiple o of the certifying margin.
        temperature: T.

    Example:
        >>> logits, K = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> loss = OffsetCrossEntropy(offset=2.0, temperature=1.0)
        >>> loss(logits, torch.tensor([0]), K, 0.0), loss(logits, torch.tensor([0]), K, 0.5)
        (tensor(0.1269), tensor(0.4425))
    """

    def __init__(self, offset: float = 2.0, temperature: float = 0.25) -> None:
        super().__init__()
        if not offset >= 0:
            raise ValueError(
                f"expected an offset of at least 0, got {offset}: set objective.offset"
            )
        self.offset = offset
        self.temperature = check_temperature(temperature)

    def forward(
        self, logits: Tensor, target: Tensor, pairwise_lipschitz: Tensor, epsilon: float
    ) -> Tensor:
        """Mean loss of ``logits`` (N, C) at radius ``epsilon``; the constants are not used."""
        shift = math.sqrt(2) * self.offset * epsilon
        shifted = logits - shift * at_target(logits, target)
        return self.temperature * F.cross_entropy(shifted / self.temperature, target)


def at_target(logits: Tensor, target: Tensor) -> Tensor:
    """1 at the target class and 0 elsewhere, shape ``(N, C)``, float32.

    ``F.one_hot`` reads its classes on the host to check them.

    Args:
        logits: Shape ``(N, C)``.
        target: Shape ``(N,)``.
    """
    return torch.zeros_like(logits, dtype=torch.float32).scatter(1, target[:, None], 1.0)
