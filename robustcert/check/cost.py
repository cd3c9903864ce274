"""How long samples of a check take on one core: products counted, over a speed.

It decides which work is begun in the time that is left, and what ``certify`` tells of a check in
advance. Nothing that is proved depends on it.
"""

import math
from collections.abc import Sequence

import numpy as np

from robustcert.check.exact_products import digit_bits
from robustcert.check.fixed_point import binary_places
from robustcert.check.forward.exact import KEPT_PLACES, MAX_PLACES
from robustcert.check.forward.torus import ON_TORUS, frequency_count
from robustcert.check.network.operation import Operation, walk
from robustcert.check.reader import Array

# Speeds of one core of an Intel Xeon of 2.1 GHz: products a second in float64 and in integers.
FLOAT_SPEED, EXACT_SPEED = 3.5e9, 4e10
# Seconds in integers for a digit of a weight, for one of a value, and for a value of an activation.
WEIGHT_SECONDS, VALUE_SECONDS, ACTIVATION_SECONDS = 2.5e-8, 1e-7, 1e-6
# Binary places of an input, a byte over 255 in float32, and bits before the point.
INPUT_PLACES, HEAD_BITS = 32, 8
# Number of values of a tensor, about, whose binary places are counted.
MAX_LOOKED_AT = 2**12


def float_seconds(operations: Sequence[Operation]) -> float:
    """Time of the evaluation of a sample in float64, with its errors."""
    # The products of absolute values are evaluated too.
    return sum(2 * _products(op) for op in walk(operations)) / FLOAT_SPEED


def exact_seconds(operations: Sequence[Operation]) -> float:
    """Time of the evaluation of a sample in integers."""
    return _exactly(operations, INPUT_PLACES)[0]


def _products(operation: Operation) -> int:
    # Of one sample.
    if operation.kind == "reflection":
        rows, columns, *kernel = operation.tensors["weight"].shape
        points = frequency_count(operation)
        # V' and V at all positions, the change of basis, and complex inverses.
        return 2 * points * (2 * rows * math.prod(kernel) + 2 * points + columns) * columns
    if operation.kind == "orthogonal_convolution":
        rows, columns = operation.tensors["weight"].shape[:2]
        points = frequency_count(operation)
        # The change of basis, and complex blocks.
        return 4 * points * (points * (rows + columns) + rows * columns)
    if operation.kind not in ("dense", "convolution"):
        return 0
    weight = operation.tensors["weight"]
    return math.prod(weight.shape[1:]) * math.prod(operation.output_shape)


def _exactly(operations: Sequence[Operation], places: int) -> tuple[float, int]:
    # The time of operations in turn, and the binary places of their outputs.
    seconds = 0.0
    for operation in operations:
        inside = [*operation.branches, *([operation.parts] if operation.parts else [])]
        if inside:
            found = [_exactly(branch, places) for branch in inside]
            seconds += sum(spent for spent, _ in found)
            places = max(finer for _, finer in found)
        elif operation.kind in ("dense", "convolution"):
            weight = operation.tensors["weight"]
            finer, bits = _places(weight), digit_bits(math.prod(weight.shape[1:]))
            of_weight, of_value = (1 + (k + HEAD_BITS) // bits for k in (finer, places))
            products = 2 * _products(operation) * of_weight * of_value
            values = math.prod(operation.input_shape) + math.prod(operation.output_shape)
            seconds += products / EXACT_SPEED + weight.size * of_weight * WEIGHT_SECONDS
            seconds += values * of_value * VALUE_SECONDS
            places += finer
        elif operation.kind in ON_TORUS:
            # Its values are float64.
            seconds += 2 * _products(operation) / FLOAT_SPEED
            places = KEPT_PLACES
        elif operation.kind == "affine":
            places += _places(operation.tensors["scale"])
        elif operation.kind == "activation":
            seconds += math.prod(operation.output_shape) * ACTIVATION_SECONDS
        places = places if places <= MAX_PLACES else KEPT_PLACES
    return seconds, places


def _places(values: Array) -> int:
    # Binary places of some of the values.
    some = values.reshape(-1)[:: max(1, values.size // MAX_LOOKED_AT)]
    return binary_places(some.astype(np.float64))
