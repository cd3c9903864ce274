"""Piecewise linear networks in exact arithmetic: labels, and distances at which they change.

A float is an integer times a power of two, and so is every sum and product of floats: with Python's
integers nothing is rounded. No code is shared with what proves certificates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.network.activation import Activation
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation

Integers = NDArray[np.object_]
# Steps past the place where the linear piece of a sample would tie, relative to its distance.
OVERSHOOTS = (1e-9, 1e-6, 1e-2, 0.5)


@dataclass(frozen=True)
class Dyadic:
    """The numbers ``integers / 2 ** places``."""

    integers: Integers
    places: int

    def at(self, places: int) -> Integers:
        """The integers of the same numbers with more places."""
        return self.integers * 2 ** (places - self.places)

    def __add__(self, other: "Dyadic") -> "Dyadic":
        places = max(self.places, other.places)
        return Dyadic(self.at(places) + other.at(places), places)

    def __mul__(self, other: "Dyadic") -> "Dyadic":
        return Dyadic(self.integers * other.integers, self.places + other.places)

    def __getitem__(self, rows: Any) -> "Dyadic":
        return Dyadic(self.integers[rows], self.places)


def dyadic(tensor: Tensor) -> Dyadic:
    """A tensor of floats as it is."""
    ratios = [value.as_integer_ratio() for value in tensor.double().flatten().tolist()]
    places = max((d.bit_length() - 1 for _, d in ratios), default=0)
    integers = np.empty(len(ratios), dtype=object)
    integers[:] = [n << (places + 1 - d.bit_length()) for n, d in ratios]
    return Dyadic(integers.reshape(tuple(tensor.shape)), places)


def logits(network: PlainNetwork, x: Tensor) -> Dyadic:
    """The real logits at inputs of shape ``(N, *input_shape)``, shape ``(N, C)``.

    Raises:
        NotImplementedError: the network has an operation that is not piecewise linear.
    """
    state, shape = dyadic(x.flatten(1)), tuple(network.input_shape)
    for operation in network.operations:
        output = operation.output_shape(shape)
        state, shape = _apply(operation, state, shape, output), output
    return state


def _apply(
    operation: Operation, x: Dyadic, shape: tuple[int, ...], output: tuple[int, ...]
) -> Dyadic:
    positions = math.prod(output[1:])
    if isinstance(operation, Flatten):
        return x
    if isinstance(operation, Affine):
        scale, shift = (_per_entry(c, shape) for c in (operation.scale, operation.shift))
        return x * scale + shift
    if isinstance(operation, Activation):
        name = operation.function.__name__
        if name == "relu":
            return Dyadic(np.maximum(x.integers, 0), x.places)
        if name == "group_sort":
            groups = (-1, shape[0] // 2, 2, math.prod(shape[1:]))
            ordered = np.sort(x.integers.reshape(groups), axis=2)
            return Dyadic(ordered.reshape(len(x.integers), -1), x.places)
        if name == "linear_spline":
            return _spline(x, positions, **operation.constants)
        raise NotImplementedError(name)
    if not isinstance(operation, Dense) and operation.kind != "convolution":
        raise NotImplementedError(operation.kind)
    # Between an input and an output of a convolution there is one weight, or none.
    free: Any = replace(operation, bias=None)  # type: ignore[call-arg]
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    matrix = dyadic(free(impulses).flatten(1))
    product = Dyadic(x.integers @ matrix.integers, x.places + matrix.places)
    bias = operation.tensors().get("bias")
    return product if bias is None else product + _per_entry(bias, output)


def _per_entry(constant: Tensor, shape: tuple[int, ...]) -> Dyadic:
    return dyadic(constant.repeat_interleave(math.prod(shape) // len(constant)))


def _spline(x: Dyadic, positions: int, slopes: Tensor, step: Tensor) -> Dyadic:
    half = slopes.shape[1] // 2
    slope, width = dyadic(slopes), dyadic(step)
    features = x.integers.shape[1] // positions
    rows = np.arange(features) if len(slopes) > 1 else np.zeros(features, dtype=int)
    rows = np.broadcast_to(np.repeat(rows, positions), x.integers.shape)
    piece = x.integers * 2**width.places // (width.integers.item() * 2**x.places)
    piece = np.clip(piece + half, 0, 2 * half - 1).astype(int)
    # The value at the left knot of each piece, in slopes times the step; 0 at the middle.
    sums = np.cumsum(slope.integers, axis=1)
    values = sums - slope.integers - sums[:, half - 1 : half]
    values = values - slope.integers * np.arange(-half, half).astype(object)
    intercepts = Dyadic(values * width.integers.item(), slope.places + width.places)
    return slope[rows, piece] * x + intercepts[rows, piece]


@dataclass(frozen=True)
class Truth:
    """What is true of samples of a network.

    Attributes:
        labels: The class whose real logit is the unique largest; -1 for a tie.
        breaks_at: A distance at which some input has another class, rounded up; infinite where
            none was found. A certified radius above it is false.
    """

    labels: list[int]
    breaks_at: list[float]

    def false(self, labels: list[int], radii: list[float]) -> int:
        """How many certificates, of those with a radius above 0, are false."""
        rows = zip(labels, radii, self.labels, self.breaks_at, strict=True)
        return sum(r > 0 and (label != true or r > most) for label, r, true, most in rows)


def truth(network: PlainNetwork, x: Tensor) -> Truth:
    """Labels of samples and distances of inputs of another class, both proved exactly."""
    labels = _labels(logits(network, x))
    breaks_at = [math.inf] * len(x)
    start = dyadic(x.flatten(1))
    for other in _neighbours(network, x.double()):
        moved = start + dyadic(-other.flatten(1))
        squares = (moved.integers**2).sum(axis=1)
        for row, label in enumerate(_labels(logits(network, other))):
            if label != labels[row]:
                distance = _root_up(Fraction(squares[row], 4**moved.places))
                breaks_at[row] = min(breaks_at[row], distance)
    return Truth(labels, breaks_at)


def _labels(values: Dyadic) -> list[int]:
    found = []
    for row in values.integers.tolist():
        first, second = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:2]
        found.append(first if row[first] > row[second] else -1)
    return found


def _neighbours(network: PlainNetwork, x: Tensor) -> Iterator[Tensor]:
    """Inputs past the nearest tie of each sample's linear piece with each rival."""
    inputs = x.clone().requires_grad_()
    values = network(inputs)
    own = values.argmax(1, keepdim=True)
    for rival in range(values.shape[1]):
        margin = (values.gather(1, own) - values[:, rival : rival + 1]).flatten()
        (gradient,) = torch.autograd.grad(margin.sum(), inputs, retain_graph=True)
        flat = gradient.flatten(1)
        # A square may underflow, and so the gradient is divided by its largest entry first.
        largest = flat.abs().amax(1, keepdim=True).clamp_min(1e-300)
        unit = flat / largest
        step = unit * margin.detach()[:, None] / largest / unit.square().sum(1, keepdim=True)
        for overshoot in OVERSHOOTS:
            move = (step * (1 + overshoot)).nan_to_num(0.0, 0.0, 0.0)
            yield x - move.view(x.shape)


def _root_up(square: Fraction) -> float:
    root = math.sqrt(square)
    while Fraction(root) ** 2 < square:
        root = math.nextafter(root, math.inf)
    return root
