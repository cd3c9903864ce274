"""GroupSort, the norm-preserving activation of Lipschitz networks; MaxMin is its smallest case."""

from dataclasses import replace

from torch import Tensor, nn

from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation, integer_of
from robustcert.network.sorting import group_sort, sort_activation
from robustcert.relaxations.curves import Curve, even_fixed, kink_at_zero


class GroupSort(nn.Module):
    r"""Sort every group of ``group_size`` neighbouring features in increasing order.

    The output is a permutation of the input, so gradient norms are preserved. ``group_size=2`` is
    MaxMin.

    Reference: Anil, Lucas and Grosse, `Sorting out Lipschitz function approximation
    <https://arxiv.org/abs/1811.05381>`_, ICML 2019.

    Args:
        num_features: Size of dimension 1 of the input, which has shape ``(N, C, *)``.
        group_size: Features sorted together; must divide ``num_features``.

    Example:
        >>> GroupSort(4)(torch.tensor([[3.0, 1.0, -2.0, 5.0]]))
        tensor([[ 1.,  3., -2.,  5.]])
    """

    def __init__(self, num_features: int, group_size: int = 2) -> None:
        super().__init__()
        if group_size < 1 or num_features % group_size:
            raise ValueError(
                f"GroupSort(group_size={group_size}) cannot split {num_features} features evenly: "
                f"set model.width to a multiple of {group_size} or model.activation.group_size "
                f"to a divisor of {num_features}"
            )
        self.num_features = self.out_features = num_features
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, *)`` to ``(N, C, *)``."""
        return group_sort(x, self.group_size)

    def lipschitz_bound(self) -> float:
        """1: by the rearrangement inequality sorting moves no two vectors apart."""
        return 1.0

    def fold(self) -> Activation:
        """The activation as a pure function with constants."""
        return replace(sort_activation(self.group_size), relaxation=group_sort_relaxation)


def group_sort_relaxation(operation: Activation, features: int) -> Curve:
    """Pairs keep their sum; their difference goes to its absolute value."""
    size = integer_of(operation, "group_size")
    if size != 2:
        raise UnsoundNetworkError(
            f"linear bounds do not cover the activation group_sort on groups of {size}, only on "
            "pairs: set model.activation.group_size=2, or use certifier=lipschitz",
            operation.label,
        )
    return kink_at_zero(even_fixed(features), "abs", pairs=True)
