"""Operators of ONNX by functions of torch, which capture then follows.

An operator is called with what it is called in (:class:`Call`) and its inputs, of which the
optional ones may be None. Values that depend on the input of the network keep its batch in front;
where a graph is written for one input, it sees a batch of 1 whatever the batch is.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import UnknownLipschitz, UnsoundNetworkError
from robustcert.network.onnx.file import MAX_ENTRIES, Node

# Threshold beyond which torch's softplus is its argument: its jump there is below 2e-35.
SOFTPLUS_THRESHOLD = 80.0
# What no float32 exceeds: exporters write it for a limit that there is none of.
NO_LIMIT = 3.4e38


@dataclass(frozen=True)
class Call:
    """Where an operator is called: its node, and the batch in hand.

    Attributes:
        node: The node.
        opset: Version of the operators.
        one: Whether the graph is written for a batch of one.
        count: Number of inputs in the batch.
        dtype: Precision of the network.
    """

    node: Node
    opset: int
    one: bool
    count: int
    dtype: torch.dtype

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def moving(self, place: int = 0) -> bool:
        """Whether an input depends on the input of the network."""
        return place < len(self.node.moving) and self.node.moving[place]

    def seen(self, x: Tensor, place: int = 0) -> list[int]:
        """Shape of an input as the graph sees it."""
        return [1, *x.shape[1:]] if self.one and self.moving(place) else list(x.shape)

    def axis(self, axis: int, x: Tensor) -> int:
        """An axis counted from the front; of a value that depends on the input, not the batch."""
        found = axis + x.dim() if axis < 0 else axis
        if not 0 <= found < x.dim():
            raise self.refuse(f"axis {axis} of a value of {x.dim()} dimensions")
        if found == 0 and self.moving():
            raise self.refuse("works along the batch: it mixes inputs")
        return found

    def given(self, name: str, value: Tensor | None) -> list[int] | None:
        """Integers that are an input in later versions of an operator and an attribute before."""
        return self.get(name) if value is None else [int(n) for n in value.flatten().tolist()]

    def refuse(self, why: str) -> UnsoundNetworkError:
        """An error about this node."""
        return UnsoundNetworkError(f"the operator {self.node.operator} {why}", self.node.name)


# Sums and products.


def _matmul(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


def _gemm(call: Call, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    if call.get("transA", 0):
        raise call.refuse("transposes its first matrix, the batch")
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    weight = y if call.get("transB", 0) else y.mT
    if alpha == beta == 1 and (bias is None or bias.numel() == len(weight)):
        return F.linear(x, weight, None if bias is None else bias.reshape(-1))
    product = F.linear(x, weight)
    product = product if alpha == 1 else torch.mul(product, alpha)
    return product if bias is None else torch.add(product, bias if beta == 1 else bias * beta)


def _div(call: Call, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _sum(call: Call, *values: Tensor) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = torch.add(total, value)
    return total


# Convolutions, pooling and normalisation.


def _windows(call: Call, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and paddings, all begins before all ends."""
    rank = len(kernel)
    if x.dim() != rank + 2 or call.get("kernel_shape", kernel) != kernel:
        raise call.refuse(f"has a kernel of {kernel} for values of {x.dim()} dimensions")
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    automatic = call.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        return strides, dilations, call.get("pads", [0] * (2 * rank))
    if automatic == "VALID":
        return strides, dilations, [0] * (2 * rank)
    begins, ends = [], []
    for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if automatic == "SAME_UPPER" else large)
        ends.append(large if automatic == "SAME_UPPER" else small)
    return strides, dilations, begins + ends


def _by_rank(call: Call, name: str, rank: int) -> Callable[..., Tensor]:
    if rank not in (1, 2):
        raise call.refuse(f"is covered in one and two dimensions, not in {rank}")
    found: Callable[..., Tensor] = getattr(F, f"{name}{rank}d")
    return found


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    strides, dilations, pads = _windows(call, x, kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    if begins != ends:
        x, begins = _padded(x, [0, 0, *begins, 0, 0, *ends], "constant", 0.0), [0] * len(kernel)
    convolve = _by_rank(call, "conv", len(kernel))
    return convolve(x, weight, bias, strides, begins, dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    strides, dilations, pads = _windows(call, x, kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    automatic = call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "")
    if begins != ends or automatic or call.get("output_shape"):
        raise call.refuse("is covered with equal padding of both sides, given by pads")
    more = call.get("output_padding", [0] * len(kernel))
    convolve = _by_rank(call, "conv_transpose", len(kernel))
    return convolve(x, weight, bias, strides, begins, more, call.get("group", 1), dilations)


def _pooled(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = call.get("kernel_shape")
    strides, dilations, pads = _windows(call, x, kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    if begins != ends:
        raise call.refuse(f"pads one side more than the other, {pads}")
    return kernel, strides, begins, dilations


def _max_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides, pads, dilations = _pooled(call, x)
    pool = _by_rank(call, "max_pool", len(kernel))
    return pool(x, kernel, strides, pads, dilations, bool(call.get("ceil_mode", 0)))


def _average_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides, pads, dilations = _pooled(call, x)
    if max(dilations) > 1:
        raise call.refuse("is covered without dilation")
    pool = _by_rank(call, "avg_pool", len(kernel))
    # Where nothing is padded the two ways to count are one.
    padded = bool(call.get("count_include_pad", 0)) or not any(pads)
    return pool(x, kernel, strides, pads, bool(call.get("ceil_mode", 0)), padded)


def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return torch.mean(x, dim=list(range(2, x.dim())), keepdim=True)


def _global_max_pool(call: Call, x: Tensor) -> Tensor:
    return _by_rank(call, "max_pool", x.dim() - 2)(x, list(x.shape[2:]))


def _batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if call.get("training_mode", 0) or call.get("spatial", 1) != 1:
        raise call.refuse("is covered in evaluation, with one statistic for a channel")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


# Activations.


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    wide = slope.reshape([1] * (x.dim() - slope.dim()) + list(slope.shape))
    if slope.numel() > 1 and (x.dim() < 2 or wide.shape[1] != slope.numel()):
        raise call.refuse(f"is covered with one slope for a channel, not {tuple(slope.shape)}")
    return F.prelu(x, slope.reshape(-1))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.6732631921768188)
    return torch.mul(F.elu(x, alpha), call.get("gamma", 1.0507010221481323))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    inner = torch.add(torch.mul(x, call.get("alpha", 0.2)), call.get("beta", 0.5))
    return torch.clamp(inner, min=0.0, max=1.0)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = call.get("min", -math.inf) if low is None else float(low)
    most = call.get("max", math.inf) if high is None else float(high)
    if least > most:
        raise call.refuse(f"has an empty range, {least} to {most}")
    if abs(least) < NO_LIMIT and abs(most) < NO_LIMIT:
        return torch.clamp(x, min=least, max=most)
    # One limit alone is a ReLU, turned or moved.
    if abs(least) < NO_LIMIT:
        return torch.relu(x) if least == 0 else torch.add(torch.relu(torch.sub(x, least)), least)
    if abs(most) < NO_LIMIT:
        return torch.rsub(torch.relu(torch.rsub(x, most)), most)
    return x


def _extreme(choose: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def extreme(call: Call, *values: Tensor) -> Tensor:
        found = values[0]
        for value in values[1:]:
            found = choose(found, value)
        return found

    return extreme


# Shapes, places and constants.


def _reshaped(call: Call, x: Tensor, shape: list[int]) -> Tensor:
    """A value in the shape that the graph gives it, with its batch in front."""
    if not call.moving():
        return x.reshape(shape)
    if not shape or shape[0] != call.seen(x)[0]:
        raise call.refuse(f"gives {call.seen(x)} the shape {shape}: it mixes the inputs of a batch")
    return x.reshape(len(x), *shape[1:])


def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
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


def _flatten(call: Call, x: Tensor) -> Tensor:
    seen, axis = call.seen(x), call.get("axis", 1)
    return _reshaped(call, x, [math.prod(seen[:axis]), math.prod(seen[axis:])])


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    seen, given = call.seen(x), call.given("axes", axes)
    chosen = {a % x.dim() for a in given} if given else {i for i, n in enumerate(seen) if n == 1}
    if any(seen[i] != 1 for i in chosen):
        raise call.refuse(f"removes dimensions {sorted(chosen)} of {seen}")
    return _reshaped(call, x, [n for i, n in enumerate(seen) if i not in chosen])


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given, left = call.given("axes", axes) or [], iter(call.seen(x))
    rank = x.dim() + len(given)
    chosen = {axis % rank for axis in given}
    if len(chosen) != len(given):
        raise call.refuse(f"adds dimensions {given}")
    return _reshaped(call, x, [1 if i in chosen else next(left) for i in range(rank)])


def _transpose(call: Call, x: Tensor) -> Tensor:
    order = call.get("perm", list(range(x.dim()))[::-1])
    if call.moving() and order[0] != 0:
        raise call.refuse("moves the batch")
    return x if order == sorted(order) else torch.permute(x, order)


def _concat(call: Call, *values: Tensor) -> Tensor:
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


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = call.axis(call.get("axis", 0), x), len(call.node.outputs)
    whole = x.shape[axis]
    most = -(-whole // call.get("num_outputs", count))
    equal = [min(most, whole - most * i) for i in range(count)]
    given = call.given("split", sizes) or equal
    if sum(given) != whole or min(given) < 0:
        raise call.refuse(f"splits {whole} entries into {given}")
    return tuple(torch.split(x, given, dim=axis))


def _slice(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
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


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
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


def _pad(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
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
    return _padded(x, wide, modes.get(mode, mode), filling)


def _padded(x: Tensor, pads: list[int], mode: str, value: float) -> Tensor:
    """Padding by torch, whose list goes from the last dimension to the first that is padded."""
    rank, turned = x.dim(), []
    for axis in range(rank - 1, -1, -1):
        turned += [pads[axis], pads[rank + axis]]
    while turned and not any(turned[-2:]):
        turned = turned[:-2]
    if not turned:
        return x
    return F.pad(x, turned, mode, value) if mode == "constant" else F.pad(x, turned, mode)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    count, channels, height, width = x.shape
    blocks = x.reshape(count, size, size, channels // size**2, height, width)
    moved = torch.permute(blocks, (0, 3, 4, 1, 5, 2))
    return moved.reshape(count, channels // size**2, height * size, width * size)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    count, channels, height, width = x.shape
    blocks = x.reshape(count, channels, height // size, size, width // size, size)
    moved = torch.permute(blocks, (0, 3, 5, 1, 2, 4))
    return moved.reshape(count, channels * size**2, height // size, width // size)


def _reduced(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def over(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = call.given("axes", axes)
        if not given and call.get("noop_with_empty_axes", 0):
            return x
        chosen = [call.axis(a, x) for a in given or range(x.dim())]
        return reduce(x, dim=chosen, keepdim=bool(call.get("keepdims", 1)))

    return over


def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor:
    if training is not None and bool(training):
        raise call.refuse("draws random numbers in training mode")
    return x


def _cast(call: Call, x: Tensor) -> Tensor:
    # FLOAT, DOUBLE, INT32, INT64 and BOOL, as ONNX numbers them.
    kinds = {6: torch.int32, 7: torch.int64, 9: torch.bool, 1: torch.float32, 11: torch.float64}
    kind = kinds.get(call.get("to"))
    if kind is None or (call.moving() and not kind.is_floating_point):
        raise call.refuse("makes other numbers than real ones of what depends on the input")
    if call.moving() and kind != call.dtype and call.dtype != torch.float64:
        raise call.refuse(f"makes {kind} of {call.dtype}: export the model in one precision")
    return x if call.moving() else x.to(call.dtype if kind.is_floating_point else kind)


def _shape(call: Call, x: Tensor) -> Tensor:
    return _integers(call.seen(x)[call.get("start", 0) : call.get("end")])


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    sizes = [int(n) for n in shape.tolist()]
    if math.prod(sizes) > MAX_ENTRIES:
        raise call.refuse(f"gives a constant of shape {sizes}")
    filling = torch.zeros(1, dtype=call.dtype, device="cpu") if value is None else value
    kind = call.dtype if filling.is_floating_point() else filling.dtype
    return torch.full(sizes, filling.item(), dtype=kind, device="cpu")


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _unary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, x: function(x)


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, x, y: function(x, y)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Celu": lambda call, x: F.celu(x, call.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": lambda call, x: F.elu(x, call.get("alpha", 1.0)),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda call, x: F.gelu(x, approximate=call.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": lambda call, x: F.leaky_relu(x, call.get("alpha", 0.01)),
    "MatMul": _matmul,
    "Max": _extreme(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _extreme(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softplus": lambda call, x: F.softplus(x, 1.0, SOFTPLUS_THRESHOLD),
    "Softsign": _unary(F.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
_NO_CONSTANT = "its slope grows without bound"
# Why well-known operators are refused.
REFUSED: Mapping[str, str] = {
    "Softmax": "certify the logits: remove it from the end of the model",
    "LogSoftmax": "certify the logits: remove it from the end of the model",
    "InstanceNormalization": _NO_CONSTANT,
    "LayerNormalization": _NO_CONSTANT,
    "GroupNormalization": _NO_CONSTANT,
    "LpNormalization": _NO_CONSTANT,
    "LRN": _NO_CONSTANT,
    "Attention": "it multiplies values that depend on the input",
    "ThresholdedRelu": "it jumps",
    "Erf": "export GELU as one operator, with opset 20 or later",
}


def require_known(node: Node) -> None:
    """Refuse an operator that is not here.

    Raises:
        UnknownLipschitz: it is not; the node is named.
    """
    if node.operator not in OPERATORS:
        why = REFUSED.get(node.operator, "docs/methods.md lists those that are")
        raise UnknownLipschitz(f"the operator {node.operator} is not covered: {why}", node.name)
