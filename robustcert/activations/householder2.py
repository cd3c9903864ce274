"""The Householder activation of order two: fold every pair of features along four rays."""

import math

import torch
from torch import Tensor, nn

from robustcert.activations.features import (
    along_features,
    check_groups,
    is_positive,
    reflect_pairs,
    split_pairs,
)
from robustcert.network.activation import Activation
from robustcert.network.local_error import counted
from robustcert.network.operation import constant

# Sectors are kept this wide, so that the rounding of stored rays cannot change their order.
NARROWEST = 0.01


# Note [A flat fold along four rays]
# Going round the origin, the map has to become another isometry at every ray, and to agree with the
# last one on the ray it becomes its composition with the reflection across it. After a full turn
# the reflections across rays at angles t1 < t2 < t3 < t4 must cancel, which they do if and only if
# t1 - t2 + t3 - t4 is a multiple of pi: opposite sectors add up to pi. Three rays are free, and the
# fourth has the direction -r1 conj(r2) r3 as a complex number. It is computed from the other three
# wherever it is needed, so that the real map is continuous, and therefore 1-Lipschitz, whatever
# numbers are stored; a point that rounding puts in the wrong sector is next to the ray between the
# two, where both isometries agree.
def householder2(x: Tensor, rays: Tensor) -> Tensor:
    """Fold every pair along four rays, the first three of which have shape ``(3, 2, C/2)``."""
    with torch.no_grad():
        before = [_right_of(split_pairs(x), ray) for ray in (*rays, _fourth(*rays))]
        # Every sector is narrower than a half-plane: left of its first ray, not of its second.
        second, third, fourth = ((before[(k + 1) % 4] - before[k]).relu_() for k in (1, 2, 3))
        where = torch.stack((third, second + third, fourth))
    normals = torch.stack((-rays[:, 1], rays[:, 0]), 1)
    return reflect_pairs(x, normals.flip(0), where)


def _fourth(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    return _times(_times(-first, torch.stack((second[0], -second[1]))), third)


def _times(z: Tensor, w: Tensor) -> Tensor:
    return torch.stack((z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]))


def _right_of(z: tuple[Tensor, Tensor], ray: Tensor) -> Tensor:
    u, v = (along_features(part, z[0]) for part in ray)
    return is_positive(torch.addcmul(v * z[0], u, z[1], value=-1))


class Householder2(nn.Module):
    r"""Fold the plane of every pair of neighbouring features along four learned rays.

    The pairs between the first two rays stay; going on, every sector is the mirror image of the one
    before. Opposite sectors add up to :math:`\pi`, which makes it continuous: three angles are
    learned for each pair. It preserves gradient norms.

    Reference: Singla, Singla and Feizi, `Improved deterministic l2 robustness on CIFAR-10 and
    CIFAR-100 <https://arxiv.org/abs/2108.04062>`_, ICLR 2022. As there, the angle of the first ray
    and of the first two sectors start uniform on :math:`[0, \pi/2]`.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``; even.

    Example:
        >>> activation, x = Householder2(2), torch.randn(100, 2)
        >>> torch.allclose(activation(x).norm(dim=1), x.norm(dim=1), atol=1e-5)
        True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        check_groups("Householder2", num_features, 2)
        self.num_features = self.out_features = num_features
        self.angle = nn.Parameter(torch.rand(num_features // 2) * math.pi / 2)
        # Logits of the widths of the first two sectors, as shares of pi.
        self.width = nn.Parameter((torch.rand(2, num_features // 2) / 2).clamp(NARROWEST).logit())

    def rays(self) -> Tensor:
        """The first three rays, shape ``(3, 2, C/2)``."""
        width = NARROWEST + (math.pi - 2 * NARROWEST) * self.width.sigmoid()
        angles = torch.cat((self.angle[None], width)).cumsum(0)
        return torch.stack((angles.cos(), angles.sin()), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return householder2(x, self.rays())

    def lipschitz_bound(self) -> float:
        """1: it is continuous and an isometry on every sector."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        # In units of u |z|: a reflection is within 13 (as in Householder), two of them within 26.
        # The fourth ray is a product of three within 5.7 of its length, so its test errs only
        # within 8 of the ray, where the two isometries differ by at most 16. Together 42. The
        # absolute term covers numbers that two reflections flush to 0.
        return Activation(
            function=householder2,
            constants={"rays": constant(self.rays())},
            lipschitz=1.0,
            error=counted(42.0, 1e-20),
        )
