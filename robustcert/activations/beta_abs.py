"""The absolute value of a share of the features."""

import torch
from torch import Tensor, nn

from robustcert.network.activation import Activation, integer_of
from robustcert.relaxations.curves import Curve, kink_at_zero


def beta_abs(x: Tensor, count: int) -> Tensor:
    """The absolute value of the first ``count`` features; the others as they are."""
    return torch.cat((x[:, :count].abs(), x[:, count:]), dim=1)


class BetaAbs(nn.Module):
    r"""Absolute value of the first :math:`\beta C` features, the identity on the others.

    With :math:`\beta = 1/2` it is MaxMin in rotated coordinates: of a pair :math:`(a, b)`, MaxMin
    keeps :math:`a + b` and takes the absolute value of :math:`a - b`. Between dense orthogonal
    layers the two are therefore as expressive as each other, and this one is cheaper.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        beta: Share of the features, between 0 and 1; rounded to a whole number of them.

    Example:
        >>> BetaAbs(4, beta=0.5)(torch.tensor([[-1.5, -2.5, -3.5, -4.5]]))
        tensor([[ 1.5000,  2.5000, -3.5000, -4.5000]])
    """

    def __init__(self, num_features: int, beta: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(
                f"BetaAbs(beta={beta}) must lie between 0 and 1: set model.activation.beta"
            )
        self.num_features = self.out_features = num_features
        self.count = round(beta * num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return beta_abs(x, self.count)

    def lipschitz_bound(self) -> float:
        """1: each entry goes through a function with slopes -1 and 1."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        return Activation(
            function=beta_abs,
            constants={"count": self.count},
            lipschitz=1.0,
            relaxation=beta_abs_relaxation,
        )


def beta_abs_relaxation(operation: Activation, features: int) -> Curve:
    """Lines around the graph of the first features; the others are fixed."""
    places = torch.arange(features, dtype=torch.int64, device="cpu")
    return kink_at_zero(places >= integer_of(operation, "count"), "abs")
