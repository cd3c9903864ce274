"""The absolute value."""

from torch import Tensor, nn

from robustcert.network.activation import Activation, Slopes
from robustcert.network.torch_activations import absolute
from robustcert.relaxations.curves import Curve, all_free, kink_at_zero


class Abs(nn.Module):
    r"""Absolute value, :math:`|x|`: the simplest activation that preserves gradient norms.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.

    Example:
        >>> Abs(3)(torch.tensor([[-1.5, 0.0, 2.0]]))
        tensor([[1.5000, 0.0000, 2.0000]])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = self.out_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return absolute(x)

    def lipschitz_bound(self) -> float:
        """1: each entry goes through a function with slopes -1 and 1."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        return Activation(
            function=absolute,
            constants={},
            lipschitz=1.0,
            slopes=Slopes(-1.0, 1.0),
            relaxation=absolute_relaxation,
        )


def absolute_relaxation(_: Activation, features: int) -> Curve:
    """Lines around the graph."""
    return kink_at_zero(all_free(features), "abs")
