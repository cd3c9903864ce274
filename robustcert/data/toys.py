"""Two-dimensional toys whose distance to the true class boundary is known.

No classifier can certify a correct point beyond that distance, so a toy shows how much of the
attainable radius a network proves.
"""

import math
from abc import abstractmethod
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcert.data.dataset import Dataset, Examples, Split, check_split

CENTRE = 0.5


class Toy(Dataset):
    """Two classes of points drawn uniformly from the square [0, 1] x [0, 1].

    A subclass says which class a point of the plane has and how far the other class is. Both are
    computed in float64 from the points as given, so they are exact for float32 inputs too.

    Args:
        samples: Number of points in each split.
        seed: Chooses the points; the splits differ.
        margin: Points nearer to the boundary than this are left out.
    """

    input_shape = (2,)
    num_classes = 2

    def __init__(self, samples: int = 2000, seed: int = 0, margin: float = 0.0) -> None:
        if samples < 2:
            raise ValueError(f"expected dataset.samples to be at least 2, but got {samples}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"expected dataset.seed to lie in [0, 2^32), but got {seed}")
        if not 0 <= margin < CENTRE:
            raise ValueError(f"expected dataset.margin to lie in [0, 0.5), but got {margin}")
        self.samples = samples
        self.seed = seed
        self.margin = margin

    @abstractmethod
    def label(self, x: Tensor) -> Tensor:
        """Class of every point: ``(N, 2)`` to int64 ``(N,)``."""

    @abstractmethod
    def distance(self, x: Tensor) -> Tensor:
        """Distance of every point to the boundary: ``(N, 2)`` to float64 ``(N,)``."""

    def read(self, split: Split) -> Examples:
        """Points of the split, float32, in the order drawn."""
        check_split(split)
        # NumPy's legacy stream is frozen across versions.
        random = np.random.RandomState([self.seed, ("train", "test").index(split)])
        kept = torch.empty(0, 2)
        for _ in range(100):
            drawn = torch.from_numpy(random.random_sample((self.samples, 2))).to(torch.float32)
            if self.margin > 0:
                drawn = drawn[self.distance(drawn) >= self.margin]
            kept = torch.cat([kept, drawn])
            if len(kept) >= self.samples:
                inputs = kept[: self.samples]
                return Examples(inputs, self.label(inputs))
        raise ValueError(
            f"{self.name}: hardly any point is at least {self.margin} away from the boundary: "
            "lower dataset.margin"
        )

    def provenance(self) -> dict[str, Any]:
        """Record of what the points are drawn from; there are no files."""
        # A subclass's options are its plain numeric attributes.
        options = {k: v for k, v in vars(self).items() if isinstance(v, int | float)}
        return {"name": self.name, "files": [], "generated": options}


class Disc(Toy):
    """A disc around (1/2, 1/2) against its outside.

    Args:
        radius: Radius of the disc.
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "disc"

    def __init__(
        self, radius: float = 0.4, samples: int = 2000, seed: int = 0, margin: float = 0.0
    ) -> None:
        super().__init__(samples, seed, margin)
        if not 0 < radius < CENTRE:
            raise ValueError(f"expected dataset.radius to lie in (0, 0.5), but got {radius}")
        self.radius = radius

    def label(self, x: Tensor) -> Tensor:
        """1 inside the disc."""
        return (self._offset(x) < 0).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the circle."""
        return self._offset(x).abs()

    def _offset(self, x: Tensor) -> Tensor:
        return (x.double() - CENTRE).norm(dim=1) - self.radius


class Square(Toy):
    """A square around (1/2, 1/2), sides along the axes, against its outside.

    The corners are what makes it hard: points outside have them as nearest point from a whole
    quadrant of directions, so lines of equal distance are round there.

    Args:
        side: Length of its sides.
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "square"

    def __init__(
        self, side: float = 0.7, samples: int = 2000, seed: int = 0, margin: float = 0.0
    ) -> None:
        super().__init__(samples, seed, margin)
        if not 0 < side < 1:
            raise ValueError(f"expected dataset.side to lie in (0, 1), but got {side}")
        self.side = side

    def label(self, x: Tensor) -> Tensor:
        """1 inside the square."""
        return (self._offset(x) < 0).all(dim=1).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the square's sides and corners."""
        offset = self._offset(x)
        outside = offset.clamp(min=0).norm(dim=1)
        inside = offset.amax(dim=1).clamp(max=0)
        return outside - inside

    def _offset(self, x: Tensor) -> Tensor:
        return (x.double() - CENTRE).abs() - self.side / 2


class Wedge(Toy):
    """A wedge with its tip at (1/2, 1/2), opening to the right, against its outside.

    Args:
        angle: Angle at the tip, in degrees.
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "wedge"

    def __init__(
        self, angle: float = 90.0, samples: int = 2000, seed: int = 0, margin: float = 0.0
    ) -> None:
        super().__init__(samples, seed, margin)
        if not 0 < angle < 360:
            raise ValueError(
                f"expected dataset.angle, in degrees, to lie in (0, 360), but got {angle}"
            )
        self.angle = angle

    def label(self, x: Tensor) -> Tensor:
        """1 inside the wedge."""
        offset = x.double() - CENTRE
        direction = torch.atan2(offset[:, 1].abs(), offset[:, 0])
        # The tip itself is the other class's.
        return ((direction < self._half) & offset.any(dim=1)).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the nearer one of the two rays, or their tip."""
        # By symmetry the nearer one of the two rays is that on the point's own side of the axis.
        offset = x.double() - CENTRE
        along = torch.stack([offset[:, 0], offset[:, 1].abs()], dim=1)
        ray = along.new_tensor([math.cos(self._half), math.sin(self._half)])
        foot = (along @ ray).clamp(min=0)
        return (along - foot[:, None] * ray).norm(dim=1)

    @property
    def _half(self) -> float:
        return math.radians(self.angle) / 2


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
