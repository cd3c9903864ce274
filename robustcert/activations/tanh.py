"""The hyperbolic tangent."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcert.network.activation import Activation, Slopes
from robustcert.network.jacobian import LocalJacobian
from robustcert.network.local_error import counted
from robustcert.relaxations.curves import Curve, Sigmoidal, all_free

# |tanh''| = 2 t (1 - t^2) at t = |tanh| is largest at t = 1/sqrt(3): 4 / (3 sqrt(3)), rounded up.
CURVATURE = 0.7698003589195011


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of every entry."""
    return x.tanh()


class Tanh(nn.Module):
    """Hyperbolic tangent: smooth and bounded, with slope 1 at 0 only.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.

    Example:
        >>> Tanh(2)(torch.tensor([[-1.0, 1.0]]))
        tensor([[-0.7616,  0.7616]])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return tanh(x)

    def lipschitz_bound(self) -> float:
        """1: the slope is 1 - tanh(x)^2."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        r""":math:`4/(3 \sqrt 3)`, the largest second derivative."""
        return CURVATURE

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        # tanh is within 4 ulp, at most 8u of an output that is at most |x|.
        return Activation(
            function=tanh,
            constants={},
            lipschitz=1.0,
            jacobian_lipschitz=CURVATURE,
            error=counted(8.0),
            slopes=Slopes(0.0, 1.0),
            relaxation=tanh_relaxation,
            jacobian=tanh_jacobian,
        )


@dataclass(frozen=True, eq=False)
class _TanhCurve(Sigmoidal):
    """The graph of the function of one entry."""

    def value(self, v: Tensor) -> Tensor:
        return v.tanh()

    def derivative(self, v: Tensor) -> Tensor:
        return 1 - v.tanh().square()


def tanh_relaxation(_: Activation, features: int) -> Curve:
    """Lines around the graph."""
    return _TanhCurve(all_free(features), 1.0)


def tanh_jacobian(operation: Activation, z: Tensor, _: Tensor) -> LocalJacobian:
    """The Jacobian at computed values z, and how fast it changes around them."""
    slope = 1 - z.tanh().square()
    cap = torch.full_like(z, operation.jacobian_lipschitz)
    return LocalJacobian(lambda u: slope * u, torch.abs, lambda reach: cap)
