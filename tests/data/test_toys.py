"""The toys' distances against brute force along densely sampled boundaries."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustcert.data import XOR, Disc, HalfPlane, Moons, Orthant, Spheres, Square, Toy, Wedge

TOYS = [
    Disc(),
    Disc(radius=0.2),
    Square(),
    Square(side=0.3),
    Wedge(),
    Wedge(angle=30),
    Wedge(angle=250),
    Moons(),
    HalfPlane(),
    XOR(),
]
NAMES = [f"{toy.name}-{k}" for k, toy in enumerate(TOYS)]


def crossings(toy: Toy, low: float = -0.5, high: float = 1.5, size: int = 801) -> Tensor:
    """Points on the boundary, found from labels alone: bisected edges of a fine grid."""
    axis = torch.linspace(low, high, size, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=2)
    label = toy.label(grid.view(-1, 2)).view(size, size)
    ends = []
    for a, b in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        differ = label[a] != label[b]
        ends.append(torch.stack([grid[a][differ], grid[b][differ]]))
    start, stop = torch.cat(ends, dim=1)
    first = toy.label(start)
    for _ in range(40):
        middle = (start + stop) / 2
        same = (toy.label(middle) == first)[:, None]
        start, stop = torch.where(same, middle, start), torch.where(same, stop, middle)
    return (start + stop) / 2


def to_cloud(points: Tensor, cloud: Tensor) -> Tensor:
    return torch.cat([torch.cdist(chunk, cloud).amin(1) for chunk in points.split(100)])


@pytest.mark.parametrize("toy", TOYS, ids=NAMES)
class TestDistance:
    def test_is_the_distance_to_the_nearest_point_of_the_other_class(self, toy: Toy) -> None:
        cloud = crossings(toy)
        # A corner lies between two crossings of the grid.
        if isinstance(toy, Square):
            corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 2) * toy.side + 0.5
            cloud = torch.cat([cloud, corners.double()])
        if isinstance(toy, Wedge | XOR):
            cloud = torch.cat([cloud, torch.tensor([[0.5, 0.5]], dtype=torch.float64)])
        points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)).double()
        brute = to_cloud(points, cloud)
        exact = toy.distance(points)
        assert (exact <= brute + 1e-5).all()
        # Neighbouring crossings are at most a grid cell apart: two sides of a right triangle.
        spacing = 2 / 800 * math.sqrt(2)
        assert (brute <= (exact.square() + spacing**2).sqrt() + 1e-5).all()
        assert (brute - exact)[exact > 0.01].max() < 1e-3

    def test_vanishes_on_the_boundary(self, toy: Toy) -> None:
        assert toy.distance(crossings(toy, 0, 1, 201)).max() < 2e-5

    def test_label_never_changes_within_it_and_changes_just_beyond(self, toy: Toy) -> None:
        points = torch.rand(100, 2, generator=torch.Generator().manual_seed(1)).double()
        points.requires_grad_()
        distance = toy.distance(points)
        (gradient,) = torch.autograd.grad(distance.sum(), points)
        points, distance = points.detach(), distance.detach()
        angle = torch.linspace(0, 2 * math.pi, 1001, dtype=torch.float64)[:-1]
        circle = torch.stack([angle.cos(), angle.sin()], dim=1)

        def around(centres: Tensor, radius: Tensor) -> Tensor:
            ring = centres[:, None] + radius[:, None, None] * circle
            return toy.label(ring.view(-1, 2)).view(100, -1)

        label = toy.label(points)[:, None]
        assert (around(points, (distance - 1e-4).clamp(min=0)) == label).all()
        # Walking down the gradient leads to the nearest boundary point: both classes meet there.
        nearest = points - distance[:, None] * gradient
        beside = around(nearest, torch.full((100,), 1e-4, dtype=torch.float64))
        assert (beside != label).any(dim=1).all()
        assert (beside == label).any(dim=1).all()

    def test_is_one_lipschitz(self, toy: Toy) -> None:
        x, y = torch.rand(2, 300, 2, generator=torch.Generator().manual_seed(2)).double()
        change = (toy.distance(x) - toy.distance(y)).abs()
        assert (change <= (x - y).norm(dim=1) + 1e-5).all()


HIGH = [Orthant(1), Orthant(3), Orthant(8), Spheres(2), Spheres(8), Spheres(5, 0.1, 0.5)]


@pytest.mark.parametrize("toy", HIGH, ids=lambda toy: f"{toy.name}-{toy.dimension}")
def test_in_many_dimensions_the_label_changes_at_the_distance_and_not_before(toy: Toy) -> None:
    points = toy.read("train").inputs[:200].double().requires_grad_()
    distance = toy.distance(points)
    (gradient,) = torch.autograd.grad(distance.sum(), points)
    points, distance, label = points.detach(), distance.detach(), toy.label(points)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(50, *points.shape, dtype=torch.float64, generator=generator)
    sphere = noise / noise.norm(dim=2, keepdim=True)
    near = points + (distance * (1 - 1e-6))[:, None] * sphere
    assert (toy.label(near.flatten(0, 1)).view(50, -1) == label).all()
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones_like(distance))
    before, beyond = (points - (distance + step)[:, None] * gradient for step in (-1e-6, 1e-6))
    assert (toy.label(before) == label).all()
    assert (toy.label(beyond) != label).all()
    assert (toy.distance(before) - 1e-6).abs().max() < 1e-9


def test_many_dimensions_are_drawn_by_seed_and_split() -> None:
    for toy in HIGH:
        train = toy.read("train")
        assert train.inputs.shape == (2000, *toy.input_shape)
        assert 0 <= train.inputs.min() <= train.inputs.max() <= 1
        assert (train.labels == toy.label(train.inputs)).all()
        assert 0.4 < train.labels.double().mean() < 0.6
        assert not torch.equal(train.inputs, toy.read("test").inputs)


def test_outside_the_orthant_the_corner_is_nearest() -> None:
    toy = Orthant(8)
    train = toy.read("train")
    outside = train.inputs[train.labels == 0].double()
    torch.testing.assert_close(toy.distance(outside), (outside - 0.5).norm(dim=1))


def test_known_distances() -> None:
    points = torch.tensor([[0.5, 0.5], [0.5, 0.95], [0.9, 0.9]])
    expected = torch.tensor([0.4, 0.05, 0.4 * math.sqrt(2) - 0.4], dtype=torch.float64)
    torch.testing.assert_close(Disc().distance(points), expected, atol=1e-7, rtol=0)
    expected = torch.tensor([0.35, 0.1, 0.05 * math.sqrt(2)], dtype=torch.float64)
    torch.testing.assert_close(Square().distance(points), expected, atol=1e-7, rtol=0)
    points = torch.tensor([[0.9, 0.5], [0.2, 0.5], [0.5, 0.7]])
    expected = torch.tensor([0.4, 0.3, 0.2], dtype=torch.float64)
    expected = expected * torch.tensor([math.sqrt(0.5), 1, math.sqrt(0.5)])
    torch.testing.assert_close(Wedge(angle=90).distance(points), expected, atol=1e-7, rtol=0)
    assert Wedge().label(points).tolist() == [1, 0, 0]


def test_moons_are_symmetric_and_refuse_points_far_away() -> None:
    moons = Moons()
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(3)).double()
    assert (moons.label(points) == 1 - moons.label(1 - points)).all()
    torch.testing.assert_close(moons.distance(points), moons.distance(1 - points))
    # The tops of the two arcs, and the centre between them.
    assert moons.label(torch.tensor([[0.375, 0.6875], [0.625, 0.3125]])).tolist() == [0, 1]
    assert moons.distance(torch.tensor([[0.5, 0.5]])) < 1e-12
    with pytest.raises(ValueError, match="near the unit square"):
        moons.distance(torch.tensor([[2.0, 0.5]]))


@pytest.mark.parametrize("toy", [Disc, Square, Wedge, Moons, HalfPlane, XOR])
def test_points_are_drawn_by_seed_and_split(toy: type[Toy]) -> None:
    first, again, other = toy(samples=300), toy(samples=300), toy(samples=300, seed=1)
    train = first.read("train")
    assert train.inputs.shape == (300, 2)
    assert train.inputs.dtype == torch.float32
    assert 0 <= train.inputs.min() <= train.inputs.max() <= 1
    assert (train.labels == first.label(train.inputs)).all()
    assert torch.equal(train.inputs, again.read("train").inputs)
    assert not torch.equal(train.inputs, other.read("train").inputs)
    assert not torch.equal(train.inputs, first.read("test").inputs)
    # Neither class is rare.
    assert 0.2 < train.labels.double().mean() < 0.8


@pytest.mark.parametrize("toy", [Disc, Square, Wedge, Moons, HalfPlane, XOR])
def test_margin_leaves_near_points_out(toy: type[Toy]) -> None:
    wide = toy(samples=200, margin=0.05)
    examples = wide.read("test")
    assert len(examples) == 200
    assert wide.distance(examples.inputs).min() >= 0.05
    assert set(examples.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Disc(samples=1), "dataset.samples"),
        (lambda: Disc(seed=-1), "dataset.seed"),
        (lambda: Disc(margin=0.5), "dataset.margin"),
        (lambda: Disc(radius=0.5), "dataset.radius"),
        (lambda: Square(side=1.0), "dataset.side"),
        (lambda: Wedge(angle=360), "dataset.angle"),
        (lambda: Orthant(0), "dataset.dimension"),
        (lambda: Spheres(3, 0.4, 0.2), "dataset.inner"),
        (lambda: Square(margin=0.4).read("train"), "dataset.margin"),
    ],
)
def test_impossible_options_name_the_key(make: Callable[[], object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()


def test_provenance_lists_what_was_drawn() -> None:
    assert Wedge(angle=60, samples=10).provenance() == {
        "name": "wedge",
        "files": [],
        "generated": {"angle": 60, "samples": 10, "seed": 0, "margin": 0.0},
    }
