"""GroupSort, the norm-preserving activation of Lipschitz networks; MaxMin is its smallest case."""

from torch import Tensor, nn

from robustcert.activations.features import sort_pairs
from robustcert.plain import Activation, Slopes


def group_sort(x: Tensor, group_size: int) -> Tensor:
    """Every group of ``group_size`` neighbouring features in increasing order."""
    if group_size == 2:
        return sort_pairs(x)
    return x.unflatten(1, (-1, group_size)).sort(dim=2).values.flatten(1, 2)


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
        constants: dict[str, Tensor | int] = {"group_size": self.group_size}
        slopes = Slopes(-1.0, 1.0, pairs=True) if self.group_size == 2 else None
        return Activation(function=group_sort, constants=constants, lipschitz=1.0, slopes=slopes)
