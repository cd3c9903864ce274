"""Networks of two inputs and two classes, taken apart exactly: linear pieces, boundary, distance.

A piecewise linear network is linear on each cell of a subdivision of the plane into convex
polygons. Going through its operations, every cell is cut along the folds of the next activation,
which are straight lines within the cell. What is found is exact up to the rounding of float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.network.activation import Activation
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.network import PlainNetwork

# Polygons of a smaller area have no inside that could be told from rounding.
MIN_AREA = 1e-13


@dataclass(frozen=True)
class Piece:
    """A convex polygon on which logit 0 minus logit 1 is linear.

    Attributes:
        corners: Shape ``(V, 2)``, in order around it.
        gradient: Shape ``(2,)``.
        offset: Value of the linear function at the origin.
    """

    corners: Tensor
    gradient: Tensor
    offset: float


def linear_pieces(network: PlainNetwork, low: float = 0.0, high: float = 1.0) -> list[Piece]:
    """The linear pieces of a network on the square [low, high] x [low, high].

    Args:
        network: Two inputs, two logits; dense operations with ReLU, absolute values, MaxMin or
            N-activations.
        low: Least coordinate.
        high: Largest coordinate.

    Raises:
        ValueError: an operation is not piecewise linear, or its pieces are not known here; or
            distances are in a metric, and not those of the square.
    """
    if network.space.metric is not None:
        raise ValueError(
            "linear pieces of the plane are of its own l2 distance, got a metric: set norm.scale=1 "
            "norm.frozen=[]"
        )
    square = torch.tensor([[low, low], [high, low], [high, high], [low, high]]).double()
    # A cell is a polygon and the linear map [A b] from the plane to the current features.
    cells = [(square, torch.eye(2, 3, dtype=torch.float64))]
    for operation in network.operations:
        if isinstance(operation, Activation):
            cells = [cut for cell in cells for cut in _through_activation(operation, *cell)]
        elif type(operation) is Dense:
            weight, bias = operation.weight.double(), operation.bias
            cells = [(corners, _shifted(weight @ rows, bias)) for corners, rows in cells]
        elif type(operation) is Affine:
            scale, shift = operation.scale.double(), operation.shift
            cells = [(corners, _shifted(rows * scale[:, None], shift)) for corners, rows in cells]
        elif type(operation) is not Flatten:
            raise ValueError(f"no linear pieces are known for {operation.label}")
    differences = [(corners, rows[0] - rows[1]) for corners, rows in cells]
    return [Piece(corners, row[:2], float(row[2])) for corners, row in differences]


def boundary_segments(pieces: list[Piece]) -> Tensor:
    """Where the two logits tie: line segments, shape ``(S, 2, 2)``."""
    found = []
    for piece in pieces:
        value = piece.corners @ piece.gradient + piece.offset
        if value.min() < 0 < value.max():
            after = value.roll(-1)
            crosses = (value < 0) != (after < 0)
            share = (value / (value - after))[crosses, None]
            start, stop = piece.corners[crosses], piece.corners.roll(-1, 0)[crosses]
            found.append(start + share * (stop - start))
    return torch.stack(found) if found else torch.empty(0, 2, 2, dtype=torch.float64)


def distance_to_segments(x: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of points to the nearest of some segments, and the nearest point.

    Args:
        x: Shape ``(N, 2)``.
        segments: Shape ``(S, 2, 2)``.

    Returns:
        Shapes ``(N,)`` and ``(N, 2)``, float64.
    """
    points = x.double()
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    length2 = along.square().sum(1).clamp_min(1e-300)
    share = ((points[:, None] - start) * along).sum(2) / length2
    feet = start + share.clamp(0, 1)[:, :, None] * along
    distance, nearest = (points[:, None] - feet).norm(dim=2).min(1)
    return distance, feet[torch.arange(len(points)), nearest]


def cut(corners: Tensor, value: Tensor) -> Iterator[Tensor]:
    """The parts of a convex polygon where a linear function is above and where it is below 0.

    Args:
        corners: Shape ``(V, 2)``, in order.
        value: The function there, shape ``(V,)``.
    """
    for sign in (1.0, -1.0):
        inside = sign * value >= 0
        if inside.all():
            yield corners
            continue
        after, next_corners = value.roll(-1), corners.roll(-1, 0)
        kept = []
        for i in range(len(corners)):
            if inside[i]:
                kept.append(corners[i])
            if inside[i] != inside[(i + 1) % len(corners)]:
                share = value[i] / (value[i] - after[i])
                kept.append(corners[i] + share * (next_corners[i] - corners[i]))
        if len(kept) > 2 and area(torch.stack(kept)) > MIN_AREA:
            yield torch.stack(kept)


def area(corners: Tensor) -> float:
    """Area of a polygon, by the shoelace formula."""
    (x, y), (x_next, y_next) = corners.T, corners.roll(-1, 0).T
    return float((x * y_next - x_next * y).sum().abs()) / 2


def _shifted(rows: Tensor, shift: Tensor | None) -> Tensor:
    if shift is None:
        return rows
    return torch.cat([rows[:, :2], rows[:, 2:] + shift.double()[:, None]], dim=1)


def _through_activation(
    operation: Activation, corners: Tensor, rows: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The cells that a cell is cut into, each with the map to the activation's outputs."""
    parts = [corners]
    for fold in _folds(operation, rows):
        # A fold that leaves the cell on one side cuts nothing.
        parts = [p for part in parts for p in _cut_by(part, fold)]
    return [(part, _linear(operation, part.mean(0), rows)) for part in parts]


def _cut_by(corners: Tensor, fold: Tensor) -> list[Tensor]:
    value = corners @ fold[:2] + fold[2]
    if (value >= 0).all() or (value <= 0).all():
        return [corners]
    return list(cut(corners, value)) or [corners]


def _folds(operation: Activation, rows: Tensor) -> Tensor:
    """The lines along which an activation folds: rows of coefficients, as those of the features."""
    name = operation.function.__name__
    if name in ("relu", "absolute"):
        return rows
    if name == "group_sort" and operation.constants["group_size"] == 2:
        return rows[0::2] - rows[1::2]
    if name == "n_activation":
        corners = operation.constants["corners"]
        assert isinstance(corners, Tensor)
        return torch.cat([_shifted(rows, -corner) for corner in corners])
    raise ValueError(f"no linear pieces are known for {operation.label}")


def _linear(operation: Activation, inside: Tensor, rows: Tensor) -> Tensor:
    """The activation's linear map around a point, after the map before it."""
    z = rows[:, :2] @ inside + rows[:, 2]
    jacobian = torch.func.jacrev(lambda v: operation(v[None])[0])(z)
    value = operation(z[None])[0]
    mapped = jacobian @ rows
    # The offset that makes it exact at the point.
    return torch.cat([mapped[:, :2], (value - mapped[:, :2] @ inside)[:, None]], dim=1)
