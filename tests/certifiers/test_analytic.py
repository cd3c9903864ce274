"""Networks whose distance to the class boundary is known in closed form.

Every certified radius is at most that distance. Where the gradient has the same norm on the whole
way to the nearest boundary, the theory says that it is the distance, and then it is, to 1e-9 for
each layer whose norm is bounded.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers.configs import build, proving_certifiers
from torch import Tensor, nn

from robustcert.activations import Abs, GroupSort, NormPair
from robustcert.data import Disc, Square, Toy, Wedge
from robustcert.errors import UnsoundNetworkError
from robustcert.models import Normalize
from robustcert.network.fold import fold_network


class Known(NamedTuple):
    """A network, inputs, their distances to the boundary, and where those are certified whole."""

    module: nn.Module
    x: Tensor
    distance: Tensor
    tight: Tensor


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


def dense(weight: Any, bias: Any = 0.0) -> nn.Linear:
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float64))
    return layer


def sign_of(row: list[float], bias: float = 0.0) -> nn.Linear:
    """Class 0 where ``row @ z + bias`` is positive, class 1 where it is negative."""
    half = torch.tensor([row], dtype=torch.float64) / 2
    return dense(torch.cat([half, -half]), [bias / 2, -bias / 2])


def smooth_norm(size: int, radius: float) -> list[nn.Module]:
    """Class 0 inside a ball around 0, by a norm that is smooth within 1e-6 of its centre only."""
    norm = NormPair(size, group_size=size, temperature=1e-6, learnable=False).double()
    temperature = float(norm.temperature())
    return [norm, sign_of([-1.0], math.hypot(radius, temperature) - temperature)]


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.bool)


def hyperplane() -> Known:
    """Behind two rotations and a strided convolution that is one: signed distances, unchanged."""
    normal, x = torch.randn(16, dtype=torch.float64), torch.randn(80, 1, 4, 4, dtype=torch.float64)
    conv = nn.Conv2d(1, 4, 2, stride=2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(orthogonal(4).view(4, 1, 2, 2))
    module = nn.Sequential(
        conv,
        nn.Flatten(),
        dense(orthogonal(16)),
        dense(orthogonal(16)),
        sign_of(normal.tolist(), 0.7),
    )
    with torch.no_grad():
        margin = module(x) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    return Known(module, x, margin.abs() / normal.norm(), everywhere(x))


def comb() -> Known:
    """Parallel hyperplanes at 1, 3, 5 and 7 on both sides of 0, by folding the space thrice."""
    rotation, x = orthogonal(6), 4 * torch.randn(200, 6, dtype=torch.float64)
    first = torch.eye(6, dtype=torch.float64)[0]
    module = nn.Sequential(
        dense(rotation),
        *(layer for k in (4, 2, 0) for layer in (Abs(6), dense(torch.eye(6), -k * first))),
        sign_of(first.tolist(), -1.0),
    )
    along = (x @ rotation[0]).abs()
    distance = torch.stack([(along - k).abs() for k in (1, 3, 5, 7)]).amin(0)
    return Known(module, x, distance, everywhere(x))


def diagonals() -> Known:
    """XOR: the sign of the product of two coordinates, turned by 45 degrees."""
    rotation, x = orthogonal(4), torch.randn(100, 4, dtype=torch.float64)
    module = nn.Sequential(dense(rotation), Abs(4), sign_of([1.0, -1.0, 0, 0]))
    y = (x @ rotation.T).abs()
    return Known(module, x, (y[:, 0] - y[:, 1]).abs() / math.sqrt(2), everywhere(x))


def sphere() -> Known:
    """A ball of radius 1, off the origin, in scaled and shifted inputs."""
    centre, x = torch.randn(8, dtype=torch.float64), torch.randn(100, 8, dtype=torch.float64) / 8
    module = nn.Sequential(
        Normalize([0.0], [0.125], channels=8),
        dense(orthogonal(8)),
        dense(orthogonal(8), -centre),
        *smooth_norm(8, 1.0),
    )
    with torch.no_grad():
        distance = (module[:3](x).norm(dim=1) - 1).abs() / 8
    return Known(module.double(), x, distance, everywhere(x))


def toy(dataset: Toy, module: nn.Module, tight: Callable[[Tensor], Tensor]) -> Known:
    x = torch.rand(300, 2, dtype=torch.float64)
    return Known(module, x, dataset.distance(x), tight(x - 0.5))


def disc() -> Known:
    module = nn.Sequential(dense(torch.eye(2), -0.5), *smooth_norm(2, 0.4))
    return toy(Disc(radius=0.4), module, everywhere)


def square() -> Known:
    """The larger of two absolute values; outside, a corner is further than it says."""
    module = nn.Sequential(
        dense(torch.eye(2), -0.5), Abs(2), GroupSort(2), sign_of([0.0, 1.0], -0.35)
    )
    return toy(Square(side=0.7), module, lambda x: (x.abs() <= 0.35).any(1))


def wedge() -> Known:
    """The smaller of the distances to two lines; behind the tip, the tip is further."""
    turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    module = nn.Sequential(
        dense(torch.eye(2), -0.5), dense(turn), GroupSort(2), sign_of([1.0, 0.0])
    )
    return toy(Wedge(angle=90.0), module, lambda x: ((x @ turn) >= 0).any(1))


@pytest.mark.parametrize("certifier", proving_certifiers())
@pytest.mark.parametrize("case", [hyperplane, comb, diagonals, sphere, disc, square, wedge])
def test_the_radius_is_at_most_the_distance_and_equal_where_it_can_be(
    case: Callable[[], Known], certifier: str
) -> None:
    torch.manual_seed(0)
    module, x, distance, tight = case()
    network = fold_network(module, tuple(x.shape[1:]))
    try:
        radius = build("certifier", certifier).certify(network, x).radius
    except UnsoundNetworkError:
        assert case in (hyperplane, sphere, disc)  # convolutions and norms are not covered
        return
    assert (radius <= distance * (1 + 1e-12) + 4e-15).all()
    layers = sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in module)
    assert tight.any()
    assert (radius >= distance * (1 - 1e-9 * layers) - 1e-9)[tight].all()
