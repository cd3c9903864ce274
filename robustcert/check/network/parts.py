"""Operations whose norm is proved of the whole, written as sequences of simpler ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from robustcert.check.network.operation import MAX_SIZE, Operation
from robustcert.check.network.rules import RULES, inner_constants, linear_of
from robustcert.check.reader import UnreadableError


def _chain(operation: Operation, steps: list[tuple], where: str, label: str = "") -> tuple:
    # Operations from steps (kind, options, tensors); the first takes the input of the whole.
    found, shape = [], operation.input_shape
    for i, (kind, options, tensors) in enumerate(steps):
        outputs = RULES[kind](options, tensors, shape, where)
        path = f"{operation.path}/{label}{i}"
        made = Operation(kind, operation.name, path, options, tensors, shape, outputs)
        found.append(replace(made, parts=PARTS[kind](made, where)) if kind in PARTS else made)
        shape = outputs
    return tuple(found)


def _first_steps(operation: Operation, weight: str, linear: tuple[str, dict[str, Any]]) -> list:
    tensors = operation.tensors
    bias = {"bias": tensors["bias"]} if "bias" in tensors else {}
    kind, options = linear
    return [
        (kind, options, {"weight": tensors[weight], **bias}),
        ("activation", operation.options["activation"], inner_constants(tensors)),
    ]


def _sandwich_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    back = operation.tensors["outer"].swapaxes(0, 1)
    size = list(back.shape[2:])
    first, last = (_on_torus(size, padding) for padding in ([0, 0], [n - 1 for n in size]))
    steps = _first_steps(operation, "inner", first)
    # The transpose reads backwards.
    steps.append((*last, {"weight": np.flip(back, tuple(range(2, back.ndim)))}))
    return _chain(operation, steps, where)


def _on_torus(size: list[int], padding: list[int]) -> tuple[str, dict[str, Any]]:
    # Kind and options of a map with a kernel of this size, that of its input; dense for none.
    if not size:
        return "dense", {}
    sizes = {"input_size": size, "output_size": size}
    return "circular_convolution", {**sizes, "stride": [1, 1], "padding": padding}


def _residual_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    weight, scale = operation.tensors["weight"], operation.tensors["scale"]
    padding = operation.options["padding"]
    steps = _first_steps(operation, "weight", linear_of(weight, padding))
    steps += [("affine", {}, {"scale": scale, "shift": 0 * scale})] * 2
    # The transpose of a convolution: channels exchanged, kernels turned around.
    back = np.flip(weight.swapaxes(0, 1), tuple(range(2, weight.ndim)))
    linear = linear_of(weight, *(k - 1 - padding for k in weight.shape[2:]))
    # Doubling a float is exact, unless it overflows.
    with np.errstate(over="ignore"):
        twice = -2 * back
    if not np.isfinite(twice).all():
        raise UnreadableError(f"{where}: a weight is too large")
    steps.append((*linear, {"weight": twice}))
    branch = _chain(operation, steps, where, "1.")
    path, shape = f"{operation.path}/0", operation.input_shape
    return (Operation("sum", operation.name, path, {}, {}, shape, shape, ((), branch)),)


def _skew_series_parts(operation: Operation, where: str) -> tuple[Operation, ...]:
    # x + s_1 A (x + s_2 A (x + ...)), from the inside to the outside.
    tensors, shape = operation.tensors, operation.input_shape
    weight = tensors["weight"]
    linear = linear_of(weight, *(k // 2 for k in weight.shape[2:]))
    ones = np.ones(shape[0], weight.dtype)
    found: tuple[Operation, ...] = ()
    for place, scale in reversed(list(enumerate(tensors["scales"]))):
        steps: list[tuple] = [(*linear, {"weight": weight})]
        steps.append(("affine", {}, {"scale": scale * ones, "shift": 0 * ones}))
        branch = (*found, *_chain(operation, steps, where, f"{place}.1."))
        path = f"{operation.path}/{place}"
        found = (Operation("sum", operation.name, path, {}, {}, shape, shape, ((), branch)),)
    if "bias" in tensors:
        constants = {"scale": ones, "shift": tensors["bias"]}
        found += _chain(operation, [("affine", {}, constants)], where, "bias.")
    return found


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
    if math.prod(shape) > MAX_SIZE:
        raise UnreadableError(f"{where}: the wrapped input is too large")
    outputs = RULES["convolution"](sliding, operation.tensors, shape, where)
    path, tensors = f"{operation.path}/1", operation.tensors
    return wrap, Operation("convolution", operation.name, path, sliding, tensors, shape, outputs)


# The function that gives the parts of each of these kinds.
PARTS: Mapping[str, Callable[[Operation, str], tuple[Operation, ...]]] = {
    "sandwich": _sandwich_parts,
    "residual_block": _residual_parts,
    "skew_series": _skew_series_parts,
    "circular_convolution": _circular_parts,
}
