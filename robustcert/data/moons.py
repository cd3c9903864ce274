"""Two interlocking half circles, with the distance to the curve between them."""

import math
from functools import cache

import torch
from torch import Tensor

from robustcert.data.toys import CENTRE, Toy


class Moons(Toy):
    """Points nearer to the upper half circle against points nearer to the lower one.

    The half circles interlock: radius 1/4, the upper one (class 0) around (3/8, 7/16), the lower
    one (class 1) around (5/8, 9/16). See Note [moons boundary] for the distance.

    Args:
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "moons"

    def label(self, x: Tensor) -> Tensor:
        """1 if the lower half circle is nearer."""
        upper, lower = self._arcs(x.double())
        return (lower < upper).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the curve equally far from both half circles, to within 1e-5."""
        points = x.double()
        if not ((points - CENTRE).abs() <= 1).all():
            raise ValueError(
                "expected points in [-0.5, 1.5] x [-0.5, 1.5]: the boundary of the moons is known "
                "near the unit square only"
            )
        vertices = torch.tensor(_moons_boundary(), dtype=torch.float64)
        return torch.cat([_to_polyline(chunk, vertices) for chunk in points.split(1024)])

    @staticmethod
    def _arcs(points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to the upper and to the lower half circle."""
        upper = _to_half_circle(points - points.new_tensor(UPPER_CENTRE))
        # The lower half circle is the upper one, turned by half a turn around (1/2, 1/2).
        lower = _to_half_circle(1 - points - points.new_tensor(UPPER_CENTRE))
        return upper, lower


# Note [moons boundary]
# The boundary is the set of points equally far from both half circles: one smooth curve, a chain of
# line and conic pieces, point-symmetric about (1/2, 1/2), through which it runs. Half of it is
# followed once, from the centre outwards: a step along the tangent, then Newton's method back onto
# the curve. The distance is that to the polyline through the points found. A chord of length h
# leaves a curve of curvature k by at most k h^2 / 8; k is at most 11 here, which makes 6e-6.
# A point within 1 of the centre along both axes is at most 1.42 from the curve, so following it
# for 2.5 to both sides is enough.
# Centre and radius of the upper half circle, step along the boundary, and how far it is followed.
UPPER_CENTRE = (0.375, 0.4375)
MOON_RADIUS = 0.25
STEP = 0.002
REACH = 2.5


def _to_half_circle(offset: Tensor) -> Tensor:
    """Distance of points, relative to the centre, to the upper half circle."""
    circle = (offset.norm(dim=1) - MOON_RADIUS).abs()
    # The nearer end is that on the point's own side.
    ends = torch.hypot(offset[:, 0].abs() - MOON_RADIUS, offset[:, 1])
    return torch.where(offset[:, 1] >= 0, circle, ends)


def _to_polyline(points: Tensor, vertices: Tensor) -> Tensor:
    """Distance of every point to the nearest segment."""
    (x, y), (along_x, along_y) = vertices[:-1].T, vertices.diff(dim=0).T
    offset_x, offset_y = points[:, :1] - x, points[:, 1:] - y
    length2 = along_x.square() + along_y.square()
    share = ((offset_x * along_x + offset_y * along_y) / length2).clamp(0, 1)
    offset_x -= share * along_x
    offset_y -= share * along_y
    return (offset_x.square() + offset_y.square()).amin(dim=1).sqrt()


def _nearest(x: float, y: float) -> tuple[float, float, float]:
    """Distance to the upper half circle and its gradient."""
    x, y = x - UPPER_CENTRE[0], y - UPPER_CENTRE[1]
    if y >= 0:
        norm = math.hypot(x, y)
        sign = 1.0 if norm > MOON_RADIUS else -1.0
        return sign * (norm - MOON_RADIUS), sign * x / norm, sign * y / norm
    x -= math.copysign(MOON_RADIUS, x)
    norm = math.hypot(x, y)
    return norm, x / norm, y / norm


def _difference(x: float, y: float) -> tuple[float, float, float]:
    """Distance to the upper minus distance to the lower half circle, and its gradient."""
    upper, upper_x, upper_y = _nearest(x, y)
    lower, lower_x, lower_y = _nearest(1 - x, 1 - y)
    return upper - lower, upper_x + lower_x, upper_y + lower_y


@cache
def _moons_boundary() -> list[tuple[float, float]]:
    """Vertices along the boundary, until it is ``REACH`` away from the centre at both ends."""
    x = y = CENTRE
    half = []
    while max(abs(x - CENTRE), abs(y - CENTRE)) < REACH:
        # The tangent is the gradient turned by a right angle, always the same way round.
        _, gradient_x, gradient_y = _difference(x, y)
        norm = math.hypot(gradient_x, gradient_y)
        x, y = x - STEP * gradient_y / norm, y + STEP * gradient_x / norm
        for _ in range(6):
            value, gradient_x, gradient_y = _difference(x, y)
            scale = value / (gradient_x**2 + gradient_y**2)
            x, y = x - scale * gradient_x, y - scale * gradient_y
        half.append((x, y))
    return [(1 - x, 1 - y) for x, y in reversed(half)] + [(CENTRE, CENTRE)] + half
