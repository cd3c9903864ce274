"""The last layer: its rows give the pairwise constants."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.network.device import stays_on_device
from robustcert.network.linear import Dense
from robustcert.network.operation import constant


class Head(nn.Module):
    r"""Dense layer from features to logits, optionally with rows of unit norm.

    Logit i minus logit j has the constant :math:`\lVert w_i - w_j \rVert_2`. Normalised rows (last
    layer normalisation, LLN) bound it by 2 and keep the logits' scale from growing; they do not
    make the head 1-Lipschitz, nor the pairwise constant :math:`\sqrt 2`.

    Reference for LLN: Singla, Singla and Feizi, `Improved deterministic l2 robustness on CIFAR-10
    and CIFAR-100 <https://arxiv.org/abs/2108.04062>`_, ICLR 2022.

    Args:
        in_features: Size of the features, of shape ``(N, in_features)``.
        num_classes: Number of logits.
        normalize: Whether rows are divided by their norm.

    Example:
        >>> head = Head(4, 3)
        >>> f"{head.weight.norm(dim=1).mean():.4f}"
        '1.0000'
        >>> head(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, in_features: int, num_classes: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.raw = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.orthogonal_(self.raw)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @property
    def weight(self) -> Tensor:
        """The rows in use, shape ``(num_classes, in_features)``."""
        return F.normalize(self.raw, dim=1) if self.normalize else self.raw

    def forward(self, x: Tensor) -> Tensor:
        """Map features to logits."""
        return F.linear(x, self.weight, self.bias)

    def lipschitz_estimate(self) -> Tensor:
        """The spectral norm of the rows in use."""
        if len(self.raw) == 1 and stays_on_device(self.raw):
            # A row's own norm, for which no library asks whether a decomposition converged.
            return torch.linalg.vector_norm(self.weight)
        return torch.linalg.matrix_norm(self.weight, 2)

    def fold(self) -> Dense:
        """The layer with its rows as constants."""
        return Dense(constant(self.weight), constant(self.bias))
