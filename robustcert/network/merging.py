"""Consecutive linear operations as one, and sums of linear branches: one norm where there were two.

Products and sums are computed in float64 and rounded once to the precision of the weights. What is
merged is the network that is certified, hashed and deployed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.network.activation import Activation
from robustcert.network.branches import Branched, Concatenation, Sum
from robustcert.network.linear import (
    Affine,
    CircularConvolution,
    Convolution,
    Dense,
    Flatten,
    Gather,
    Reshape,
)
from robustcert.network.operation import Operation, Shape, constant, same
from robustcert.network.sorting import sort_activation

# Maximum number of entries of a kernel that is as large as the map.
MAX_CIRCULAR = 2**22


def merged(operations: Sequence[Operation], input_shape: Shape) -> list[Operation]:
    """The same function with as few linear operations as its definition allows.

    Args:
        operations: Applied in turn.
        input_shape: Shape of one input.
    """
    done: list[Operation] = []
    before: list[Shape] = []
    shape = input_shape
    left = list(operations)[::-1]
    while left:
        operation = left.pop()
        if isinstance(operation, Branched):
            first, operation = _simplified(operation, shape)
            if first:
                left += [operation, *first[::-1]]
                continue
        before.append(shape)
        shape = operation.output_shape(shape)
        done.append(operation)
        while len(done) > 1 and (both := _pair(done[-2], done[-1], before[-2])) is not None:
            done[-2:] = [replace(both, name=done[-2].name or done[-1].name)]
            before.pop()
        if done and _changes_nothing(done[-1], before[-1]):
            done.pop()
            before.pop()
    return done


def _simplified(whole: Branched, shape: Shape) -> tuple[list[Operation], Operation]:
    """What comes before all branches, and what is left of them."""
    branches = [merged(branch, shape) for branch in whole.branches]
    shared: list[Operation] = []
    while all(branches) and all(_alike(branches[0][0], branch[0]) for branch in branches):
        shared.append(branches[0][0])
        branches = [branch[1:] for branch in branches]
    whole = replace(whole, branches=tuple(map(tuple, branches)))
    if shared:
        return shared, whole
    if isinstance(whole, Sum):
        return [], _of_linear_branches(whole) or whole
    signs = _of_both_signs(whole, shape)
    if signs:
        return signs[:-1], signs[-1]
    return [], _of_maps_of_indices(whole, shape) or whole


def _alike(first: Operation, second: Operation) -> bool:
    return same(replace(first, name=""), replace(second, name=""))


def _of_maps_of_indices(whole: Branched, shape: Shape) -> Operation | None:
    """Entries of one input side by side as one map of indices."""
    if not all(isinstance(op, _READING) for branch in whole.branches for op in branch):
        return None
    # Counted from 1, for 0 is no entry.
    places = torch.arange(1, 1 + math.prod(shape), dtype=torch.int64, device="cpu")
    return Gather(whole(places.view(1, *shape))[0] - 1, name=whole.name)


def _of_both_signs(whole: Branched, shape: Shape) -> list[Operation]:
    """ReLU of a value beside ReLU of its negative, by sorting each entry beside a zero.

    The lesser of x and 0 is -relu(-x), the greater relu(x): what is 1-Lipschitz, and would have
    root 2 as two branches.
    """
    found = [sign for branch in whole.branches for sign in _signed_relu(branch)]
    if not isinstance(whole, Concatenation) or whole.axis or len(whole.branches) != 2:
        return []
    if sorted(found) != [-1.0, 1.0]:
        return []
    count = math.prod(shape)
    places = torch.arange(count, dtype=torch.int64, device="cpu").view(shape)
    beside = torch.stack([torch.full_like(places, -1), places], 1).flatten(0, 1)
    # Where the lesser and the greater of every pair are.
    sorted_places = torch.arange(2 * count, dtype=torch.int64, device="cpu").view(beside.shape)
    lesser, greater = sorted_places.unflatten(0, (-1, 2)).unbind(1)
    order = torch.cat([greater if sign > 0 else lesser for sign in found])
    (dtype,) = {op.scale.dtype for b in whole.branches for op in b if isinstance(op, Affine)}
    sign = torch.tensor(found, dtype=dtype, device="cpu").repeat_interleave(shape[0])
    signed = Affine(sign, torch.zeros_like(sign), name=whole.name)
    return [Gather(beside), sort_activation(2), Gather(order), signed]


def _signed_relu(branch: Sequence[Operation]) -> list[float]:
    """1 for ReLU, -1 for ReLU of the negative of its input, and nothing for others."""
    if not branch or not isinstance(branch[-1], Activation):
        return []
    before = branch[:-1]
    if branch[-1].function is not torch.relu or len(before) > 1:
        return []
    if not before:
        return [1.0]
    negated = before[0]
    if not isinstance(negated, Affine) or negated.shift.any() or (negated.scale != -1).any():
        return []
    return [-1.0]


def _changes_nothing(operation: Operation, shape: Shape) -> bool:
    if isinstance(operation, Gather):
        places = torch.arange(math.prod(shape), dtype=torch.int64, device="cpu").view(shape)
        return torch.equal(operation.index, places)
    return isinstance(operation, (Reshape, Flatten)) and operation.output_shape(shape) == shape


def _pair(first: Operation, second: Operation, shape: Shape) -> Operation | None:
    """One operation for two on inputs of a shape; None where there is none."""
    rule = _RULES.get((type(first), type(second)))
    return None if rule is None else rule(first, second, shape)


def _float64(*tensors: Tensor | None) -> list[Tensor]:
    return [
        torch.zeros((), dtype=torch.float64, device="cpu") if t is None else t.double()
        for t in tensors
    ]


def _rounded(value: Tensor, like: Tensor) -> Tensor:
    return constant(value.to(like.dtype))


def _bias(value: Tensor, like: Tensor) -> Tensor | None:
    return _rounded(value, like) if value.any() else None


def _scaled_outputs(first: Dense | Convolution, second: Affine, shape: Shape) -> Operation | None:
    # Outputs are channels of a convolution, and of a dense map on vectors.
    if second.shift.dim() > 1 or (isinstance(first, Dense) and len(shape) > 1):
        return None
    weight, bias, scale, shift = _float64(first.weight, first.bias, second.scale, second.shift)
    rows = scale.view(-1, *(1,) * (weight.dim() - 1))
    offset = _bias((scale * bias + shift).expand(len(weight)), first.weight)
    return replace(first, weight=_rounded(rows * weight, first.weight), bias=offset)


def _affine_twice(first: Affine, second: Affine, _: Shape) -> Operation | None:
    scale, shift, factor, offset = _float64(*first.tensors().values(), *second.tensors().values())
    if shift.dim() != offset.dim():
        return None
    along = factor.view(-1, *(1,) * (shift.dim() - 1))
    both = _rounded(scale * factor, first.scale), _rounded(shift * along + offset, first.shift)
    return Affine(*both)


def _scaled_inputs(first: Affine, second: Dense | Convolution, shape: Shape) -> Operation | None:
    weight, bias, scale, shift = _float64(second.weight, second.bias, first.scale, first.shift)
    on_vectors = isinstance(second, Dense) and len(shape) == 1
    if not on_vectors and not isinstance(second, Convolution):
        return None
    if isinstance(second, Convolution) and shift.any() and (shift.dim() > 1 or any(second.padding)):
        # Zeros around the map are not shifted.
        return None
    groups = second.groups if isinstance(second, Convolution) else 1
    # Scale and shift of the channels that each output reads.
    columns, offsets = (
        c.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
        for c in (scale, shift if shift.dim() == 1 else 0 * scale)
    )
    added = (weight.flatten(2).sum(2) if weight.dim() > 2 else weight) * offsets
    wide = weight * columns.view(*columns.shape, *(1,) * (weight.dim() - 2))
    offset = _bias((bias + added.sum(1)).expand(len(weight)), second.weight)
    return replace(second, weight=_rounded(wide, second.weight), bias=offset)


def _dense_twice(first: Dense, second: Dense, _: Shape) -> Operation | None:
    size = len(second.weight) * first.weight.shape[1]
    if size > first.weight.numel() + second.weight.numel():
        return None
    weight, bias, factor, offset = _float64(first.weight, first.bias, second.weight, second.bias)
    shift = factor @ bias.expand(len(weight)) + offset
    return Dense(_rounded(factor @ weight, first.weight), _bias(shift, first.weight))


def _gather_twice(first: Gather, second: Gather, _: Shape) -> Operation:
    # A last index for the entries that are zero.
    index = F.pad(first.index.flatten(), (0, 1), value=-1)
    return Gather(index[second.index])


def _circular(first: Gather, second: Convolution, shape: Shape) -> Operation | None:
    """A convolution of a map that was extended circularly, whose norm is that on the torus."""
    if len(shape) != 3 or any(second.padding) or second.groups != 1 or first.index.dim() != 3:
        return None
    sizes, kernel = shape[1:], second.weight.shape[2:]
    margins = [(n - m) // 2 for n, m in zip(first.index.shape[1:], sizes, strict=True)]
    reach = [d * (k - 1) for d, k in zip(second.dilation, kernel, strict=True)]
    small = second.weight[:, :, 0, 0].numel() * math.prod(sizes) <= MAX_CIRCULAR
    fits = all(0 <= m <= n and r < n for m, n, r in zip(margins, sizes, reach, strict=True))
    whole = all(n % s == 0 for n, s in zip(sizes, second.stride, strict=True))
    if not (small and fits and whole and any(margins)):
        return None
    places = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu").view(1, *shape)
    extended = F.pad(places, (margins[1], margins[1], margins[0], margins[0]), mode="circular")
    outputs = second.output_shape(tuple(first.index.shape))[1:]
    periods = [n // s for n, s in zip(sizes, second.stride, strict=True)]
    if not torch.equal(extended[0].long(), first.index) or any(
        o > p for o, p in zip(outputs, periods, strict=True)
    ):
        return None
    weight = second.weight.new_zeros(*second.weight.shape[:2], *sizes)
    weight[:, :, :: second.dilation[0], :: second.dilation[1]][:, :, : kernel[0], : kernel[1]] = (
        second.weight
    )
    return CircularConvolution(
        weight,
        second.bias,
        input_size=(sizes[0], sizes[1]),
        output_size=(outputs[0], outputs[1]),
        stride=second.stride,
        padding=(margins[0], margins[1]),
    )


def _reshaped_gather(first: Gather, second: Operation, _: Shape) -> Operation:
    return Gather(first.index.reshape(second.output_shape(tuple(first.index.shape))))


def _last(_: Operation, second: Operation, __: Shape) -> Operation:
    # What comes first only changes the shape.
    return second


def _of_linear_branches(total: Sum) -> Operation | None:
    """A sum of dense maps or of convolutions, and of identities, as one of them."""
    linear = [branch[0] for branch in total.branches if len(branch) == 1]
    identities = sum(not branch for branch in total.branches)
    dense = [op for op in linear if isinstance(op, Dense)]
    convolutions = [op for op in linear if isinstance(op, Convolution)]
    summed: Operation | None = None
    if dense and len(dense) + identities == len(total.branches):
        summed = _sum_of_dense(dense, identities)
    elif convolutions and len(convolutions) + identities == len(total.branches):
        summed = _sum_of_convolutions(convolutions, identities)
    return None if summed is None else replace(summed, name=total.name)


def _sum_of_dense(linear: Sequence[Dense], identities: int) -> Operation:
    like = linear[0].weight
    eye = torch.eye(*like.shape, dtype=torch.float64, device="cpu")
    weight = sum((op.weight.double() for op in linear), identities * eye)
    return Dense(_rounded(weight, like), _sum_of_biases(linear))


def _sum_of_convolutions(linear: Sequence[Convolution], identities: int) -> Operation | None:
    like = max(linear, key=lambda op: op.weight[0, 0].numel())
    if identities:
        inner = torch.eye(like.weight.shape[1], dtype=like.weight.dtype, device="cpu")
        eye = inner.repeat(like.groups, 1)[:, :, None, None]
        linear = [*linear, Convolution(identities * eye, groups=like.groups)]
    kernels = [kernel for op in linear if (kernel := _embedded(op, like)) is not None]
    if len(kernels) < len(linear):
        return None
    total = torch.stack(kernels).sum(0)
    return replace(like, weight=_rounded(total, like.weight), bias=_sum_of_biases(linear))


def _sum_of_biases(linear: Sequence[Dense | Convolution]) -> Tensor | None:
    like = linear[0].weight
    total = sum(
        _float64(*(op.bias for op in linear)),
        torch.zeros(len(like), dtype=torch.float64, device="cpu"),
    )
    return _bias(total, like)


def _embedded(op: Convolution, like: Convolution) -> Tensor | None:
    """The kernel of a convolution within one of the geometry of another."""
    if (op.stride, op.groups) != (like.stride, like.groups):
        return None
    margins = []
    for axis in (1, 0):
        size, whole = op.weight.shape[2 + axis], like.weight.shape[2 + axis]
        step = like.dilation[axis]
        before, rest = divmod(like.padding[axis] - op.padding[axis], step)
        after = whole - size - before
        if rest or min(before, after) < 0 or (size > 1 and op.dilation[axis] != step):
            return None
        margins += [before, after]
    return F.pad(op.weight.double(), margins)


_READING = (Gather, Reshape, Flatten)
# What makes one operation of two, by their classes.
_RULES: dict[tuple[type[Operation], type[Operation]], Callable[..., Operation | None]] = {
    (Dense, Affine): _scaled_outputs,
    (Convolution, Affine): _scaled_outputs,
    (Affine, Affine): _affine_twice,
    (Affine, Dense): _scaled_inputs,
    (Affine, Convolution): _scaled_inputs,
    (Dense, Dense): _dense_twice,
    (Gather, Convolution): _circular,
    (Gather, Gather): _gather_twice,
    (Gather, Reshape): _reshaped_gather,
    (Gather, Flatten): _reshaped_gather,
    (Reshape, Gather): _last,
    (Flatten, Gather): _last,
    (Reshape, Reshape): _last,
    (Reshape, Flatten): _last,
    (Flatten, Reshape): _last,
}
