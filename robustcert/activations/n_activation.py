"""The N-activation: a zigzag of three pieces with learned corners."""

import math

import torch
from torch import Tensor, nn

from robustcert.activations.features import along_features, ordered
from robustcert.network.activation import Activation, Slopes, constant_of
from robustcert.network.local_error import counted
from robustcert.network.operation import constant
from robustcert.relaxations.curves import UNDERFLOW, Curve, Folded, all_free


def n_activation(x: Tensor, corners: Tensor) -> Tensor:
    """Slope 1, then -1 between the two corners, then 1; ``corners`` has shape ``(2, C)``."""
    low, high = (along_features(corner, x) for corner in corners)
    return x - 2 * torch.clamp(x, low, high)


class Corners(nn.Module):
    """Learned corners of a zigzag: two for every feature, in increasing order.

    Args:
        owner: Name of the activation, for messages.
        num_features: Number of features.
        lr_factor: Learning rate of the corners under SGD, relative to that of other parameters.
    """

    def __init__(self, owner: str, num_features: int, lr_factor: float) -> None:
        super().__init__()
        if not 0 < lr_factor < math.inf:
            raise ValueError(
                f"{owner}(lr_factor={lr_factor}) must be positive: set model.activation.lr_factor"
            )
        # A gradient step on the stored parameter moves the corner by the square of this.
        self.scale = math.sqrt(lr_factor)
        corners = torch.zeros(2, num_features)
        corners[0, ::2] = -100.0
        self.theta = nn.Parameter(corners / self.scale)

    def forward(self) -> Tensor:
        """The corners, shape ``(2, C)``."""
        return self.scale * torch.stack(ordered(*self.theta))


class NActivation(nn.Module):
    r"""A zigzag of slopes 1, -1, 1 with learned corners :math:`t_1 \le t_2` for every feature.

    .. math:: N(x) = x - 2 \min(\max(x, t_1), t_2)

    Networks with it represent every piecewise linear 1-Lipschitz function of one variable, which
    activations of two pieces, ReLU, Abs and MaxMin among them, do not. Training starts from corners
    (-100, 0), an absolute value in practice, and (0, 0), the identity, in turn.

    Reference: Prach and Lampert, `1-Lipschitz neural networks are more expressive with
    N-activations <https://arxiv.org/abs/2311.06103>`_, 2023.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        lr_factor: Learning rate of the corners under SGD, relative to that of other parameters.

    Example:
        >>> activation = NActivation(2)
        >>> activation(torch.tensor([[-1.5, -1.5]])).detach()  # an absolute value and the identity
        tensor([[ 1.5000, -1.5000]])
    """

    def __init__(self, num_features: int, lr_factor: float = 0.01) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features
        self.corners = Corners("NActivation", num_features, lr_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return n_activation(x, self.corners())

    def lipschitz_bound(self) -> float:
        """1: each entry goes through a continuous function with slopes -1 and 1."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        corners = constant(self.corners())
        # One rounding, relative to an output of at most |x| + |N(0)|.
        at_zero = n_activation(torch.zeros_like(corners[:1]), corners).abs().max()
        return Activation(
            function=n_activation,
            constants={"corners": corners},
            lipschitz=1.0,
            error=counted(1.0, float(at_zero)),
            slopes=Slopes(-1.0, 1.0),
            relaxation=n_activation_relaxation,
        )


def n_activation_relaxation(operation: Activation, features: int) -> Curve:
    """Lines around the zigzag."""
    knots = constant_of(operation, "corners").expand(2, features)
    return Folded(all_free(features), 4 * float(knots.abs().max()) + UNDERFLOW, knots, "zigzag")
