"""Softplus, the smooth ReLU."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations.features import along_features
from robustcert.activations.positive import Positive, over_least
from robustcert.network.activation import Activation, Slopes, constant_of
from robustcert.network.jacobian import LocalJacobian, bump_chord
from robustcert.network.local_error import counted
from robustcert.network.operation import constant
from robustcert.relaxations.curves import Convex, Curve, all_free


def softplus(x: Tensor, temperature: Tensor) -> Tensor:
    """``temperature * log(1 + exp(x / temperature))``."""
    temperature = along_features(temperature, x)
    # The exponent is at most 0: it cannot overflow, and for large |x| the excess over ReLU is
    # exactly 0. At 0 it takes the branch that relu takes, so that all derivatives are right.
    # A product with the inverse, because the gradient of a quotient may overflow.
    excess = F.softplus(torch.where(x > 0, -x, x) * (1 / temperature))
    return x.relu() + temperature * excess


class Softplus(nn.Module):
    r"""Smooth ReLU, :math:`\tau \log(1 + e^{x/\tau})`, within :math:`\tau \log 2` of it.

    Its slopes are in (0, 1), as convex potential and sandwich layers ask for.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each feature rather than one for the layer.

    Example:
        >>> Softplus(2, temperature=0.5, learnable=False)(torch.tensor([[-1.0, 1.0]]))
        tensor([[0.0635, 1.0635]])
    """

    def __init__(
        self,
        num_features: int,
        temperature: float = 0.05,
        learnable: bool = True,
        per_feature: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features
        size = num_features if per_feature else None
        self.temperature = Positive("Softplus", "temperature", temperature, learnable, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return softplus(x, self.temperature())

    def lipschitz_bound(self) -> float:
        r"""1: the slope is the sigmoid of :math:`x / \tau`."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/(4 \tau)`, the second derivative at 0."""
        return over_least(0.25, self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature = constant(self.temperature())
        # The exponent z has relative error 2u, which moves the excess by at most 2u max z/(1+e^z) =
        # 0.56u; exp is within 8u, halved by the slope of log1p at most; log1p within 8u of at most
        # log 2; the product and the last sum add log 2 each: 11.5u tau, and u |x| for the last sum.
        return Activation(
            function=softplus,
            constants={"temperature": temperature},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(0.25, temperature),
            error=counted(1.0, 11.6 * float(temperature.max())),
            slopes=Slopes(0.0, 1.0),
            relaxation=softplus_relaxation,
            jacobian=softplus_jacobian,
        )


@dataclass(frozen=True, eq=False)
class _SoftplusCurve(Convex):
    """The graph of the function of one entry."""

    flattest = 0.0

    def value(self, v: Tensor) -> Tensor:
        excess = self.temperature * F.softplus(-v.abs() * (1 / self.temperature))
        return v.relu() + excess

    def derivative(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v / self.temperature)


def softplus_relaxation(operation: Activation, features: int) -> Curve:
    """Lines around the graph."""
    temperature = constant_of(operation, "temperature").expand(features)
    return _SoftplusCurve(all_free(features), 2 * float(temperature.max()), temperature)


def softplus_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    tau = along_features(constant_of(operation, "temperature", z), z)

    def derivative(t: Tensor) -> Tensor:
        return (t / tau).sigmoid()

    slope = derivative(z)
    chord = bump_chord(z, centre, 0.25 / tau, derivative)
    return LocalJacobian(lambda u: slope * u, torch.abs, chord)
