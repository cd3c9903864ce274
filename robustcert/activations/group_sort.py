"""GroupSort, the norm-preserving activation of Lipschitz networks; MaxMin is its smallest case."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robustcert.activations.features import PerSample, sort_pairs
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation, Slopes, integer_of
from robustcert.relaxations.curves import Curve, even_fixed, kink_at_zero

# Up to this size a network of comparators, each of which takes whole maps, is faster than `sort`.
MAX_NETWORK = 8


def group_sort(x: Tensor, group_size: int) -> Tensor:
    """Every group of ``group_size`` neighbouring features in increasing order."""
    if group_size == 2:
        return sort_pairs(x)
    if x.dim() > 2 and group_size <= MAX_NETWORK:
        return _SortGroups.apply(x, group_size)[0]
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
        return Activation(
            function=group_sort,
            constants=constants,
            lipschitz=1.0,
            slopes=slopes,
            relaxation=group_sort_relaxation,
        )


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


@cache
def comparators(size: int) -> tuple[tuple[int, int], ...]:
    """Pairs i < j which, put in order one after another, sort ``size`` numbers.

    Reference: Batcher, `Sorting networks and their applications
    <https://doi.org/10.1145/1468075.1468121>`_, AFIPS 1968: merge exchange.
    """
    found: list[tuple[int, int]] = []
    top = step = (1 << (size - 1).bit_length()) // 2
    while step:
        found += [(i, i + step) for i in range(size - step) if not i & step]
        reach = top
        while reach > step:
            far = reach - step
            found += [(i, i + far) for i in range(size - far) if i & step]
            reach //= 2
        step //= 2
    return tuple(found)


class _SortGroups(PerSample):
    # Beside the result, which comparators exchanged their inputs.

    @staticmethod
    def forward(x: Tensor, size: int) -> tuple[Tensor, ...]:
        lines = [line.clone(memory_format=torch.contiguous_format) for line in _lines(x, size)]
        swaps, spare = [], torch.empty_like(lines[0])
        for i, j in comparators(size):
            first, second = lines[i], lines[j]
            # A tie is not exchanged.
            swaps.append(torch.gt(first, second, out=torch.empty_like(spare)))
            torch.minimum(first, second, out=spare)
            torch.maximum(first, second, out=second)
            lines[i], spare = spare, first
        return torch.stack(lines, 2).reshape(x.shape), *swaps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, ...]) -> None:
        ctx.size = inputs[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        return _Exchanges.apply(grad, ctx.size, True, *ctx.saved_tensors), None


class _Exchanges(torch.autograd.Function):
    # The permutation that was found, or its inverse, which is its adjoint.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int, back: bool, *swaps: Tensor) -> Tensor:
        lines, steps = list(_lines(x, size)), list(zip(comparators(size), swaps, strict=True))
        for (i, j), swap in reversed(steps) if back else steps:
            first, second = lines[i], lines[j]
            lines[i], lines[j] = torch.lerp(first, second, swap), torch.lerp(second, first, swap)
        return torch.stack(lines, 2).reshape(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        ctx.size, ctx.back = inputs[1:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moved = _Exchanges.apply(grad, ctx.size, not ctx.back, *ctx.saved_tensors)
        return moved, *(None,) * (2 + len(ctx.saved_tensors))


def _lines(x: Tensor, size: int) -> tuple[Tensor, ...]:
    return x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:]).unbind(2)
