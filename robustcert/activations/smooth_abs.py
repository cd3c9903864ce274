"""The pseudo-Huber function, a smooth absolute value."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcert.activations.features import along_features
from robustcert.activations.positive import Positive, over_least
from robustcert.network.activation import Activation, Slopes, constant_of
from robustcert.network.jacobian import LocalJacobian, bump_chord, unit_slope
from robustcert.network.local_error import counted
from robustcert.network.operation import constant
from robustcert.relaxations.curves import Convex, Curve, all_free


def smooth_abs(x: Tensor, temperature: Tensor) -> Tensor:
    """``sqrt(x^2 + temperature^2) - temperature``, without overflow."""
    temperature = along_features(temperature, x)
    return torch.hypot(x, temperature) - temperature


class SmoothAbs(nn.Module):
    r"""Smooth absolute value, :math:`\sqrt{x^2 + \tau^2} - \tau`, within :math:`\tau` of it.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        temperature: Initial :math:`\tau`.
        learnable: Whether the temperature is trained, through its logarithm.
        per_feature: One temperature for each feature rather than one for the layer.

    Example:
        >>> SmoothAbs(2, temperature=0.75, learnable=False)(torch.tensor([[0.0, -1.0]]))
        tensor([[0.0000, 0.5000]])
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
        self.temperature = Positive("SmoothAbs", "temperature", temperature, learnable, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return smooth_abs(x, self.temperature())

    def lipschitz_bound(self) -> float:
        r"""1: the slope is :math:`x / \sqrt{x^2 + \tau^2}`."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`1/\tau`, the second derivative at 0."""
        return over_least(1.0, self.temperature())

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        temperature = constant(self.temperature())
        # hypot is within 8u of at most |x| + tau, and the difference rounds an output of at most
        # |x|.
        return Activation(
            function=smooth_abs,
            constants={"temperature": temperature},
            lipschitz=1.0,
            jacobian_lipschitz=over_least(1.0, temperature),
            error=counted(9.0, 8 * float(temperature.max())),
            slopes=Slopes(-1.0, 1.0),
            relaxation=smooth_abs_relaxation,
            jacobian=smooth_abs_jacobian,
        )


@dataclass(frozen=True, eq=False)
class _SmoothAbsCurve(Convex):
    """The graph of the function of one entry."""

    flattest = -1.0

    def value(self, v: Tensor) -> Tensor:
        return torch.hypot(v, self.temperature) - self.temperature

    def derivative(self, v: Tensor) -> Tensor:
        return v / torch.hypot(v, self.temperature)


def smooth_abs_relaxation(operation: Activation, features: int) -> Curve:
    """Lines around the graph."""
    temperature = constant_of(operation, "temperature").expand(features)
    return _SmoothAbsCurve(all_free(features), 2 * float(temperature.max()), temperature)


def smooth_abs_jacobian(operation: Activation, z: Tensor, centre: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    tau = along_features(constant_of(operation, "temperature", z), z)

    def derivative(t: Tensor) -> Tensor:
        return unit_slope(t, tau)

    slope = derivative(z)
    chord = bump_chord(z, centre, 1 / tau, derivative)
    return LocalJacobian(lambda u: slope * u, torch.abs, chord)
