"""Folded networks in ball arithmetic: the real-valued function, for tests."""

import math
from typing import Any

import torch
from flint import arb
from torch import Tensor

from helpers.references import REFERENCES, balls
from robustcert.network.activation import Activation
from robustcert.network.branches import Sum
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation

Shape = tuple[int, ...]


def evaluate(network: PlainNetwork, x: Tensor) -> list[Any]:
    """The real logits at one input, each in a ball of the working precision."""
    assert tuple(x.shape) == tuple(network.input_shape)
    z, shape = balls(x), tuple(x.shape)
    for operation in network.operations:
        z, shape = apply(operation, z, shape)
    return z


def apply(operation: Operation, z: list[Any], shape: Shape) -> tuple[list[Any], Shape]:
    """One operation on a flat list of balls of the given shape."""
    output = operation.output_shape(shape)
    positions = math.prod(output[1:])
    if isinstance(operation, Flatten):
        return z, output
    if isinstance(operation, Sum):
        branches = [z] * len(operation.branches)
        for k, branch in enumerate(operation.branches):
            inner = shape
            for step in branch:
                branches[k], inner = apply(step, branches[k], inner)
        return [sum(parts, arb(0)) for parts in zip(*branches, strict=True)], output
    if isinstance(operation, Affine):
        scale, shift = (_per_entry(c, shape) for c in (operation.scale, operation.shift))
        return [a * x + b for a, x, b in zip(scale, z, shift, strict=True)], output
    if isinstance(operation, Activation):
        reference = REFERENCES[operation.function.__name__]
        columns = [reference(z[p::positions], operation.constants) for p in range(positions)]
        return [y for feature in zip(*columns, strict=True) for y in feature], output
    # Linear: a zero-padded convolution has one weight, or none, between an input and an output.
    constants = operation.tensors()
    bias = constants.get("bias", torch.zeros(output[0]))
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    free = Dense(constants["weight"]) if isinstance(operation, Dense) else _without_bias(operation)
    rows = free(impulses).flatten(1).T
    return [
        sum((w * x for w, x in zip(balls(row), z, strict=True)), b)
        for row, b in zip(rows, _per_entry(bias, output), strict=True)
    ], output


def norm(values: list[Any]) -> Any:
    """Euclidean length of a list of balls."""
    return sum((v * v for v in values), arb(0)).sqrt()


def distance(computed: Tensor, real: list[Any]) -> Any:
    """Euclidean distance of floats from balls."""
    return norm([a - b for a, b in zip(balls(computed), real, strict=True)])


def _per_entry(constant: Tensor, shape: Shape) -> list[Any]:
    return balls(constant.repeat_interleave(math.prod(shape) // len(constant)))


def _without_bias(operation: Any) -> Operation:
    return type(operation)(**{**vars(operation), "bias": None})
