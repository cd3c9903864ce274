"""Toys whose distance to the true class boundary is known.

No classifier can certify a correct point beyond that distance, so a toy shows how much of the
attainable radius a network proves.
"""

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcert.data.dataset import Dataset, Examples, Split, check_split

# Both coordinates of the middle of a toy.
CENTRE = 0.5


class Toy(Dataset):
    """Two classes of points drawn uniformly from the square [0, 1] x [0, 1], unless it says so.

    A subclass says which class a point of the plane has and how far the other class is. Both are
    computed in float64 from the points as given, so they are exact for float32 inputs too.

    Args:
        samples: Number of points in each split.
        seed: Chooses the points; the splits differ.
        margin: Points nearer to the boundary than this are left out.
    """

    input_shape: tuple[int, ...] = (2,)
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
        """Class of every point: ``(N, d)`` to int64 ``(N,)``."""

    @abstractmethod
    def distance(self, x: Tensor) -> Tensor:
        """Distance of every point to the boundary: ``(N, d)`` to float64 ``(N,)``."""

    def draw(self, random: np.random.RandomState) -> Tensor:
        """As many points as a split has, float64 ``(samples, d)`` in [0, 1]."""
        return torch.from_numpy(random.random_sample((self.samples, *self.input_shape)))

    def read(self, split: Split) -> Examples:
        """Points of the split, float32, in the order drawn."""
        check_split(split)
        # NumPy's legacy stream is frozen across versions.
        random = np.random.RandomState([self.seed, ("train", "test").index(split)])
        kept = torch.empty(0, *self.input_shape)
        for _ in range(100):
            drawn = self.draw(random).to(torch.float32)
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


class HalfPlane(Toy):
    """The right half of the square against the left one: a control, linear and without corners.

    Args:
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "half_plane"

    def label(self, x: Tensor) -> Tensor:
        """1 on the right."""
        return (x[:, 0].double() > CENTRE).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the middle line."""
        return (x[:, 0].double() - CENTRE).abs()


class XOR(Toy):
    """Opposite quarters of the square share a class: corners that cost no linear pieces.

    Every quarter is convex, so its distance is the smaller one of two linear functions.

    Args:
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "xor"

    def label(self, x: Tensor) -> Tensor:
        """1 where exactly one coordinate is above 1/2."""
        return (x.double() > CENTRE).long().sum(dim=1) % 2

    def distance(self, x: Tensor) -> Tensor:
        """To the nearer one of the two middle lines."""
        return (x.double() - CENTRE).abs().amin(dim=1)


class Orthant(Toy):
    r"""The corner of a d-dimensional box, :math:`\{x : x_i < 1/2 \text{ for all } i\}`.

    Half of the points lie in the box; the nearest boundary point of all the others is the corner
    itself, in directions that take exponentially many linear pieces to certify.

    Args:
        dimension: d.
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "orthant"

    def __init__(
        self, dimension: int = 8, samples: int = 2000, seed: int = 0, margin: float = 0.0
    ) -> None:
        super().__init__(samples, seed, margin)
        self.dimension = check_dimension(dimension)
        self.input_shape = (dimension,)

    def label(self, x: Tensor) -> Tensor:
        """1 inside the box."""
        return (x.double() < CENTRE).all(dim=1).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the box's faces, edges and corner."""
        offset = x.double() - CENTRE
        return offset.clamp(min=0).norm(dim=1) - offset.amax(dim=1).clamp(max=0)

    def draw(self, random: np.random.RandomState) -> Tensor:
        """Uniform in two opposite orthants of the cube."""
        offset = CENTRE * super().draw(random)
        side = torch.from_numpy(2.0 * random.randint(0, 2, self.samples) - 1)
        return CENTRE + side[:, None] * offset


class Spheres(Toy):
    """Two concentric spheres in d dimensions around the centre of the cube, one class on each.

    The boundary is the sphere midway. Gilmer et al. (`Adversarial spheres
    <https://arxiv.org/abs/1801.02774>`_, 2018) posed the task.

    Args:
        dimension: d.
        inner: Radius of the inner sphere.
        outer: Radius of the outer one.
        samples: Number of points in each split.
        seed: Chooses the points.
        margin: Points nearer to the boundary than this are left out.
    """

    name = "spheres"

    def __init__(
        self,
        dimension: int = 8,
        inner: float = 0.2,
        outer: float = 0.4,
        samples: int = 2000,
        seed: int = 0,
        margin: float = 0.0,
    ) -> None:
        super().__init__(samples, seed, margin)
        if not 0 < inner < outer <= CENTRE:
            raise ValueError(
                "expected 0 < dataset.inner < dataset.outer <= 0.5, but got "
                f"dataset.inner={inner} and dataset.outer={outer}"
            )
        self.dimension = check_dimension(dimension)
        self.input_shape = (dimension,)
        self.inner, self.outer = inner, outer

    def label(self, x: Tensor) -> Tensor:
        """1 inside the sphere midway."""
        return (self._offset(x) < 0).long()

    def distance(self, x: Tensor) -> Tensor:
        """To the sphere midway."""
        return self._offset(x).abs()

    def draw(self, random: np.random.RandomState) -> Tensor:
        """Uniform on the two spheres."""
        direction = torch.from_numpy(random.standard_normal((self.samples, self.dimension)))
        radius = torch.tensor([self.inner, self.outer], dtype=torch.float64)
        chosen = radius[torch.from_numpy(random.randint(0, 2, self.samples))]
        return CENTRE + direction * (chosen / direction.norm(dim=1))[:, None]

    def _offset(self, x: Tensor) -> Tensor:
        return (x.double() - CENTRE).norm(dim=1) - (self.inner + self.outer) / 2


def check_dimension(dimension: int) -> int:
    """The dimension, or ``ValueError`` if it is below 1."""
    if dimension < 1:
        raise ValueError(f"expected dataset.dimension to be at least 1, but got {dimension}")
    return dimension
