"""Every activation as ONNX nodes: the formula of its pure function, in the same order.

The two functions that ONNX lacks are composed: log1p(y) is log(1 + y), wrong by one more rounding
of a value of at most 2, and hypot(x, y) is the root of the squares, wrong by three. The count of a
restored activation, twice the checker's, covers both; where squares overflow is kept out of reach
by :mod:`robustcert.export.rounding`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robustcert.export.graph import Array, Graph
from robustcert.export.torch_activations import TORCH_ACTIVATIONS
from robustcert.network.operation import Shape

Constants = dict[str, Any]
Pair = tuple[str, str]


def split_pairs(graph: Graph, x: str, shape: Shape) -> Pair:
    """The first and the second feature of every pair of neighbours."""
    first, second = _group(graph, x, shape, 2)
    return first, second


def join_pairs(graph: Graph, first: str, second: str, shape: Shape) -> str:
    """The inverse, for a result of this shape."""
    axis = graph.integers(2)
    parts = [graph.apply("Unsqueeze", part, axis) for part in (first, second)]
    return graph.reshape(graph.apply("Concat", *parts, axis=2), *shape)


def _group(graph: Graph, x: str, shape: Shape, size: int) -> list[str]:
    groups = graph.reshape(x, shape[0] // size, size, *shape[1:])
    return [graph.apply("Gather", groups, graph.constant(k, np.int64), axis=2) for k in range(size)]


def _rank(shape: Shape) -> int:
    return len(shape) + 1


def _zero(graph: Graph) -> str:
    return graph.constant(0.0)


def _hypot(graph: Graph, x: str, y: str) -> str:
    return graph.apply("Sqrt", graph.add(graph.mul(x, x), graph.mul(y, y)))


def _same(operator: str) -> Callable[[Graph, str, Shape, Constants], str]:
    def add(graph: Graph, x: str, *_: Any) -> str:
        return graph.apply(operator, x)

    return add


def _beta_abs(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    folded = np.arange(shape[0]) < constants["count"]
    mask = graph.constant(folded.reshape(-1, *(1,) * (len(shape) - 1)), np.bool_)
    return graph.where(mask, graph.apply("Abs", x), x)


def _group_sort(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    size = constants["group_size"]
    if size == 2:
        both = split_pairs(graph, x, shape)
        return join_pairs(graph, graph.apply("Min", *both), graph.apply("Max", *both), shape)
    groups = graph.reshape(x, shape[0] // size, size, *shape[1:])
    count = graph.integers(size)
    ordered = graph.apply("TopK", groups, count, outputs=2, axis=2, largest=0, sorted=1)
    return graph.reshape(ordered, *shape)


def _n_activation(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    low, high = (graph.along(corner, _rank(shape)) for corner in constants["corners"])
    inside = graph.apply("Min", graph.apply("Max", x, low), high)
    return graph.sub(x, graph.mul(graph.constant(2.0), inside))


def _linear_spline(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    slopes, step = constants["slopes"].astype(graph.dtype), constants["step"].astype(graph.dtype)
    rows, pieces = slopes.shape
    half = pieces // 2
    left = -slopes[:, :half][:, ::-1].cumsum(1)[:, ::-1]
    right = slopes[:, half:-1].cumsum(1)
    values = np.concatenate((left, 0 * slopes[:, :1], right), axis=1)
    intercepts = step * (values - slopes * np.arange(-half, half).astype(graph.dtype))
    place = graph.add(graph.div(x, graph.constant(step)), graph.constant(half))
    # A NaN is no index; it comes back by the product with x.
    place = graph.where(graph.apply("Equal", place, place), place, _zero(graph))
    place = graph.apply("Clip", place, _zero(graph), graph.constant(pieces - 1))
    piece = graph.apply("Cast", graph.apply("Floor", place), to=graph.onnx.TensorProto.INT64)
    if rows > 1:
        first = (pieces * np.arange(rows)).reshape(-1, *(1,) * (len(shape) - 1))
        piece = graph.add(piece, graph.constant(first, np.int64))
    slope, intercept = (
        graph.apply("Gather", graph.constant(table.ravel()), piece, axis=0)
        for table in (slopes, intercepts)
    )
    return graph.add(graph.mul(slope, x), intercept)


def _householder(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    a, b = split_pairs(graph, x, shape)
    normal = constants["normal"].astype(graph.dtype)
    u, v = (graph.along(n, _rank(shape)) for n in normal)
    along = graph.add(graph.mul(u, a), graph.mul(v, b))
    twice = graph.mul(graph.constant(2.0), graph.apply("Min", along, _zero(graph)))
    depth = graph.div(twice, graph.along((normal * normal).sum(0), _rank(shape)))
    first, second = graph.sub(a, graph.mul(depth, u)), graph.sub(b, graph.mul(depth, v))
    return join_pairs(graph, first, second, shape)


def _householder2(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    z, rank = split_pairs(graph, x, shape), _rank(shape)
    first, second, third = constants["rays"].astype(graph.dtype)
    fourth = _product(_product(-first, second * np.array([[1], [-1]], graph.dtype)), third)
    past = [_left_of(graph, z, ray, rank) for ray in (first, second, third, fourth)]
    outside = [graph.apply("Not", condition) for condition in past]
    in_second = graph.apply("And", past[1], outside[2])
    in_third = graph.apply("And", past[2], outside[3])
    in_fourth = graph.apply("And", past[3], outside[0])
    turned = _choose(graph, in_third, _mirror(graph, z, third, rank), z)
    either = graph.apply("Or", in_second, in_third)
    turned = _choose(graph, either, _mirror(graph, turned, second, rank), z)
    result = _choose(graph, in_fourth, _mirror(graph, z, first, rank), turned)
    return join_pairs(graph, *result, shape)


def _product(z: Array, w: Array) -> Array:
    return np.stack((z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]))


def _left_of(graph: Graph, z: Pair, ray: Array, rank: int) -> str:
    u, v = (graph.along(part, rank) for part in ray)
    return graph.apply("GreaterOrEqual", graph.mul(u, z[1]), graph.mul(v, z[0]))


def _mirror(graph: Graph, z: Pair, ray: Array, rank: int) -> Pair:
    u, v = (graph.along(part, rank) for part in ray)
    inner = graph.add(graph.mul(u, z[0]), graph.mul(v, z[1]))
    square = graph.along((ray * ray).sum(0), rank)
    along = graph.div(graph.mul(graph.constant(2.0), inner), square)
    return graph.sub(graph.mul(along, u), z[0]), graph.sub(graph.mul(along, v), z[1])


def _choose(graph: Graph, condition: str, z: Pair, otherwise: Pair) -> Pair:
    first, second = (graph.where(condition, *both) for both in zip(z, otherwise, strict=True))
    return first, second


def _grafted(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    graft, rank = constants["graft"], _rank(shape)
    if constants["pairs"]:
        first, second = split_pairs(graph, x, shape)
        folded = _group_sort(graph, x, shape, {"group_size": 2})
        swapped = join_pairs(graph, second, first, shape)
        straight = graph.where(_mask(graph, (graft == 2).repeat(2), rank), swapped, x)
        graft = graft.repeat(2)
    else:
        folded, straight = graph.apply("Relu", x), x
    slope, shift = (graph.along(constants[key], rank) for key in ("slope", "shift"))
    line = graph.add(graph.mul(slope, straight), shift)
    return graph.where(_mask(graph, graft == 0, rank), folded, line)


def _mask(graph: Graph, condition: Array, rank: int) -> str:
    return graph.constant(condition.reshape(-1, *(1,) * (rank - 2)), np.bool_)


def _norm_pair(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    size = constants["group_size"]
    norm = tau = graph.along(constants["temperature"], _rank(shape))
    for feature in _group(graph, x, shape, size):
        norm = _hypot(graph, feature, norm)
    return graph.sub(norm, tau)


def _norm_pool(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    size, (channels, height, width) = constants["size"], shape
    windows = graph.reshape(x, channels, height // size, size, width // size, size)
    squares = graph.mul(windows, windows)
    sums = graph.apply("ReduceSum", squares, graph.integers(3, 5), keepdims=0)
    return graph.apply("Sqrt", sums)


def _smooth_abs(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    tau = graph.along(constants["temperature"], _rank(shape))
    return graph.sub(_hypot(graph, x, tau), tau)


def _smooth_householder(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    a, b = split_pairs(graph, x, shape)
    normal = constants["normal"].astype(graph.dtype)
    u, v = (graph.along(n, _rank(shape)) for n in normal / np.hypot(normal[0], normal[1]))
    tau = graph.along(constants["temperature"], _rank(shape))
    along = graph.add(graph.mul(u, a), graph.mul(v, b))
    change = graph.sub(graph.sub(_hypot(graph, along, tau), tau), along)
    first, second = graph.add(a, graph.mul(change, u)), graph.add(b, graph.mul(change, v))
    return join_pairs(graph, first, second, shape)


def _excess(graph: Graph, depth: str, tau: str) -> str:
    # tau log(1 + exp(depth / tau)) for a depth of at most 0.
    power = graph.apply("Exp", graph.div(depth, tau))
    return graph.mul(tau, graph.apply("Log", graph.add(graph.constant(1.0), power)))


def _smooth_maxmin(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    both = split_pairs(graph, x, shape)
    low, high = graph.apply("Min", *both), graph.apply("Max", *both)
    tau = graph.along(constants["temperature"], _rank(shape))
    excess = _excess(graph, graph.sub(low, high), tau)
    return join_pairs(graph, graph.sub(low, excess), graph.add(high, excess), shape)


def _softplus(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    tau = graph.along(constants["temperature"], _rank(shape))
    excess = _excess(graph, graph.apply("Neg", graph.apply("Abs", x)), tau)
    return graph.add(graph.apply("Relu", x), excess)


def _smooth_n(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    low, high = (graph.along(corner, _rank(shape)) for corner in constants["corners"])
    two = graph.constant(2.0)
    above = graph.mul(two, _softplus(graph, graph.sub(x, high), shape, constants))
    below = graph.mul(two, _softplus(graph, graph.sub(low, x), shape, constants))
    return graph.sub(graph.sub(above, below), x)


def _sin_cos(graph: Graph, x: str, shape: Shape, constants: Constants) -> str:
    omega = graph.along(constants["frequency"], _rank(shape))
    phase = graph.mul(omega, x)
    first, second = (graph.div(graph.apply(name, phase), omega) for name in ("Cos", "Sin"))
    return join_pairs(graph, first, second, (2 * shape[0], *shape[1:]))


# What writes each activation function, by its name.
ACTIVATIONS: Mapping[str, Callable[[Graph, str, Shape, Constants], str]] = {
    "absolute": _same("Abs"),
    "beta_abs": _beta_abs,
    "grafted": _grafted,
    "group_sort": _group_sort,
    "householder": _householder,
    "householder2": _householder2,
    "identity": _same("Identity"),
    "linear_spline": _linear_spline,
    "n_activation": _n_activation,
    "norm_pair": _norm_pair,
    "norm_pool": _norm_pool,
    "relu": _same("Relu"),
    "sin_cos": _sin_cos,
    "smooth_abs": _smooth_abs,
    "smooth_householder": _smooth_householder,
    "smooth_maxmin": _smooth_maxmin,
    "smooth_n": _smooth_n,
    "softplus": _softplus,
    "tanh": _same("Tanh"),
    **TORCH_ACTIVATIONS,
}
