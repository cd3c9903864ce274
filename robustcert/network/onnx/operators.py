"""Operators of ONNX by functions of torch, which capture then follows.

An operator is called with what it is called in (:class:`robustcert.network.onnx.call.Call`) and its
inputs, of which the optional ones may be None. Values that depend on the input of the network keep
its batch in front; where a graph is written for one input, it sees a batch of 1 whatever it is.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.errors import UnknownLipschitz
from robustcert.network.onnx import shapes
from robustcert.network.onnx.call import Call
from robustcert.network.onnx.file import Node

# Threshold beyond which torch's softplus is its argument: its jump there is below 2e-35.
SOFTPLUS_THRESHOLD = 80.0
# What no number of a precision exceeds: exporters write it for a limit that there is none of.
NO_LIMIT = {torch.float32: 3.4e38, torch.float64: 1.79e308}


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
        x, begins = (
            shapes.padded(x, [0, 0, *begins, 0, 0, *ends], "constant", 0.0),
            [0] * len(kernel),
        )
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
    # A limit at the end of the numbers of this precision is none.
    end = NO_LIMIT[x.dtype]
    below, above = least > -end, most < end
    if below and above:
        return torch.clamp(x, min=least, max=most)
    # One limit alone is a ReLU, turned or moved.
    if below:
        return torch.relu(x) if least == 0 else torch.add(torch.relu(torch.sub(x, least)), least)
    if above:
        return torch.rsub(torch.relu(torch.rsub(x, most)), most)
    return x


def _extreme(choose: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def extreme(call: Call, *values: Tensor) -> Tensor:
        found = values[0]
        for value in values[1:]:
            found = choose(found, value)
        return found

    return extreme


def _unary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, x: function(x)


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, x, y: function(x, y)


OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": shapes.cast,
    "Celu": lambda call, x: F.celu(x, call.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": shapes.concat,
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": shapes.depth_to_space,
    "Div": _div,
    "Dropout": shapes.dropout,
    "Elu": lambda call, x: F.elu(x, call.get("alpha", 1.0)),
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
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
    "Pad": shapes.pad,
    "ReduceMean": shapes.reduced(torch.mean),
    "ReduceSum": shapes.reduced(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": shapes.reshape,
    "Selu": _selu,
    "Shape": shapes.shape_of,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": shapes.sliced,
    "Softplus": lambda call, x: F.softplus(x, 1.0, SOFTPLUS_THRESHOLD),
    "Softsign": _unary(F.softsign),
    "SpaceToDepth": shapes.space_to_depth,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
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
