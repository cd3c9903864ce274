r"""What inputs are, and how their distance is measured.

A metric is a linear map S. The ball of radius r around x is :math:`\{x + S u : \lVert u \rVert_2 <
r\}`, so that the certified function is :math:`u \mapsto f(x + S u)` at u = 0. No inverse of S is
taken: a feature whose row of S is zero cannot change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from robustcert.network.linear import Affine, Convolution, Dense, Flatten
from robustcert.network.local_error import absolute_norm
from robustcert.network.operation import Operation, Shape
from robustcert.norms.scalars import UNIT, exact, gamma, round_up

Kind = Literal["images", "columns"]
Metric = Affine | Dense
# Underflow allowance of one product in float64.
_UNDERFLOW = Fraction(2) ** -1022
# Smallest size of a number of S that is not 0, whose squares and products do not underflow; the
# largest is its reciprocal.
MIN_SCALE = 2.0**-300


@dataclass(frozen=True, eq=False)
class InputSpace:
    """What inputs are, and how their distance is measured.

    Attributes:
        kind: ``images``, of values in [0, 1], or ``columns``, of any finite values.
        names: Names of the columns or channels; None if they have none.
        metric: S, from :func:`scaling` or :func:`factor`; None for the identity.
        ranges: Least and greatest value of each column or channel, to which attacks are clipped;
            nothing that is proved depends on them. None where none are stated.
    """

    kind: Kind = "images"
    names: tuple[str, ...] | None = None
    metric: Metric | None = None
    ranges: tuple[tuple[float, float], ...] | None = None


IMAGES = InputSpace()


def scaling(scale: Tensor) -> Affine:
    """The diagonal S of scales ``(C,)``, one for each channel or feature; 0 where it is frozen."""
    wide = _sized(scale.detach().to("cpu", torch.float64, copy=True))
    return Affine(wide, torch.zeros_like(wide), name="metric")


def factor(matrix: Tensor) -> Dense:
    """S as a matrix ``(D, k)`` for inputs of D features."""
    wide = _sized(matrix.detach().to("cpu", torch.float64, copy=True).contiguous())
    return Dense(wide, name="metric")


def _sized(values: Tensor) -> Tensor:
    sizes = values[values != 0].abs()
    if len(sizes) and not (sizes.min() >= MIN_SCALE and sizes.max() <= 1 / MIN_SCALE):
        raise ValueError(
            f"expected scales from {MIN_SCALE:g} to {1 / MIN_SCALE:g}, got {float(sizes.min()):g} "
            f"to {float(sizes.max()):g}: set norm.scale in other units"
        )
    return values


def directions(metric: Operation, input_shape: Shape) -> Shape:
    """Shape of u."""
    return (metric.weight.shape[1],) if isinstance(metric, Dense) else tuple(input_shape)


@dataclass(frozen=True, eq=False)
class Composed:
    """Linear operations in sequence as a single one, up to rounding.

    Attributes:
        operation: The single one, float64.
        input_shape: Shape of its input.
        loss: Bound on the norm of the difference from the exact composition.
    """

    operation: Operation
    input_shape: Shape
    loss: Fraction = Fraction(0)

    @property
    def bound(self) -> float:
        """Bound on the norm of the exact composition."""
        return round_up(exact(self.operation.lipschitz_bound(self.input_shape)) + self.loss)


def composed(
    metric: Operation, operations: Sequence[Operation], input_shape: Shape
) -> Iterator[Composed]:
    """S, then S followed by the first operation, by the first two, and so on.

    It ends after the first dense operation or convolution, and before whatever is not linear.
    """
    found: Composed | None = Composed(metric, directions(metric, input_shape))
    shape = tuple(input_shape)
    for operation in operations:
        assert found is not None
        yield found
        found = _after(found, operation, shape)
        if found is None:
            return
        shape = operation.output_shape(shape)
        if type(operation) in (Dense, Convolution):
            break
    if found is not None:
        yield found


def _after(found: Composed, operation: Operation, shape: Shape) -> Composed | None:
    """The composition with one operation more on inputs of ``shape``; None if it is not covered."""
    # By exact class: a subclass may compute something else.
    inner = found.operation
    if type(operation) is Flatten:
        return _flattened(found, shape)
    if type(operation) is Affine and operation.scale.dim() == 1:
        scale = operation.scale.double().cpu()
        largest = exact(float(scale.abs().max()))
        product: Operation
        if isinstance(inner, Affine):
            product = Affine(inner.scale * scale, inner.shift)
            size = exact(float(product.scale.abs().max()))
        else:
            assert isinstance(inner, Dense)
            product = Dense(inner.weight * scale[:, None])
            size = exact(absolute_norm(product.weight))
        return _rounded(product, found, largest, size, scale.numel() + _numel(inner))
    if type(operation) is Dense and len(shape) == 1:
        return _dense(found, operation.weight.double().cpu())
    if type(operation) is Convolution and isinstance(inner, Affine):
        weight = operation.weight.double().cpu()
        per_group = inner.scale.view(operation.groups, 1, -1, 1, 1)
        rows = weight.view(operation.groups, -1, *weight.shape[1:]) * per_group
        scaled = replace(operation, weight=rows.view(weight.shape), bias=None)
        size = exact(absolute_norm(scaled.weight))
        taps = weight.numel() * weight[0, 0].numel()
        return _rounded(scaled, found, exact(absolute_norm(weight)), size, taps)
    return None


def _numel(inner: Operation) -> int:
    return inner.weight.numel() if isinstance(inner, Dense) else 0


def _flattened(found: Composed, shape: Shape) -> Composed:
    inner = found.operation
    if not isinstance(inner, Affine) or len(shape) == 1:
        return found
    positions = 1
    for size in shape[1:]:
        positions *= size
    flat = inner.scale.repeat_interleave(positions)
    return Composed(Affine(flat, torch.zeros_like(flat)), (len(flat),), found.loss)


def _dense(found: Composed, weight: Tensor) -> Composed:
    inner = found.operation
    norm = exact(absolute_norm(weight))
    if isinstance(inner, Affine):
        product = Dense(weight * inner.scale)
        size = exact(absolute_norm(product.weight))
        return _rounded(product, found, norm, size, weight.numel())
    assert isinstance(inner, Dense)
    product = Dense(weight @ inner.weight)
    lengths = [exact(float(m.norm()) * (1 + 2.0**-20)) for m in (weight, inner.weight)]
    terms = weight.shape[1]
    error = gamma(terms + 1) * lengths[0] * lengths[1]
    error += product.weight.numel() * terms * _UNDERFLOW
    return Composed(product, found.input_shape, norm * found.loss + error)


def _rounded(
    product: Operation, before: Composed, norm: Fraction, size: Fraction, count: int
) -> Composed:
    """A product whose entries, ``count`` at most, were each rounded once, or lost to underflow."""
    loss = norm * before.loss + 2 * UNIT * size + count * _UNDERFLOW
    return Composed(product, before.input_shape, loss)
