"""Operators that move, choose and join entries, and those that make shapes and constants."""
# Every operator is documented by ONNX.
# ruff: noqa: D103

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.network.onnx.call import Call
from robustcert.network.onnx.file import MAX_ENTRIES


def _reshaped(call: Call, x: Tensor, shape: list[int]) -> Tensor:
    """A value in the shape that the graph gives it, with its batch in front."""
    if not call.moving():
        return x.reshape(shape)
    if not shape or shape[0] != call.seen(x)[0]:
        raise call.refuse(f"gives {call.seen(x)} the shape {shape}: it mixes the inputs of a batch")
    return x.reshape(len(x), *shape[1:])


def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted, seen = call.given("shape", shape) or [], call.seen(x)
    if not call.get("allowzero", 0):
        if any(n == 0 and place >= len(seen) for place, n in enumerate(wanted)):
            raise call.refuse(f"copies a dimension that {seen} does not have")
        wanted = [seen[place] if n == 0 else n for place, n in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted = [math.prod(seen) // rest if n == -1 and rest else n for n in wanted]
    if math.prod(wanted) != math.prod(seen) or min(wanted, default=1) < 0:
        raise call.refuse(f"cannot give {seen} the shape {wanted}")
    return _reshaped(call, x, wanted)


def flatten(call: Call, x: Tensor) -> Tensor:
    seen, axis = call.seen(x), call.get("axis", 1)
    return _reshaped(call, x, [math.prod(seen[:axis]), math.prod(seen[axis:])])


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    seen, given = call.seen(x), call.given("axes", axes)
    chosen = {a % x.dim() for a in given} if given else {i for i, n in enumerate(seen) if n == 1}
    if any(seen[i] != 1 for i in chosen):
        raise call.refuse(f"removes dimensions {sorted(chosen)} of {seen}")
    return _reshaped(call, x, [n for i, n in enumerate(seen) if i not in chosen])


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given, left = call.given("axes", axes) or [], iter(call.seen(x))
    rank = x.dim() + len(given)
    chosen = {axis % rank for axis in given}
    if len(chosen) != len(given):
        raise call.refuse(f"adds dimensions {given}")
    return _reshaped(call, x, [1 if i in chosen else next(left) for i in range(rank)])


def transpose(call: Call, x: Tensor) -> Tensor:
    order = call.get("perm", list(range(x.dim()))[::-1])
    if call.moving() and order[0] != 0:
        raise call.refuse("moves the batch")
    return x if order == sorted(order) else torch.permute(x, order)


def concat(call: Call, *values: Tensor) -> Tensor:
    moving = any(map(call.moving, range(len(values))))
    rank = values[0].dim()
    axis = call.get("axis") % rank
    if not moving:
        return torch.cat(values, dim=axis)
    if axis == 0:
        raise call.refuse("works along the batch: it mixes inputs")
    # A graph that is written for one input has its constants once.
    parts = [
        v.expand(call.count, *v.shape[1:]) if call.one and not call.moving(i) else v
        for i, v in enumerate(values)
    ]
    return torch.cat(parts, dim=axis)


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = call.axis(call.get("axis", 0), x), len(call.node.outputs)
    whole = x.shape[axis]
    most = -(-whole // call.get("num_outputs", count))
    equal = [min(most, whole - most * i) for i in range(count)]
    given = call.given("split", sizes) or equal
    if sum(given) != whole or min(given) < 0:
        raise call.refuse(f"splits {whole} entries into {given}")
    return tuple(torch.split(x, given, dim=axis))


def sliced(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    starts, ends, axes, steps = (
        call.given(name, given[i] if i < len(given) else None)
        for i, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    assert starts is not None
    assert ends is not None
    axes = axes or list(range(len(starts)))
    for start, end, a, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        seen, place = call.seen(x), a % x.dim()
        rows = range(seen[place])[start:end:step]
        if rows == range(seen[place]):
            continue
        axis = call.axis(a, x)
        if not len(rows):
            raise call.refuse("leaves nothing")
        if step > 0:
            x = x[(*[slice(None)] * axis, slice(rows.start, rows.stop, step))]
        else:
            x = torch.index_select(x, axis, _integers(list(rows)))
    return x


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    if call.moving(1):
        raise call.refuse("looks up places that depend on the input: it jumps")
    axis = call.axis(call.get("axis", 0), x)
    size = x.shape[axis]
    places = [n + size if n < 0 else n for n in indices.flatten().tolist()]
    if not all(0 <= n < size for n in places):
        raise call.refuse(f"looks up places outside of {size} entries")
    if indices.dim() == 0:
        return torch.select(x, axis, places[0])
    found = torch.index_select(x, axis, _integers(places))
    if indices.dim() == 1:
        return found
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def pad(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    pads, value, axes = (*given, None, None, None)[:3]
    sides, rank = call.given("pads", pads) or [], x.dim()
    chosen = list(range(rank)) if axes is None else [a % rank for a in axes.tolist()]
    wide = [0] * (2 * rank)
    for i, axis in enumerate(chosen):
        wide[axis], wide[rank + axis] = sides[i], sides[len(chosen) + i]
    if call.moving() and (wide[0] or wide[rank]):
        raise call.refuse("works along the batch: it mixes inputs")
    sizes = [n + wide[i] + wide[rank + i] for i, n in enumerate(x.shape)]
    if min(sizes) < 1 or math.prod(sizes[1:]) > MAX_ENTRIES:
        raise call.refuse(f"gives a value of shape {sizes}")
    modes = {"edge": "replicate", "wrap": "circular"}
    mode = call.get("mode", "constant")
    filling = call.get("value", 0.0) if value is None else float(value)
    return padded(x, wide, modes.get(mode, mode), filling)


def padded(x: Tensor, pads: list[int], mode: str, value: float) -> Tensor:
    """Padding by torch, whose list goes from the last dimension to the first that is padded."""
    rank, turned = x.dim(), []
    for axis in range(rank - 1, -1, -1):
        turned += [pads[axis], pads[rank + axis]]
    while turned and not any(turned[-2:]):
        turned = turned[:-2]
    if not turned:
        return x
    return F.pad(x, turned, mode, value) if mode == "constant" else F.pad(x, turned, mode)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    count, channels, height, width = x.shape
    blocks = x.reshape(count, size, size, channels // size**2, height, width)
    moved = torch.permute(blocks, (0, 3, 4, 1, 5, 2))
    return moved.reshape(count, channels // size**2, height * size, width * size)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    count, channels, height, width = x.shape
    blocks = x.reshape(count, channels, height // size, size, width // size, size)
    moved = torch.permute(blocks, (0, 3, 5, 1, 2, 4))
    return moved.reshape(count, channels * size**2, height // size, width // size)


def reduced(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def over(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = call.given("axes", axes)
        if not given and call.get("noop_with_empty_axes", 0):
            return x
        chosen = [call.axis(a, x) for a in given or range(x.dim())]
        return reduce(x, dim=chosen, keepdim=bool(call.get("keepdims", 1)))

    return over


def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor:
    if training is not None and bool(training):
        raise call.refuse("draws random numbers in training mode")
    return x


def cast(call: Call, x: Tensor) -> Tensor:
    # FLOAT, DOUBLE, INT32, INT64 and BOOL, as ONNX numbers them.
    kinds = {6: torch.int32, 7: torch.int64, 9: torch.bool, 1: torch.float32, 11: torch.float64}
    kind = kinds.get(call.get("to"))
    if kind is None or (call.moving() and not kind.is_floating_point):
        raise call.refuse("makes other numbers than real ones of what depends on the input")
    if call.moving() and kind != call.dtype:
        raise call.refuse(f"makes {kind} of {call.dtype}: export the model in one precision")
    return x if call.moving() else x.to(call.dtype if kind.is_floating_point else kind)


def shape_of(call: Call, x: Tensor) -> Tensor:
    return _integers(call.seen(x)[call.get("start", 0) : call.get("end")])


def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    sizes = [int(n) for n in shape.tolist()]
    if math.prod(sizes) > MAX_ENTRIES:
        raise call.refuse(f"gives a constant of shape {sizes}")
    filling = torch.zeros(1, dtype=call.dtype, device="cpu") if value is None else value
    kind = call.dtype if filling.is_floating_point() else filling.dtype
    return torch.full(sizes, filling.item(), dtype=kind, device="cpu")


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
