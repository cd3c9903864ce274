"""Rules of every kind of operation: its options, its tensors, and the shape of its output."""

import math
from typing import Any

import numpy as np

from robustcert.check.activations.kind import slopes_of
from robustcert.check.activations.table import KINDS
from robustcert.check.network.operation import MAX_SIDE, MAX_SIZE, Shape
from robustcert.check.reader import (
    Array,
    UnreadableError,
    fail,
    hex_float,
    items,
    keys,
    show,
    text,
    whole,
)

# Maximum number of quadratics of all classes together.
MAX_PIECES = 2**14
# Maximum number of values that the windows of a convolution read of one sample.
MAX_READS = 2**27
# Maximum number of values of the matrices of a map on a torus, and largest ridge of a reflection.
MAX_MATRICES, MAX_RIDGE = 2**27, 2.0**20
# Maximum number of terms of a skew series, each a branch inside the one before.
MAX_TERMS = 40
# What makes the blocks of an orthogonal convolution of a kernel.
RULES_OF_BLOCKS = ("exponential", "cayley", "polar")
# Maximum number of dimensions of one sample.
MAX_DIMENSIONS = 8


def _names(
    options: dict[str, Any], tensors: dict[str, Array], where: str, known: tuple[set[str], set[str]]
) -> None:
    keys(options, f"{where} options", known[0], set())
    keys(tensors, f"{where} tensors", known[1], {"bias"} if "weight" in known[1] else set())


def _check_bias(tensors: dict[str, Array], outputs: int, where: str) -> None:
    if "bias" in tensors and tensors["bias"].shape != (outputs,):
        raise fail(f"{where} bias", f"shape ({outputs},)", tensors["bias"].shape)


def _dense(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), {"weight"}))
    weight = tensors["weight"]
    if weight.ndim != 2 or weight.shape[1] != shape[-1] or weight.shape[0] < 1:
        raise fail(f"{where} weight", f"shape (m, {shape[-1]})", weight.shape)
    _check_bias(tensors, weight.shape[0], where)
    return (*shape[:-1], weight.shape[0])


def _convolution(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    geometry = {"stride": 1, "padding": 0, "dilation": 1}
    _names(options, tensors, where, ({*geometry, "groups"}, {"weight"}))
    for key, least in geometry.items():
        if len(items(options[key], f"{where} {key}")) != 2:
            raise fail(f"{where} {key}", "two integers", options[key])
        for value in options[key]:
            whole(value, f"{where} {key}", least, MAX_SIDE)
    groups = whole(options["groups"], f"{where} groups", 1, MAX_SIDE)
    weight = tensors["weight"]
    if (
        len(shape) != 3
        or weight.ndim != 4
        or 0 in weight.shape
        or weight.shape[1] * groups != shape[0]
        or weight.shape[0] % groups
    ):
        raise UnreadableError(
            f"{where}: a weight {weight.shape} with {groups} groups does not fit inputs {shape}"
        )
    _check_bias(tensors, weight.shape[0], where)
    sides = []
    for axis in (0, 1):
        stride, padding, dilation = (options[key][axis] for key in geometry)
        reach = dilation * (weight.shape[2 + axis] - 1) + 1
        padded = shape[1 + axis] + 2 * padding
        if padded > MAX_SIDE or reach > padded:
            raise UnreadableError(f"{where}: a window of {reach} in a padded side of {padded}")
        sides.append((padded - reach) // stride + 1)
    if shape[0] * math.prod(
        n + 2 * p for n, p in zip(shape[1:], options["padding"], strict=True)
    ) > (MAX_SIZE):
        raise UnreadableError(f"{where}: the padded input is too large")
    if math.prod(sides) * math.prod(weight.shape[2:]) * shape[0] > MAX_READS:
        raise UnreadableError(f"{where}: its windows read too many values")
    return (weight.shape[0], sides[0], sides[1])


def _affine(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), {"scale", "shift"}))
    # The shift may have one value for every entry.
    for key, array in tensors.items():
        if array.shape != (shape[0],) and (key, array.shape) != ("shift", shape):
            raise fail(f"{where} {key}", f"shape ({shape[0]},)", array.shape)
    return shape


def _flatten(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), set()))
    return (math.prod(shape),)


def _reshape(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, ({"shape"}, set()))
    wanted = items(options["shape"], f"{where} shape")
    if not 1 <= len(wanted) <= MAX_DIMENSIONS:
        raise fail(f"{where} shape", f"1 to {MAX_DIMENSIONS} sizes", wanted)
    sizes = tuple(whole(n, f"{where} shape", 1, MAX_SIZE) for n in wanted)
    if math.prod(sizes) != math.prod(shape):
        raise UnreadableError(f"{where}: the entries of {shape} do not fill {sizes}")
    return sizes


def _gather(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), {"index"}))
    index = tensors["index"]
    if index.dtype.kind != "i" or not 1 <= index.ndim <= MAX_DIMENSIONS or not index.size:
        raise fail(f"{where} index", f"integers of 1 to {MAX_DIMENSIONS} sizes", index.shape)
    if index.min() < -1 or index.max() >= math.prod(shape):
        raise UnreadableError(f"{where}: an index is not from -1 to {math.prod(shape) - 1}")
    return index.shape


def _activation(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    function = text(options.get("function"), f"{where} function")
    kind = KINDS.get(function)
    if kind is None:
        raise UnreadableError(
            f"{where}: unknown activation {show(function)}, of which nothing is proved here: those "
            "that are known stand in robustcert/check/activations"
        )
    integers = {key: value for key, value in options.items() if key != "function"}
    keys(integers, f"{where} options", set(kind.integers), set())
    keys(tensors, f"{where} tensors", set(kind.tensors), set())
    for key, value in integers.items():
        whole(value, f"{where} {key}", 0, MAX_SIZE)
    constants = {key: array.astype(np.float64) for key, array in tensors.items()}
    try:
        features = kind.features(shape[0], integers, constants)
        if kind.shape is not None:
            return kind.shape(shape, integers)
    except ValueError as error:
        raise UnreadableError(f"{where}, {function}: {error}") from None
    return (features, *shape[1:])


def _slope_activation(
    options: dict[str, Any], tensors: dict[str, Array], hidden: Shape, where: str
) -> dict[str, Array]:
    # The tensors without those of the activation, whose slopes have to be in [0, 1] on each entry.
    inside = keys(options["activation"], f"{where} activation", set())
    constants = inner_constants(tensors)
    if _activation(inside, constants, hidden, where) != hidden:
        raise UnreadableError(f"{where}: its activation changes the shape")
    wide = {key: array.astype(np.float64) for key, array in constants.items()}
    slopes = slopes_of(inside["function"], wide)
    if slopes is None or slopes[0] < 0 or slopes[1] > 1:
        raise UnreadableError(f"{where}: {inside['function']} has other slopes than 0 to 1")
    return {key: array for key, array in tensors.items() if not key.startswith("activation.")}


def inner_constants(tensors: dict[str, Array]) -> dict[str, Array]:
    """Tensors of the activation inside an operation, under its own names."""
    prefix = "activation."
    return {k.removeprefix(prefix): array for k, array in tensors.items() if k.startswith(prefix)}


def _sandwich(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    keys(options, f"{where} options", {"activation"}, set())
    inner, outer, psi = (tensors.get(key) for key in ("inner", "outer", "multiplier"))
    if inner is None or outer is None or psi is None or inner.ndim != len(shape) + 1:
        raise UnreadableError(f"{where}: no inner, outer and multiplier, or inputs {shape}")
    # Dense maps of vectors, or kernels that are as large as the map.
    rows, kernel = inner.shape[:1], inner.shape[2:]
    if len(shape) not in (1, 3) or kernel != shape[1:]:
        raise UnreadableError(f"{where}: a weight {inner.shape} for inputs {shape}")
    own = _slope_activation(options, tensors, (*rows, *kernel), where)
    keys(own, f"{where} tensors", {"inner", "outer", "multiplier"}, {"bias"})
    fits = inner.shape[1] == shape[0] and outer.ndim == inner.ndim
    fits = fits and outer.shape[:1] == rows and outer.shape[2:] == kernel
    if rows[0] < 1 or not fits or psi.shape != rows:
        raise UnreadableError(f"{where}: shapes {inner.shape}, {outer.shape} and {psi.shape}")
    if not ((psi >= 2.0**-64) & (psi <= 2.0**64)).all():
        raise UnreadableError(f"{where}: a multiplier is not between 2^-64 and 2^64")
    _check_bias(tensors, rows[0], where)
    return (outer.shape[1], *kernel)


def _residual_block(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    keys(options, f"{where} options", {"activation", "padding"}, set())
    padding = whole(options["padding"], f"{where} padding", 0, MAX_SIDE)
    weight, scale = tensors.get("weight"), tensors.get("scale")
    if weight is None or scale is None or weight.ndim not in (2, 4):
        raise UnreadableError(f"{where}: no weight and scale")
    linear, inside = linear_of(weight, padding)
    bias = {"bias": tensors["bias"]} if "bias" in tensors else {}
    if len(shape) != weight.ndim - 1:
        raise UnreadableError(f"{where}: inputs {shape} for a weight {weight.shape}")
    hidden = RULES[linear](inside, {"weight": weight, **bias}, shape, where)
    own = _slope_activation(options, tensors, hidden, where)
    keys(own, f"{where} tensors", {"weight", "scale"}, {"bias"})
    if scale.shape != weight.shape[:1] or any(padding >= k for k in weight.shape[2:]):
        raise UnreadableError(f"{where}: a scale {scale.shape}, or a padding of {padding}")
    return shape


def _skew_series(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    keys(options, f"{where} options", set(), set())
    keys(tensors, f"{where} tensors", {"weight", "scales"}, {"bias"})
    weight, scales = tensors["weight"], tensors["scales"]
    if weight.ndim != 4 or any(k % 2 == 0 for k in weight.shape[2:]):
        raise UnreadableError(f"{where}: a weight {weight.shape} has no middle tap")
    linear, inside = linear_of(weight, *(k // 2 for k in weight.shape[2:]))
    if RULES[linear](inside, {"weight": weight}, shape, where) != shape:
        raise UnreadableError(f"{where}: a weight {weight.shape} changes the shape {shape}")
    if not np.array_equal(weight, -np.flip(weight.swapaxes(0, 1), (2, 3))):
        raise UnreadableError(f"{where}: its weight is not minus its own transpose")
    if scales.ndim != 1 or not 1 <= len(scales) <= MAX_TERMS or abs(scales).max() > 1:
        raise UnreadableError(f"{where}: expected 1 to {MAX_TERMS} scales from -1 to 1")
    _check_bias(tensors, shape[0], where)
    return shape


def linear_of(weight: Array, *padding: int) -> tuple[str, dict[str, Any]]:
    """Kind and options of a dense map, or of a convolution of stride 1, with a weight."""
    if weight.ndim == 2:
        return "dense", {}
    height, width = padding * (2 // len(padding))
    ones = {"stride": [1, 1], "dilation": [1, 1], "groups": 1}
    return "convolution", {**ones, "padding": [height, width]}


def _circular(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    least = {"input_size": 1, "output_size": 1, "stride": 1, "padding": 0}
    _names(options, tensors, where, (set(least), {"weight"}))
    for key in least:
        if len(items(options[key], f"{where} {key}")) != 2:
            raise fail(f"{where} {key}", "two integers", options[key])
        for value in options[key]:
            whole(value, f"{where} {key}", least[key], MAX_SIDE)
    weight = tensors["weight"]
    sizes = tuple(options["input_size"])
    if weight.ndim != 4 or 0 in weight.shape or shape != (weight.shape[1], *sizes):
        raise UnreadableError(f"{where}: a weight {weight.shape} does not fit inputs {shape}")
    for axis in (0, 1):
        period, stride = weight.shape[2 + axis], options["stride"][axis]
        fits = period % stride == 0 and sizes[axis] <= period <= MAX_SIDE
        if not fits or options["output_size"][axis] > period // stride:
            raise UnreadableError(f"{where}: period {period}, stride {stride} and sizes do not fit")
    _check_bias(tensors, weight.shape[0], where)
    return (weight.shape[0], *options["output_size"])


def _reflection(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    output = _on_torus(options, tensors, shape, where, "ridge")
    weight = tensors["weight"]
    # The norm of a reflection rests on its ridge not being negative.
    if not 0 <= hex_float(options["ridge"], f"{where} ridge") <= MAX_RIDGE:
        raise fail(f"{where} ridge", f"a number from 0 to {MAX_RIDGE}", options["ridge"])
    if weight.shape[0] < weight.shape[1]:
        raise UnreadableError(f"{where}: a weight {weight.shape} is no kernel of a reflection")
    return output


def _orthogonal(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    output = _on_torus(options, tensors, shape, where, "rule")
    weight = tensors["weight"]
    if options["rule"] not in RULES_OF_BLOCKS:
        raise fail(f"{where} rule", f"one of {', '.join(RULES_OF_BLOCKS)}", options["rule"])
    if options["rule"] == "exponential" and weight.shape[0] != weight.shape[1]:
        raise UnreadableError(f"{where}: a weight {weight.shape} has no exponential")
    return output


def _on_torus(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str, own: str
) -> Shape:
    sizes = ("input_size", "output_size", "period", "stride")
    _names(options, tensors, where, ({"outputs", own, *sizes}, {"weight"}))
    for key in sizes:
        if len(items(options[key], f"{where} {key}")) != 2:
            raise fail(f"{where} {key}", "two integers", options[key])
        for value in options[key]:
            whole(value, f"{where} {key}", 1, MAX_SIDE)
    weight, stride = tensors["weight"], options["stride"]
    if weight.ndim != 4 or 0 in weight.shape:
        raise UnreadableError(f"{where}: a weight {weight.shape} is no kernel")
    rows, columns = weight.shape[:2]
    # A reflection is a square of its rows.
    used, most = shape[0] * math.prod(stride), rows if own == "ridge" else columns
    outputs = whole(options["outputs"], f"{where} outputs", 1, rows)
    if len(shape) != 3 or shape[1:] != tuple(options["input_size"]) or used > most:
        raise UnreadableError(f"{where}: a weight {weight.shape} does not fit inputs {shape}")
    circle = []
    for d in (0, 1):
        period, side = options["period"][d], options["period"][d] // stride[d]
        fits = period % stride[d] == 0 and shape[1 + d] <= period
        if not fits or options["output_size"][d] > side or weight.shape[2 + d] > side:
            raise UnreadableError(f"{where}: period {period}, stride {stride} and sizes do not fit")
        circle.append(side)
    size = columns if own == "ridge" else rows
    if math.prod(circle) * max(size * columns, math.prod(circle)) > MAX_MATRICES:
        raise UnreadableError(f"{where}: its torus has too many frequencies")
    if math.prod(circle) * math.prod(weight.shape[2:]) * rows > MAX_READS:
        raise UnreadableError(f"{where}: its windows read too many values")
    _check_bias(tensors, outputs, where)
    return (outputs, *options["output_size"])


def _quadratics(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    _names(options, tensors, where, ({"classes"}, {"frame", "offset", "slope", "shift"}))
    classes = whole(options["classes"], f"{where} classes", 2, MAX_SIDE)
    frame = tensors["frame"]
    count, rank, width = frame.shape if frame.ndim == 3 else (0, 0, 0)
    if count < 1 or rank < 1 or count % classes or (width,) != shape:
        raise UnreadableError(
            f"{where}: frames {frame.shape} for {classes} classes do not fit inputs {shape}"
        )
    if count > MAX_PIECES:
        raise UnreadableError(f"{where}: {count} pieces, more than {MAX_PIECES}")
    sizes = {"offset": (count, rank), "slope": (count, width), "shift": (count,)}
    for key, expected in sizes.items():
        if tensors[key].shape != expected:
            raise fail(f"{where} {key}", f"shape {expected}", tensors[key].shape)
    return (classes,)


# The rule of every kind without branches, from options, tensors and input shape to output shape.
RULES = {
    "dense": _dense,
    "convolution": _convolution,
    "affine": _affine,
    "flatten": _flatten,
    "reshape": _reshape,
    "gather": _gather,
    "activation": _activation,
    "sandwich": _sandwich,
    "residual_block": _residual_block,
    "skew_series": _skew_series,
    "circular_convolution": _circular,
    "reflection": _reflection,
    "orthogonal_convolution": _orthogonal,
    "quadratics": _quadratics,
}


def joined(kind: str, options: dict[str, Any], outputs: list[Shape], where: str) -> Shape:
    """Output shape of an operation with branches: a sum, or a concatenation along an axis."""
    if kind == "sum":
        if options or any(shape != outputs[0] for shape in outputs):
            raise UnreadableError(f"{where}: options, or branches without one output shape")
        return outputs[0]
    keys(options, f"{where} options", {"axis"}, set())
    axis = whole(options["axis"], f"{where} axis", 0, len(outputs[0]) - 1)
    rests = [(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in outputs]
    if any(rest != rests[0] for rest in rests):
        raise UnreadableError(f"{where}: branches {outputs} do not fit along axis {axis}")
    return (*outputs[0][:axis], sum(shape[axis] for shape in outputs), *outputs[0][axis + 1 :])
