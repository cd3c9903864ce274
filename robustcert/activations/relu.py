"""The rectified linear unit."""

from torch import Tensor, nn

from robustcert.network.activation import Activation, Slopes
from robustcert.relaxations.curves import relu_relaxation


def relu(x: Tensor) -> Tensor:
    """The positive part of every entry."""
    return x.relu()


class ReLU(nn.Module):
    r"""Positive part, :math:`\max(x, 0)`.

    It has slopes in [0, 1], as convex potential and sandwich layers ask for, but it blocks the
    gradient of every negative entry, so it wastes much of a Lipschitz budget.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.

    Example:
        >>> ReLU(3)(torch.tensor([[-1.5, 0.0, 2.0]]))
        tensor([[0., 0., 2.]])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return relu(x)

    def lipschitz_bound(self) -> float:
        """1: each entry goes through a function with slopes 0 and 1."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        return Activation(
            function=relu,
            constants={},
            lipschitz=1.0,
            slopes=Slopes(0.0, 1.0),
            relaxation=relu_relaxation,
        )
