"""MaxMin with its maximum and minimum replaced by log-sum-exp."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations.features import (
    along_features,
    check_groups,
    join_pairs,
    ordered,
    split_pairs,
)
from robustcert.activations.positive import Positive, over_least
from robustcert.network.activation import Activation, Slopes, constant_of
from robustcert.network.jacobian import LocalJacobian, bump_chord
from robustcert.network.local_error import counted
from robustcert.network.operation import constant
from robustcert.relaxations.curves import Convex, Curve, even_fixed


def smooth_maxmin(x: Tensor, temperature: Tensor) -> Tensor:
    """Soft minimum and soft maximum of every pair of neighbouring features."""
    low, high = ordered(*split_pairs(x))
    temperature = along_features(temperature, low)
    # The exponent is at most 0: it cannot overflow, and far from a tie the excess is exactly 0.
    # A product with the inverse, because the gradient of a quotient may overflow.
    excess = temperature * F.softplus((low - high) * (1 / temperature))
    return join_pairs(low - excess, high + excess)


class SmoothMaxMin(nn.Module):
    r"""Soft minimum and soft maximum of every pair of neighbouring features.

    A pair :math:`(a, b)` goes to :math:`(a + b - m, m)` with
    :math:`m = \tau \log(e^{a/\tau} + e^{b/\tau})`, within :math:`\tau \log 2` of MaxMin in each
    entry. It is smooth, and where :math:`|a - b|` is large against :math:`\tau` it preserves
    gradient norms.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``; even.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each pair rather than one for the layer.

    Example:
        >>> SmoothMaxMin(2, temperature=0.5, learnable=False)(torch.tensor([[3.0, 1.0]]))
        tensor([[0.9909, 3.0091]])
    """

    def __init__(
        self,
        num_features: int,
        temperature: float = 0.05,
        learnable: bool = True,
        per_feature: bool = False,
    ) -> None:
        super().__init__()
        check_groups("SmoothMaxMin", num_features, 2)
        self.num_features = self.out_features = num_features
        size = num_features // 2 if per_feature else None
        self.temperature = Positive("SmoothMaxMin", "temperature", temperature, learnable, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return smooth_maxmin(x, self.temperature())

    def lipschitz_bound(self) -> float:
        r"""1: the Jacobian is a mean of the two permutations, with weights that depend on x."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/(\sqrt 2 \tau)`, attained at ties.

        The weights are p and 1 - p with :math:`p = \sigma((a - b)/\tau)`, of slope at most
        :math:`1/(4 \tau)` in :math:`a - b`, which changes by at most :math:`\sqrt 2` times the
        change of the input. The difference of the two permutations has norm 2.
        """
        return over_least(math.sqrt(0.5), self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature = constant(self.temperature())
        # The exponent z has relative error 3u, which moves softplus by at most 3u max z/(1+e^z) =
        # 0.84u; exp is within 8u, halved by the slope of log1p at most; log1p within 8u of at most
        # log 2; with the product 11.1u tau for the excess. The last sum rounds by u |output|, and
        # the output is within tau log 2 of a permutation of the input: 11.8u tau, and u |z|.
        return Activation(
            function=smooth_maxmin,
            constants={"temperature": temperature},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(math.sqrt(0.5), temperature),
            error=counted(1.0, 11.8 * float(temperature.max())),
            slopes=Slopes(-1.0, 1.0, pairs=True),
            relaxation=smooth_maxmin_relaxation,
            jacobian=smooth_maxmin_jacobian,
        )


@dataclass(frozen=True, eq=False)
class _LogCosh(Convex):
    r"""The graph of :math:`2 \tau \log(2 \cosh(d / 2 \tau))`."""

    flattest = -1.0

    def value(self, v: Tensor) -> Tensor:
        excess = self.temperature * F.softplus(-v.abs() * (1 / self.temperature))
        return v.abs() + 2 * excess

    def derivative(self, v: Tensor) -> Tensor:
        return torch.tanh(v / (2 * self.temperature))


def smooth_maxmin_relaxation(operation: Activation, features: int) -> Curve:
    """Pairs keep their sum; their difference d goes through a function of its own."""
    temperature = constant_of(operation, "temperature").expand(features // 2).repeat_interleave(2)
    scale = 4 * float(temperature.max())
    return _LogCosh(even_fixed(features), scale, temperature, pairs=True)


def smooth_maxmin_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    a, b = split_pairs(z)
    # The half sum is kept; t = (a - b) / sqrt(2) goes through a function of slope tanh(t / scale).
    scale = math.sqrt(2) * along_features(constant_of(operation, "temperature", z), a)

    def derivative(t: Tensor) -> Tensor:
        return (t / scale).tanh()

    t = (a - b) * math.sqrt(0.5)
    slope = derivative(t)

    def pull(u: Tensor) -> Tensor:
        low, high = split_pairs(u)
        kept, turned = (high + low) / 2, slope * ((high - low) / 2)
        return join_pairs(kept + turned, kept - turned)

    def share(u: Tensor) -> Tensor:
        low, high = split_pairs(u)
        return (high - low).abs() * (math.sqrt(0.5) * (1 + 1e-12))

    return LocalJacobian(pull, share, bump_chord(t, centre, (1 + 1e-12) / scale, derivative))
