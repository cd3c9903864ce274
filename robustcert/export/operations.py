"""Folded operations as ONNX nodes.

Convolutions gather their windows and multiply by one matrix: onnxruntime has no convolution in
float64, and a matrix product is a sum of products in some order, which is all that the rounding
allowance assumes of it.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.certificate.restore import parts_of
from robustcert.errors import UnsoundNetworkError
from robustcert.export.activations import ACTIVATIONS
from robustcert.export.graph import Array, Graph
from robustcert.network.activation import Activation
from robustcert.network.blocks import ResidualBlock, Sandwich
from robustcert.network.bounds import shapes
from robustcert.network.branches import Concatenation, Sum
from robustcert.network.linear import (
    Affine,
    CircularConvolution,
    Convolution,
    Dense,
    Flatten,
    Gather,
    Reshape,
)
from robustcert.network.operation import Operation, Shape
from robustcert.network.skew_series import SkewSeries


def add_operations(graph: Graph, x: str, operations: Sequence[Operation], shape: Shape) -> str:
    """Add operations that are applied in turn to a value of this shape; returns the last value.

    Raises:
        UnsoundNetworkError: an operation or an activation cannot be exported; it is named.
    """
    for operation, inputs in shapes(operations, shape):
        add = _OPERATIONS.get(type(operation))
        if add is None:
            raise UnsoundNetworkError(
                f"the operation {operation.kind} cannot be exported", operation.label
            )
        x = add(graph, x, operation, inputs)
    return x


def _numpy(tensor: Tensor) -> Array:
    # In float64, which holds float32 exactly; the graph's constants have its own arithmetic.
    return tensor.double().cpu().numpy()


def _with_bias(graph: Graph, x: str, bias: Tensor | None, rank: int) -> str:
    return x if bias is None else graph.add(x, graph.along(_numpy(bias), rank))


def _dense(graph: Graph, x: str, operation: Any, _: Shape) -> str:
    return _multiply(graph, x, operation.weight, operation.bias)


def _multiply(graph: Graph, x: str, weight: Tensor, bias: Tensor | None) -> str:
    product = graph.apply("MatMul", x, graph.constant(_numpy(weight).T))
    return product if bias is None else graph.add(product, graph.constant(_numpy(bias)))


def _windows(
    graph: Graph,
    x: str,
    places: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: dict[str, Any],
) -> str:
    """Windows of values at 1-based ``places`` ``(C, H, W)``, where 0 stands for a zero."""
    groups = geometry.pop("groups", 1)
    outputs, inner, *kernel = weight.shape
    channels = len(places)
    whole = weight.new_zeros(outputs, channels, *kernel)
    for g in range(groups):
        rows = slice(g * (outputs // groups), (g + 1) * (outputs // groups))
        whole[rows, g * inner : (g + 1) * inner] = weight[rows]
    reads = F.unfold(places[None].double(), tuple(kernel), **geometry)[0].mT.long()
    sides = F.conv2d(
        places[None, :1].double(),
        torch.ones(1, 1, *kernel, dtype=torch.float64, device="cpu"),
        **geometry,
    )
    windows = _read(graph, x, reads)
    product = graph.apply("MatMul", windows, graph.constant(_numpy(whole.flatten(1)).T))
    maps = graph.apply("Transpose", product, perm=[0, 2, 1])
    return _with_bias(graph, graph.reshape(maps, outputs, *sides.shape[2:]), bias, 4)


def _read(graph: Graph, x: str, places: Tensor) -> str:
    """Entries of a value at 1-based places, where 0 stands for a zero."""
    padding = graph.integers(0, 1, 0, 0)
    padded = graph.apply("Pad", graph.reshape(x, -1), padding, graph.constant(0.0))
    return graph.apply("Gather", padded, graph.constant(places.numpy(), np.int64), axis=1)


def _positions(shape: Shape) -> Tensor:
    channels, height, width = shape
    return torch.arange(1, 1 + channels * height * width, dtype=torch.int64, device="cpu").view(
        channels, height, width
    )


def _convolution(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    geometry = {key: getattr(operation, key) for key in ("stride", "padding", "dilation")}
    geometry["groups"] = operation.groups
    return _windows(graph, x, _positions(shape), operation.weight, operation.bias, geometry)


def _circular(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    height, width = operation.weight.shape[2:]
    places = F.pad(_positions(shape), (0, width - shape[2], 0, height - shape[1]))
    for axis, period, out, s, p in zip(
        (1, 2),
        (height, width),
        operation.output_size,
        operation.stride,
        operation.padding,
        strict=True,
    ):
        places = places.index_select(
            axis,
            (torch.arange(s * (out - 1) + period, dtype=torch.int64, device="cpu") - p) % period,
        )
    geometry = {"stride": operation.stride}
    return _windows(graph, x, places, operation.weight, operation.bias, geometry)


def _affine(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    # A shift of its own for every entry has their shape.
    scale, shift = (
        graph.along(_numpy(c), len(shape) + 1) if c.dim() == 1 else graph.constant(_numpy(c))
        for c in (operation.scale, operation.shift)
    )
    return graph.add(graph.mul(x, scale), shift)


def _flatten(graph: Graph, x: str, *_: Any) -> str:
    return graph.reshape(x, -1)


def _reshape(graph: Graph, x: str, operation: Any, _: Shape) -> str:
    return graph.reshape(x, *operation.shape)


def _gather(graph: Graph, x: str, operation: Any, _: Shape) -> str:
    return _read(graph, x, operation.index.cpu() + 1)


def _activation(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    function = operation.function
    name = function.__name__
    if name not in ACTIVATIONS:
        return _own_formula(operation)(graph, x, shape, _constants(operation))
    if name == "gelu" and graph.dtype == np.float64:
        raise UnsoundNetworkError(
            "gelu cannot be exported in float64, where onnxruntime has no error function: export "
            "in float32, or use the approximation by tanh",
            operation.label,
        )
    # By the function itself: the formula is that of the package's or torch's of this name.
    if function not in (torch.relu, torch.tanh) and function is not parts_of(name).function:
        raise UnsoundNetworkError(
            f"the activation {name} of {function.__module__} cannot be exported: another function "
            "of the package has this name, rename it",
            operation.label,
        )
    return ACTIVATIONS[name](graph, x, shape, _constants(operation))


def _constants(operation: Any) -> dict[str, Any]:
    return {
        key: _numpy(value) if isinstance(value, Tensor) else value
        for key, value in operation.constants.items()
    }


def _own_formula(operation: Any) -> Callable[..., str]:
    """What writes an activation of a user's package: ``<name>_onnx`` beside its function."""
    function = operation.function
    name, module = function.__name__, function.__module__
    formula: Callable[..., str] | None = getattr(sys.modules.get(module), f"{name}_onnx", None)
    if formula is None:
        raise UnsoundNetworkError(
            f"the activation {name} cannot be exported: expected its formula in ONNX, a function "
            f"{name}_onnx(graph, x, shape, constants) in {module}",
            operation.label,
        )
    return formula


def _residual_block(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    weight, padding = operation.weight, operation.padding
    if weight.dim() == 2:
        inner = _multiply(graph, x, weight, operation.bias)
        hidden: Shape = (*shape[:-1], len(weight))
    else:
        inner = _windows(graph, x, _positions(shape), weight, operation.bias, {"padding": padding})
        sides = (n + 2 * padding - k + 1 for n, k in zip(shape[1:], weight.shape[2:], strict=True))
        hidden = (len(weight), *sides)
    active = _activation(graph, inner, operation.activation, hidden)
    scale = graph.along(_numpy(operation.scale), weight.dim())
    active = graph.mul(graph.mul(active, scale), scale)
    if weight.dim() == 2:
        outer = _multiply(graph, active, weight.mT, None)
    else:
        # The transpose of a convolution: channels exchanged, kernels turned around.
        back = weight.transpose(0, 1).flip(2, 3)
        around = {"padding": tuple(k - 1 - padding for k in weight.shape[2:])}
        outer = _windows(graph, active, _positions(hidden), back, None, around)
    return graph.sub(x, graph.mul(graph.constant(2.0), outer))


def _sandwich(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    first, last = operation.linear()
    write = _dense if isinstance(first, Dense) else _circular
    inner, hidden = write(graph, x, first, shape), first.output_shape(shape)
    active = _activation(graph, inner, operation.activation, hidden)
    return write(graph, active, last, hidden)


def _skew_series(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    found = x
    for scale in reversed(_numpy(operation.scales)):
        step = _convolution(graph, found, operation.step, shape)
        found = graph.add(x, graph.mul(step, graph.constant(scale)))
    return _with_bias(graph, found, operation.bias, 4)


def _sum(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    branches = [add_operations(graph, x, branch, shape) for branch in operation.branches]
    return functools.reduce(graph.add, branches)


def _concatenate(graph: Graph, x: str, operation: Any, shape: Shape) -> str:
    branches = [add_operations(graph, x, branch, shape) for branch in operation.branches]
    return graph.apply("Concat", *branches, axis=operation.axis + 1)


# What writes each kind of operation.
_OPERATIONS: Mapping[type[Operation], Callable[[Graph, str, Any, Shape], str]] = {
    Dense: _dense,
    Convolution: _convolution,
    CircularConvolution: _circular,
    Affine: _affine,
    Flatten: _flatten,
    Reshape: _reshape,
    Gather: _gather,
    Activation: _activation,
    ResidualBlock: _residual_block,
    Sandwich: _sandwich,
    SkewSeries: _skew_series,
    Sum: _sum,
    Concatenation: _concatenate,
}
