"""The Householder activation: fold every pair of features along a learned mirror."""

import math

import torch
from torch import Tensor, nn

from robustcert.activations.features import check_groups, reflect_pairs
from robustcert.network.activation import Activation
from robustcert.network.local_error import counted
from robustcert.network.operation import constant

# MaxMin in increasing order folds the half-plane a > b, whose inward normal is (-1, 1).
MAXMIN_ANGLE = 0.75 * math.pi


def householder(x: Tensor, normal: Tensor) -> Tensor:
    """Pairs on the negative side of their mirror reflected; ``normal`` has shape ``(2, C/2)``."""
    return reflect_pairs(x, normal[None])


class Householder(nn.Module):
    r"""Reflect the pairs on one side of a learned mirror to the other side.

    With mirror normal v, a pair z with :math:`v^T z < 0` goes to :math:`z - 2 v v^T z / v^T v`;
    the others stay. MaxMin is the mirror :math:`a = b`, which is where training starts.

    Reference: Singla, Singla and Feizi, `Improved deterministic l2 robustness on CIFAR-10 and
    CIFAR-100 <https://arxiv.org/abs/2108.04062>`_, ICLR 2022.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``; even.

    Example:
        >>> activation = Householder(2)
        >>> activation(torch.tensor([[3.0, 1.0]])).detach().round(decimals=4)  # MaxMin at first
        tensor([[1., 3.]])
        >>> _ = torch.nn.init.zeros_(activation.angle)
        >>> activation(torch.tensor([[-3.5, 1.5]])).detach()  # a vertical mirror
        tensor([[3.5000, 1.5000]])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        check_groups("Householder", num_features, 2)
        self.num_features = self.out_features = num_features
        self.angle = nn.Parameter(torch.full((num_features // 2,), MAXMIN_ANGLE))

    def normal(self) -> Tensor:
        """Mirror normals, shape ``(2, C/2)``."""
        return torch.stack((self.angle.cos(), self.angle.sin()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return householder(x, self.normal())

    def lipschitz_bound(self) -> float:
        """1: it takes the absolute value along the normal and is the identity across it."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        # In units of u |z|, for a normal of length close to 1: 2 for the inner product, doubled;
        # 3 for the normal over a squared length that is within 2, times 2; 2 for the product of the
        # two and 1 for the difference: 13. On the wrong side the inner product is an error only.
        return Activation(
            function=householder,
            constants={"normal": constant(self.normal())},
            lipschitz=1.0,
            error=counted(13.0),
        )
