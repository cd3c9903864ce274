"""Random graphs of modules: what is captured is what runs, within its bound and its radii."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.certifiers import certify
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork, sequence_bound

Shape = tuple[int, ...]
# Functions of one value that keep its shape: as functions, methods and in place.
FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    F.silu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    torch.tanh,
    lambda x: x.sigmoid(),
    lambda x: F.leaky_relu(x, 0.2, inplace=True),
    lambda x: F.elu(x, 1.5),
    lambda x: F.celu(x, 0.5, inplace=True),
    lambda x: x.clamp(-0.5, 1),
    lambda x: F.softplus(x, 2.0, 40.0),
    lambda x: F.hardswish(x),
    lambda x: F.softsign(x),
    lambda x: torch.relu_(x),
    lambda x: -x,
    lambda x: 1.5 * x - 0.25,
    lambda x: (2 - x) / 3,
    lambda x: x.mul_(0.5).add_(1),
    lambda x: F.dropout(x, 0.3, training=False),
    lambda x: x.flatten(1).view(x.shape),
)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Scaled(nn.Module):
    """One factor for every channel and one offset for every entry."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape[0], *(1,) * (len(shape) - 1)))
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Branches(nn.Module):
    """Two branches and, maybe, the identity, added in one of the ways in which people do."""

    def __init__(self, first: nn.Module, second: nn.Module, way: int) -> None:
        super().__init__()
        self.first, self.second, self.way = first, second, way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 0:
            return x + self.first(x.clone())
        if self.way == 1:
            out = self.first(x.clone())
            out += self.second(x)
            return out
        if self.way == 2:
            return torch.sub(self.first(x.clone()), self.second(x.clone()), alpha=0.5) + x
        return sum([self.first(x.clone()), x, self.second(x.clone())])


class Net(nn.Module):
    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.clone()).flatten(1))


def keeping(draw: random.Random, shape: Shape) -> nn.Module:
    """A module that keeps the shape of its input."""
    kind = draw.randrange(5)
    if kind < 2:
        return Function(draw.choice(FUNCTIONS))
    if kind == 2:
        return Scaled(shape)
    if len(shape) == 1:
        return nn.Linear(*shape, *shape) if kind == 3 else nn.BatchNorm1d(shape[0])
    if kind == 3:
        groups = draw.choice([1, shape[0]])
        return nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=groups)
    return draw.choice([nn.BatchNorm2d(shape[0]), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)])


def graph(draw: random.Random, shape: Shape, depth: int) -> nn.Module:
    """A random module that keeps the shape of its input."""
    parts: list[nn.Module] = []
    for _ in range(draw.randint(1, 3)):
        if depth and draw.random() < 0.6:
            first, second = graph(draw, shape, depth - 1), graph(draw, shape, depth - 1)
            parts.append(Branches(first, second, draw.randrange(4)))
        else:
            parts.append(keeping(draw, shape))
    return nn.Sequential(*parts)


def network(seed: int) -> tuple[nn.Module, Shape]:
    """A random network, float64, in evaluation mode, with the shape of its inputs."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    shape = draw.choice([(4,), (6,), (2, 4, 4), (3, 5, 3)])
    body = graph(draw, shape, 2)
    size = int(torch.Size(shape).numel())
    if len(shape) == 3 and draw.random() < 0.5:
        pools: list[Any] = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(shape[0], 2, 2, 2)]
        body = nn.Sequential(body, draw.choice(pools))
        size = int(body(torch.zeros(2, *shape)).flatten(1).shape[1])
    net = Net(body, size).double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.running_var is not None:
            m.running_var.uniform_(0.5, 2)
    return net, shape


def attacked(net: nn.Module, folded: PlainNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Certified predictions, and those at the end of a few steps inside the certified radii."""
    # Gradients are those of the folded network: the module's may be lost in place.
    certified = certify(net, x)
    own, radius = certified.prediction, certified.radius.view(-1, *(1,) * (x.dim() - 1))
    moved = x.clone().requires_grad_(True)
    for _ in range(5):
        logits = folded(moved)
        rival = logits.scatter(1, own[:, None], -torch.inf).argmax(1)
        margin = logits.gather(1, own[:, None]) - logits.gather(1, rival[:, None])
        (gradient,) = torch.autograd.grad(margin.sum(), moved)
        lengths = gradient.flatten(1).norm(dim=1).clamp_min(1e-300).view(radius.shape)
        offset = (moved - x).detach() - gradient / lengths * radius
        norms = offset.flatten(1).norm(dim=1).clamp_min(1e-300).view(radius.shape)
        moved = (x + offset * (0.999 * radius / norms).clamp_max(1)).requires_grad_(True)
    with torch.no_grad():
        return own, torch.where(certified.radius > 0, net(moved).argmax(1), own)


def check(seed: int, attack: bool) -> None:
    net, shape = network(seed)
    folded = fold_network(net, shape)
    x = torch.randn(20, *shape, dtype=torch.float64)
    y = x + torch.tensor([1e-3, 1.0]).double().repeat(10).view(-1, *(1,) * len(shape)) * (
        torch.randn_like(x)
    )
    with torch.no_grad():
        outputs, others = net(x), net(y)
        assert (folded(x) - outputs).abs().max() <= 1e-12 * outputs.abs().max(), f"seed {seed}"
    bound = sequence_bound(folded.operations, shape)
    ratio = (outputs - others).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() <= bound * (1 + 1e-9), f"seed {seed}"
    if attack:
        own, found = attacked(net, folded, x[:4])
        assert torch.equal(own, found), f"seed {seed}"


@pytest.mark.parametrize("start", [0, 10, 20])
def test_random_graphs(start: int) -> None:
    for seed in range(start, start + 10):
        check(seed, attack=seed % 10 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 100))
def test_many_random_graphs(start: int) -> None:
    for seed in range(start, start + 100):
        check(seed, attack=seed % 5 == 0)
