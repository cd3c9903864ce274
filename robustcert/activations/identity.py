"""No activation: the control that makes a network linear."""

from torch import Tensor, nn

from robustcert.network.activation import Activation, Slopes
from robustcert.relaxations.curves import Curve, all_free, kink_at_zero


def identity(x: Tensor) -> Tensor:
    """The input."""
    return x


class Identity(nn.Module):
    """Return the input, so that the network is linear.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.

    Example:
        >>> Identity(2)(torch.tensor([[-1.5, 2.0]]))
        tensor([[-1.5000,  2.0000]])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return identity(x)

    def lipschitz_bound(self) -> float:
        """1: distances are kept."""
        return 1.0

    def jacobian_lipschitz_bound(self) -> float:
        """0: the Jacobian is constant."""
        return 0.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        return Activation(
            function=identity,
            constants={},
            lipschitz=1.0,
            jacobian_lipschitz=0.0,
            slopes=Slopes(1.0, 1.0),
            relaxation=identity_relaxation,
        )


def identity_relaxation(_: Activation, features: int) -> Curve:
    """A curve that is fixed everywhere."""
    return kink_at_zero(~all_free(features), "abs")
