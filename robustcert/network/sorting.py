"""Sorting of neighbouring features: a function, and the operation that it is."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustcert.network.activation import Activation, Slopes

# Up to this size a network of comparators, each of which takes whole maps, is faster than `sort`.
MAX_NETWORK = 8


def group_sort(x: Tensor, group_size: int) -> Tensor:
    """Every group of ``group_size`` neighbouring features in increasing order."""
    if group_size == 2:
        return sort_pairs(x)
    if x.dim() > 2 and group_size <= MAX_NETWORK and not torch.compiler.is_compiling():
        return _SortGroups.apply(x, group_size)[0]
    return x.unflatten(1, (-1, group_size)).sort(dim=2).values.flatten(1, 2)


def sort_activation(size: int) -> Activation:
    """Every group of ``size`` neighbouring features in increasing order, 1-Lipschitz.

    By the rearrangement inequality sorting moves no two vectors apart. A pair keeps its sum, and
    its difference goes to its absolute value.
    """
    slopes = Slopes(-1.0, 1.0, pairs=True) if size == 2 else None
    return Activation(group_sort, {"group_size": size}, lipschitz=1.0, slopes=slopes)


def sort_pairs(x: Tensor) -> Tensor:
    """Every pair of neighbours in increasing order: `split_pairs`, `ordered` and `join_pairs`."""
    return _SortPairs.apply(x)[0]


def groups(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """The first, second, ... feature of every group of ``size`` neighbours."""
    # Not unflatten and flatten, which autograd's vectorised Jacobians do not know.
    return x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:]).unbind(2)


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


class PerSample(torch.autograd.Function):
    """A function of every sample on its own, for which `vmap` only makes the batch larger.

    Unlike what a generated rule needs, ``forward`` may write to tensors that it made.
    """

    @classmethod
    def vmap(cls, _: Any, in_dims: tuple[Any, ...], x: Tensor, *options: Any) -> tuple[Any, int]:
        """Outputs for a batch of batches, which is their first dimension."""
        x = x.movedim(in_dims[0], 0)
        outputs = cls.apply(x.flatten(0, 1), *options)
        return tuple(output.unflatten(0, x.shape[:2]) for output in outputs), 0


class _SortGroups(PerSample):
    # Beside the result, which comparators exchanged their inputs.

    @staticmethod
    def forward(x: Tensor, size: int) -> tuple[Tensor, ...]:
        lines = [line.clone(memory_format=torch.contiguous_format) for line in groups(x, size)]
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
        lines, steps = list(groups(x, size)), list(zip(comparators(size), swaps, strict=True))
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


class _SortPairs(PerSample):
    # All three in one, written in place: each copy of a convolution's maps takes as long as the
    # arithmetic. Beside the result, which pairs were exchanged.

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = groups(x, 2)
        if torch.compiler.is_compiling():
            # A compiler fuses what writing in place saves, and refuses parts of tensors for `out`.
            pairs = torch.stack((torch.minimum(first, second), torch.maximum(first, second)), 2)
            return pairs.reshape(x.shape), (first > second).to(x.dtype)
        joined, swap = torch.empty_like(x), x.new_empty(first.shape)
        low, high = groups(joined, 2)
        torch.minimum(first, second, out=low)
        torch.maximum(first, second, out=high)
        # A tie is not exchanged.
        return joined, torch.gt(first, second, out=swap)

    @staticmethod
    def setup_context(ctx: Any, _: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        return _Exchange.apply(grad, *ctx.saved_tensors)


class _Exchange(torch.autograd.Function):
    # A permutation that exchanges nothing but pairs is its own adjoint.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, swap: Tensor) -> Tensor:
        first, second = groups(x, 2)
        joined = x.new_empty(x.shape)
        for into, a, b in zip(groups(joined, 2), (first, second), (second, first), strict=True):
            into.copy_(torch.lerp(a, b, swap))
        return joined

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(grad, *ctx.saved_tensors), None
