"""How activations address features: constants per feature, neighbouring pairs, groups."""

from typing import Any

import torch
from torch import Tensor

from robustcert.network.sorting import groups


def along_features(value: Tensor, x: Tensor) -> Tensor:
    """``value``, a scalar or one number per feature, laid out along dimension 1 of ``x``.

    Raises:
        RuntimeError: ``x`` has another number of features; one must not be copied to several.
    """
    if value.dim() == 0:
        return value
    return value.view(-1, *(1,) * (x.dim() - 2)).expand(x.shape[1:])


def split_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second feature of every pair of neighbours: even and odd ones."""
    first, second = _SplitPairs.apply(x)
    return first, second


def join_pairs(first: Tensor, second: Tensor) -> Tensor:
    """The inverse of `split_pairs`."""
    return _JoinPairs.apply(first, second)


def reflect_pairs(x: Tensor, normals: Tensor, where: Tensor | None = None) -> Tensor:
    r"""Pairs z reflected to :math:`z - 2 v v^T z / v^T v`, by one mirror after another.

    Args:
        x: Pairs of neighbouring features, shape ``(N, C, *)``.
        normals: Vectors v of any length, for every mirror and pair: shape ``(mirrors, 2, C/2)``.
        where: 1 for the pairs that a mirror reflects and 0 for the others, constants of shape
            ``(mirrors, N, C/2, *)``; by default mirrors reflect what is behind them, that is
            :math:`v^T z \le 0`.
    """
    return _ReflectPairs.apply(x, normals, where)[0]


def ordered(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller and the larger of two tensors, entry by entry.

    Unlike `torch.minimum` and `torch.maximum`, which halve the gradient at a tie, the derivative is
    a permutation there too, so gradient norms are preserved, and a function of the two that is
    symmetric and smooth keeps all its derivatives.
    """
    low, high = _Ordered.apply(first, second)
    return low, high


# Autograd would write the gradient of a slice by `stack`, and select by `where`; on a CPU each
# takes several times as long as the arithmetic. Splitting and joining are adjoint to each other and
# only copy, and a selection by 0 or 1 is what `lerp` does exactly.


class _SplitPairs(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return groups(x, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(_: Any, first: Tensor, second: Tensor) -> Tensor:
        return join_pairs(first, second)


class _JoinPairs(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor) -> Tensor:
        shape = first.shape
        joined = first.new_empty(shape[0], shape[1], 2, *shape[2:])
        for half, into in zip((first, second), joined.unbind(2), strict=True):
            into.copy_(half)
        return joined.reshape(shape[0], 2 * shape[1], *shape[2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(_: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return split_pairs(grad)


class _Ordered(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return torch.minimum(first, second), torch.maximum(first, second)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: tuple[Tensor, Tensor]) -> None:
        first, second = inputs
        # A tie is not exchanged.
        ctx.save_for_backward((first > second).to(first.dtype))

    @staticmethod
    def backward(ctx: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        (swap,) = ctx.saved_tensors
        return torch.lerp(low, high, swap), torch.lerp(high, low, swap)


class _ReflectPairs(torch.autograd.Function):
    # Beside the result, what was behind the mirrors.

    @classmethod
    def vmap(
        cls,
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        normals: Tensor,
        where: Tensor | None,
    ) -> tuple[Any, int]:
        size = info.batch_size

        def each(t: Tensor, dim: int | None) -> Tensor:
            return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)

        x, normals = each(x, in_dims[0]), each(normals, in_dims[1])
        where = None if where is None else each(where, in_dims[2])
        if in_dims[1] is not None:
            given = [None] * size if where is None else where
            outputs = zip(*map(cls.apply, x, normals, given), strict=True)
            return tuple(map(torch.stack, outputs)), 0
        # With the same mirrors for all, a batch of batches is only a larger batch.
        where = None if where is None else where.movedim(0, 1).flatten(1, 2)
        y, *rest = cls.apply(x.flatten(0, 1), normals[0], where)
        reflected = [part.unflatten(1, (size, -1)).movedim(1, 0) for part in rest]
        return (y.unflatten(0, (size, -1)), *reflected), 0

    @staticmethod
    def forward(x: Tensor, normals: Tensor, where: Tensor | None) -> tuple[Tensor, ...]:
        joined, found = x.clone(), []
        a, b = groups(joined, 2)
        # Dividing by the squared length makes it a reflection for a normal of any length.
        steps = -2 * normals / (normals * normals).sum(1, keepdim=True)
        for k, (normal, step) in enumerate(zip(normals.unbind(), steps.unbind(), strict=True)):
            u, v, p, q = (along_features(part, a) for part in (*normal, *step))
            depth = (u * a).addcmul_(v, b)
            if where is None:
                found.append(is_positive(depth).neg_().add_(1))
            depth *= found[k] if where is None else where[k]
            a.addcmul_(depth, p)
            b.addcmul_(depth, q)
        if where is not None:
            return (joined,)
        # One that needs no copy.
        return joined, found[0][None] if len(found) == 1 else torch.stack(found)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: tuple[Tensor, ...]
    ) -> None:
        _, normals, where = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(output[0], normals, output[1] if where is None else where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        y, normals, where = ctx.saved_tensors
        # A reflection is its own adjoint.
        moved = reflect_pairs(grad, normals.flip(0), where.flip(0))
        turned = _normal_gradient(y, grad, normals, where) if ctx.needs_input_grad[1] else None
        return moved, turned, None


def _normal_gradient(y: Tensor, grad: Tensor, normals: Tensor, where: Tensor) -> Tensor:
    # A normal that turns by an angle turns what it reflected by twice the angle, and what later
    # mirrors made of that the other way round. Its length does not matter.
    (a, b), (p, q) = groups(y, 2), groups(grad, 2)
    moment = torch.addcmul(q * a, p, b, value=-1)
    own = [moment * where[-1]]
    for reflected in where[:-1].flip(0):
        moment = torch.sub(moment, own[0], alpha=2)
        own.insert(0, moment * reflected)
    angles = torch.stack([2 * each.sum((0, *range(2, y.dim()))) for each in own]).unsqueeze(1)
    across = torch.stack((-normals[:, 1], normals[:, 0]), 1)
    return angles * across / (normals * normals).sum(1, keepdim=True)


def is_positive(x: Tensor) -> Tensor:
    """1 or 0 in the dtype of ``x``, into which truth values are slow to convert."""
    return x.sign().relu_()


def check_groups(name: str, num_features: int, group_size: int) -> None:
    """Refuse a number of features that does not split evenly into groups."""
    if num_features % group_size:
        raise ValueError(
            f"{name} cannot split {num_features} features into groups of {group_size}: "
            f"set model.width to a multiple of {group_size}"
        )
