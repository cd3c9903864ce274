"""Torch's activations and max-pooling as ONNX nodes.

ONNX lacks expm1: that of t <= 0 is :math:`2 h / (1 - h)`, h the tangent of t / 2, with 16 roundings
where expm1 counts 8, of the 20 that a restored activation is granted.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robustcert.export.graph import Graph
from robustcert.network.operation import Shape

Constants = dict[str, Any]
Add = Callable[[Graph, str, Shape, Constants], str]


def _same(operator: str) -> Add:
    def add(graph: Graph, x: str, *_: Any) -> str:
        return graph.apply(operator, x)

    return add


def _positive(graph: Graph, x: str) -> str:
    return graph.apply("Greater", x, graph.constant(0.0))


def _leaky_relu(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    slope = graph.along(constants["slope"], len(shape) + 1)
    return graph.where(_positive(graph, x), x, graph.mul(slope, x))


def _elu(graph: Graph, x: str, _: Shape, constants: Constants) -> str:
    below = graph.div(
        graph.apply("Min", x, graph.constant(0.0)), graph.constant(2 * constants["width"])
    )
    half = graph.apply("Tanh", below)
    power = graph.div(graph.mul(graph.constant(2.0), half), graph.sub(graph.constant(1.0), half))
    return graph.where(_positive(graph, x), x, graph.mul(graph.constant(constants["alpha"]), power))


def _silu(graph: Graph, x: str, *_: Any) -> str:
    return graph.mul(x, graph.apply("Sigmoid", x))


def _half_of(graph: Graph, x: str, share: str) -> str:
    """Half of ``x (1 + share)``."""
    total = graph.add(graph.constant(1.0), share)
    return graph.mul(x, graph.mul(graph.constant(0.5), total))


def _gelu(graph: Graph, x: str, *_: Any) -> str:
    scaled = graph.mul(x, graph.constant(np.sqrt(0.5)))
    return _half_of(graph, x, graph.apply("Erf", scaled))


def _gelu_tanh(graph: Graph, x: str, *_: Any) -> str:
    cubic = graph.mul(graph.constant(0.044715), graph.mul(x, x))
    inner = graph.mul(graph.mul(graph.constant(np.sqrt(2 / np.pi)), x), _plus(graph, cubic, 1.0))
    return _half_of(graph, x, graph.apply("Tanh", inner))


def _plus(graph: Graph, x: str, value: float) -> str:
    return graph.add(x, graph.constant(value))


def _clip(graph: Graph, x: str, low: Any, high: Any) -> str:
    return graph.apply("Clip", x, graph.constant(low), graph.constant(high))


def _hardtanh(graph: Graph, x: str, _: Shape, constants: Constants) -> str:
    return _clip(graph, x, constants["low"], constants["high"])


def _log_sum(graph: Graph, x: str, tau: str) -> str:
    """``tau log(1 + exp(-|x| / tau))``."""
    depth = graph.div(graph.apply("Neg", graph.apply("Abs", x)), tau)
    return graph.mul(tau, graph.apply("Log", _plus(graph, graph.apply("Exp", depth), 1.0)))


def _log_sigmoid(graph: Graph, x: str, *_: Any) -> str:
    below = graph.apply("Min", x, graph.constant(0.0))
    return graph.sub(below, _log_sum(graph, x, graph.constant(1.0)))


def _smooth_relu(graph: Graph, x: str, _: Shape, constants: Constants) -> str:
    tau = graph.constant(constants["temperature"])
    return graph.add(graph.apply("Relu", x), _log_sum(graph, x, tau))


def _softsign(graph: Graph, x: str, *_: Any) -> str:
    return graph.div(x, _plus(graph, graph.apply("Abs", x), 1.0))


def _hardswish(graph: Graph, x: str, *_: Any) -> str:
    share = _clip(graph, _plus(graph, x, 3.0), 0.0, 6.0)
    return graph.div(graph.mul(x, share), graph.constant(6.0))


def _softshrink(graph: Graph, x: str, _: Shape, constants: Constants) -> str:
    width = constants["width"]
    return graph.sub(x, _clip(graph, x, -width, width))


def _tanhshrink(graph: Graph, x: str, *_: Any) -> str:
    return graph.sub(x, graph.apply("Tanh", x))


def _max_pool(graph: Graph, x: str, _: Shape, constants: Constants) -> str:
    height, width, down, right, top, left = (
        constants[key] for key in ("height", "width", "down", "right", "top", "left")
    )
    return graph.apply(
        "MaxPool",
        x,
        kernel_shape=[height, width],
        strides=[down, right],
        pads=[top, left, top, left],
    )


# What writes each function of torch, by its name in files.
TORCH_ACTIVATIONS: Mapping[str, Add] = {
    "elu": _elu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": _hardswish,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "log_sigmoid": _log_sigmoid,
    "max_pool": _max_pool,
    "sigmoid": _same("Sigmoid"),
    "silu": _silu,
    "smooth_relu": _smooth_relu,
    "softshrink": _softshrink,
    "softsign": _softsign,
    "tanhshrink": _tanhshrink,
}
