"""The network of a certificate: its operations, their shapes and its digest."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robustcert.check.activations.kind import slopes_of
from robustcert.check.activations.table import KINDS
from robustcert.check.reader import (
    Array,
    UnreadableError,
    fail,
    items,
    keys,
    show,
    text,
    whole,
)

Shape = tuple[int, ...]

# Operations and branches of sums, which all cost a step for every batch of samples.
MAX_OPERATIONS = 5000
# Values of one sample after all operations together.
MAX_VALUES = 2**28
MAX_PIECES = 2**14
MAX_DEPTH = 20
MAX_SIDE = 2**15
MAX_VALUE = 2**24
MAX_READS = 2**27


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation with the shapes that it maps between; tensors are those of the file."""

    kind: str
    name: str
    path: str
    options: dict[str, Any]
    tensors: dict[str, Array]
    input_shape: Shape
    output_shape: Shape
    branches: tuple[tuple["Operation", ...], ...] = ()
    # The same map as a sequence of simpler ones, for the kinds that are bounded as a whole.
    parts: tuple["Operation", ...] = ()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"operation {self.path} ({show(self.name)}, {self.kind})"

    def wide(self, key: str) -> Array:
        """A tensor as float64, which holds float32 exactly; not to be written to."""
        return self.tensors[key].astype(np.float64, copy=False)


@dataclass(frozen=True)
class Window:
    """How a convolution slides: per dimension, (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @staticmethod
    def of(operation: Operation) -> "Window":
        """The window of a convolution that has been read."""
        height, width = operation.tensors["weight"].shape[2:]
        options = operation.options
        strides, paddings, dilations = (
            (options[key][0], options[key][1]) for key in ("stride", "padding", "dilation")
        )
        return Window((height, width), strides, paddings, dilations, options["groups"])


@dataclass
class _Reader:
    tensors: dict[str, Array]
    used: set[str] = field(default_factory=set)
    count: int = 0
    values: int = 0

    def sequence(
        self, described: Any, prefix: str, shape: Shape, depth: int
    ) -> tuple[tuple[Operation, ...], Shape]:
        operations = []
        for i, entry in enumerate(items(described, f"operations {prefix}")):
            operation = self.operation(entry, f"{prefix}{i}", shape, depth)
            operations.append(operation)
            shape = operation.output_shape
        return tuple(operations), shape

    def operation(self, entry: Any, path: str, shape: Shape, depth: int) -> Operation:
        where = f"operation {path}"
        self.add(1, where)
        if depth > MAX_DEPTH:
            raise UnreadableError(f"{where}: sums nested more than {MAX_DEPTH} deep")
        keys(entry, where, {"kind", "name", "options", "tensors"}, {"branches"})
        kind, name = text(entry["kind"], where), text(entry["name"], where)
        where = f"{where} ({show(name)})"
        options = keys(entry["options"], where, set())
        tensors = self.take(entry["tensors"], path, where)
        if ("branches" in entry) != (kind == "sum"):
            raise UnreadableError(f"{where}: branches belong to a sum, and to nothing else")
        if kind == "sum":
            if options or tensors:
                raise UnreadableError(f"{where}: a sum has no options and no tensors")
            described = items(entry["branches"], where)
            self.add(len(described), where)
            read = [
                self.sequence(branch, f"{path}.branch{b}.", shape, depth + 1)
                for b, branch in enumerate(described)
            ]
            if not read or any(out != read[0][1] for _, out in read):
                raise UnreadableError(f"{where}: its branches do not have one output shape")
            branches, outputs = tuple(ops for ops, _ in read), read[0][1]
            return Operation(kind, name, path, {}, {}, shape, outputs, branches)
        rule = RULES.get(kind)
        if rule is None:
            raise UnreadableError(f"{where}: unknown operation {show(kind)}")
        outputs = rule(options, tensors, shape, where)
        if any(n < 1 for n in outputs) or math.prod(outputs) > MAX_VALUE:
            raise UnreadableError(f"{where}: output shape {outputs} is empty or too large")
        self.values += math.prod(outputs)
        if self.values > MAX_VALUES:
            raise UnreadableError(f"{where}: more than {MAX_VALUES} values of a sample so far")
        found = Operation(kind, name, path, options, tensors, shape, outputs)
        if kind not in PARTS:
            return found
        parts = PARTS[kind](found, where)
        if parts[-1].output_shape != outputs:
            raise UnreadableError(f"{where}: its parts do not fit together")
        return replace(found, parts=parts)

    def add(self, count: int, where: str) -> None:
        """Count operations and branches."""
        self.count += count
        if self.count > MAX_OPERATIONS:
            raise UnreadableError(f"{where}: more than {MAX_OPERATIONS} operations and branches")

    def take(self, names: Any, path: str, where: str) -> dict[str, Array]:
        taken = {}
        for key, name in keys(names, where, set()).items():
            if name != f"{path}.{key}" or name not in self.tensors:
                raise UnreadableError(f"{where}: no tensor {show(name)} for {show(key)}")
            array = self.tensors[name]
            if array.dtype.kind != "f":
                raise UnreadableError(f"{where}: {show(key)} is not floating point")
            if not np.isfinite(array).all():
                raise UnreadableError(f"{where}: {show(key)} contains NaN or infinity")
            self.used.add(name)
            taken[key] = array
        return taken


def read_network(described: Any, tensors: dict[str, Array]) -> tuple[Operation, ...]:
    """The operations of ``certificate.json`` with their tensors, every shape checked."""
    keys(described, "network", {"input_shape", "digest", "operations"}, set())
    sizes = items(described["input_shape"], "network input_shape")
    if not 1 <= len(sizes) <= 4:
        raise fail("network input_shape", "1 to 4 sizes", sizes)
    shape = tuple(whole(n, "network input_shape", 1, MAX_VALUE) for n in sizes)
    if math.prod(shape) > MAX_VALUE:
        raise fail("network input_shape", f"at most {MAX_VALUE} values", sizes)
    reader = _Reader(tensors)
    operations, outputs = reader.sequence(described["operations"], "", shape, 0)
    unused = sorted(tensors.keys() - reader.used)
    if unused:
        raise UnreadableError(f"network.safetensors: no operation uses {show(unused[0])}")
    if not operations or len(outputs) != 1 or outputs[0] < 2:
        raise UnreadableError(f"network: expected at least two logits, got outputs {outputs}")
    return operations


def digest(input_shape: Shape, operations: tuple[Operation, ...]) -> str:
    """SHA-256 over all definitions and little-endian constants, in order."""
    total = hashlib.sha256(json.dumps(list(input_shape)).encode())
    for line, tensors in _walk(operations):
        total.update(json.dumps(line, sort_keys=True).encode())
        for key in sorted(tensors):
            total.update(key.encode())
            total.update(np.ascontiguousarray(tensors[key]).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _walk(operations: tuple[Operation, ...]) -> Iterator[tuple[dict[str, Any], dict[str, Array]]]:
    for op in operations:
        shapes = {key: [array.dtype.name, *array.shape] for key, array in op.tensors.items()}
        line = {"kind": op.kind, **op.options, "shapes": shapes}
        # Without their number, what follows a sum could be one branch more.
        yield line | ({"branches": len(op.branches)} if op.kind == "sum" else {}), op.tensors
        for branch in op.branches:
            yield {"branch": len(branch)}, {}
            yield from _walk(branch)


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
    ) > (MAX_VALUE):
        raise UnreadableError(f"{where}: the padded input is too large")
    if math.prod(sides) * math.prod(weight.shape[2:]) * shape[0] > MAX_READS:
        raise UnreadableError(f"{where}: its windows read too many values")
    return (weight.shape[0], sides[0], sides[1])


def _affine(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), {"scale", "shift"}))
    # A shift may be one for every entry.
    for key, array in tensors.items():
        if array.shape != (shape[0],) and (key, array.shape) != ("shift", shape):
            raise fail(f"{where} {key}", f"shape ({shape[0]},)", array.shape)
    return shape


def _flatten(options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str) -> Shape:
    _names(options, tensors, where, (set(), set()))
    return (math.prod(shape),)


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
        whole(value, f"{where} {key}", 0, MAX_VALUE)
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
    # The tensors but those of the activation, which must have slopes in [0, 1] on each entry.
    inside = keys(options["activation"], f"{where} activation", set())
    constants = _inner_constants(tensors)
    if _activation(inside, constants, hidden, where) != hidden:
        raise UnreadableError(f"{where}: its activation changes the shape")
    wide = {key: array.astype(np.float64) for key, array in constants.items()}
    slopes = slopes_of(inside["function"], wide)
    if slopes is None or slopes[0] < 0 or slopes[1] > 1:
        raise UnreadableError(f"{where}: {inside['function']} has other slopes than 0 to 1")
    return {key: array for key, array in tensors.items() if not key.startswith("activation.")}


def _inner_constants(tensors: dict[str, Array]) -> dict[str, Array]:
    prefix = "activation."
    return {k.removeprefix(prefix): array for k, array in tensors.items() if k.startswith(prefix)}


def _sandwich(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    keys(options, f"{where} options", {"activation"}, set())
    inner, outer, psi = (tensors.get(key) for key in ("inner", "outer", "multiplier"))
    if inner is None or inner.ndim != 2 or outer is None or psi is None or len(shape) != 1:
        raise UnreadableError(f"{where}: no inner, outer and multiplier, or inputs {shape}")
    rows = inner.shape[:1]
    own = _slope_activation(options, tensors, rows, where)
    keys(own, f"{where} tensors", {"inner", "outer", "multiplier"}, {"bias"})
    fits = inner.shape == (*rows, shape[0]) and outer.ndim == 2 and outer.shape[:1] == rows
    if rows[0] < 1 or not fits or psi.shape != rows:
        raise UnreadableError(f"{where}: shapes {inner.shape}, {outer.shape} and {psi.shape}")
    if not ((psi >= 2.0**-64) & (psi <= 2.0**64)).all():
        raise UnreadableError(f"{where}: a multiplier is not between 2^-64 and 2^64")
    _check_bias(tensors, rows[0], where)
    return outer.shape[1:]


def _residual_block(
    options: dict[str, Any], tensors: dict[str, Array], shape: Shape, where: str
) -> Shape:
    keys(options, f"{where} options", {"activation", "padding"}, set())
    padding = whole(options["padding"], f"{where} padding", 0, MAX_SIDE)
    weight, scale = tensors.get("weight"), tensors.get("scale")
    if weight is None or scale is None or weight.ndim not in (2, 4):
        raise UnreadableError(f"{where}: no weight and scale")
    linear, inside = _linear_of(weight, padding)
    bias = {"bias": tensors["bias"]} if "bias" in tensors else {}
    if len(shape) != weight.ndim - 1:
        raise UnreadableError(f"{where}: inputs {shape} for a weight {weight.shape}")
    hidden = RULES[linear](inside, {"weight": weight, **bias}, shape, where)
    own = _slope_activation(options, tensors, hidden, where)
    keys(own, f"{where} tensors", {"weight", "scale"}, {"bias"})
    if scale.shape != weight.shape[:1] or any(padding >= k for k in weight.shape[2:]):
        raise UnreadableError(f"{where}: a scale {scale.shape}, or a padding of {padding}")
    return shape


def _linear_of(weight: Array, *padding: int) -> tuple[str, dict[str, Any]]:
    # Kind and options of a dense map, or of a convolution of stride 1.
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


# Maps that are bounded as a whole, as a sequence of simpler ones.


def _chain(operation: Operation, steps: list[tuple], where: str, label: str = "") -> tuple:
    # Steps (kind, options, tensors) from the input of the operation on.
    found, shape = [], operation.input_shape
    for i, (kind, options, tensors) in enumerate(steps):
        outputs = RULES[kind](options, tensors, shape, where)
        path = f"{operation.path}/{label}{i}"
        found.append(Operation(kind, operation.name, path, options, tensors, shape, outputs))
        shape = outputs
    return tuple(found)


def _first_steps(operation: Operation, weight: str, linear: tuple[str, dict[str, Any]]) -> list:
    tensors = operation.tensors
    bias = {"bias": tensors["bias"]} if "bias" in tensors else {}
    kind, options = linear
    return [
        (kind, options, {"weight": tensors[weight], **bias}),
        ("activation", operation.options["activation"], _inner_constants(tensors)),
    ]


def _sandwich_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    steps = _first_steps(operation, "inner", ("dense", {}))
    steps.append(("dense", {}, {"weight": operation.tensors["outer"].T}))
    return _chain(operation, steps, where)


def _residual_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    weight, scale = operation.tensors["weight"], operation.tensors["scale"]
    padding = operation.options["padding"]
    steps = _first_steps(operation, "weight", _linear_of(weight, padding))
    steps += [("affine", {}, {"scale": scale, "shift": 0 * scale})] * 2
    # The transpose of a convolution: channels exchanged, kernels turned around.
    back = np.flip(weight.swapaxes(0, 1), tuple(range(2, weight.ndim)))
    linear = _linear_of(weight, *(k - 1 - padding for k in weight.shape[2:]))
    # Twice a float is one, unless it overflows.
    with np.errstate(over="ignore"):
        twice = -2 * back
    if not np.isfinite(twice).all():
        raise UnreadableError(f"{where}: a weight is too large")
    steps.append((*linear, {"weight": twice}))
    branch = _chain(operation, steps, where, "1.")
    path, shape = f"{operation.path}/0", operation.input_shape
    return (Operation("sum", operation.name, path, {}, {}, shape, shape, ((), branch)),)


def _circular_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    options, weight = operation.options, operation.tensors["weight"]
    places, periods = [], weight.shape[2:]
    for axis in (0, 1):
        stride, outputs = options["stride"][axis], options["output_size"][axis]
        reads = np.arange(stride * (outputs - 1) + periods[axis]) - options["padding"][axis]
        places.append(reads % periods[axis])
    shape = (weight.shape[1], len(places[0]), len(places[1]))
    path = f"{operation.path}/0"
    wrap = Operation(
        "wrap", operation.name, path, {"places": places}, {}, operation.input_shape, shape
    )
    sliding = {"stride": options["stride"], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    if math.prod(shape) > MAX_VALUE:
        raise UnreadableError(f"{where}: the wrapped input is too large")
    outputs = RULES["convolution"](sliding, operation.tensors, shape, where)
    path, tensors = f"{operation.path}/1", operation.tensors
    return wrap, Operation("convolution", operation.name, path, sliding, tensors, shape, outputs)


RULES = {
    "dense": _dense,
    "convolution": _convolution,
    "affine": _affine,
    "flatten": _flatten,
    "activation": _activation,
    "sandwich": _sandwich,
    "residual_block": _residual_block,
    "circular_convolution": _circular,
    "quadratics": _quadratics,
}
PARTS: Mapping[str, Callable[[Operation, str], tuple[Operation, ...]]] = {
    "sandwich": _sandwich_parts,
    "residual_block": _residual_parts,
    "circular_convolution": _circular_parts,
}
