"""Random graphs of random modules: the captured network is the module, and no certificate is false.

    python -m benchmarks.soundness.random_graphs --graphs 10000 --certificates 100000 --seconds 600

Every graph is captured and compared with its module in float64, and its bound with slopes between
near and far inputs. The certificates of the first graphs are attacked inside their radii. Exits
with 1 at a difference, a slope above its bound or a false certificate, and prints the seed.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.certifiers import certify
from robustcert.network.bounds import sequence_bound
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

Shape = tuple[int, ...]
# Largest difference of module and captured network, in units of the largest value.
TOLERANCE = 1e-12
# Maximum number of entries of a value, and number of inputs that are certified of each graph.
MAX_ENTRIES, CERTIFIED = 150, 64
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
    lambda x: x.flip(1),
    lambda x: x.roll(1, -1),
    lambda x: torch.stack([x, -x], 1).mean(1, keepdim=True).flatten(1, 2),
    lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    lambda x: x + x.mean(-1, keepdim=True),
    lambda x: x - x[:, :1],
    lambda x: x.sort(1)[0],
    lambda x: x.sort(-1, descending=True).values,
    lambda x: torch.maximum(x, 0.5 - x),
    lambda x: torch.min(x, x.flip(-1)) - x,
)
# Functions of maps that change their shape.
OF_MAPS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.flatten(1),
    lambda x: x.transpose(1, 3),
    lambda x: x.permute(0, 2, 3, 1).contiguous(),
    lambda x: x[:, :, 1:, ::2],
    lambda x: x[..., :-1],
    lambda x: F.pad(x, (1, 0, 0, 2)),
    lambda x: F.pad(x, (1, 1, 0, 1), mode="replicate"),
    lambda x: F.pad(x, (0, 1, 1, 1), mode="circular"),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.pixel_unshuffle(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2),
    lambda x: x.mean((2, 3)),
    lambda x: x.mean(1, keepdim=True).expand(-1, 2, -1, -1),
    lambda x: x.sum(2),
    lambda x: x.max(2)[0],
    lambda x: torch.cat([x.amin(1, keepdim=True), x.amax(1, keepdim=True)], 1),
)
OF_VECTORS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[:, 1:],
    lambda x: x.repeat(1, 2),
    lambda x: x.unflatten(1, (1, 1, -1)).expand(-1, 2, 2, -1),
    lambda x: F.pad(x, (1, 2)),
    lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 1),
)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of a copy, which it may change in place."""
        return self.function(x.clone())


class Scaled(nn.Module):
    """One factor for every channel and one offset for every entry."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape[0], *(1,) * (len(shape) - 1)))
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled and shifted inputs."""
        return x * self.scale + self.shift


class Net(nn.Module):
    """Values, each computed from earlier ones, and a dense layer on the last two side by side.

    Every step is a module on the sum of values, or on values side by side along an axis.
    """

    def __init__(self, steps: list[tuple[list[int], int | None, nn.Module]], sizes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(module for _, _, module in steps)
        self.sources = [(inputs, axis) for inputs, axis, _ in steps]
        self.head = nn.Linear(sizes, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 3)``."""
        values = [x]
        for part, (inputs, axis) in zip(self.parts, self.sources, strict=True):
            chosen = [values[k] for k in inputs]
            joined = sum(chosen[1:], chosen[0]) if axis is None else torch.cat(chosen, axis)
            values.append(part(joined))
        return self.head(torch.cat([v.flatten(1) for v in values[-2:]], 1))


def keeping(draw: random.Random, shape: Shape) -> nn.Module:
    """A module that keeps the shape of its input."""
    kind = draw.randrange(6)
    if kind < 3:
        return Function(draw.choice(FUNCTIONS))
    if kind == 3:
        return Scaled(shape)
    if len(shape) == 1:
        return nn.Linear(*shape, *shape) if kind == 4 else nn.BatchNorm1d(shape[0])
    if len(shape) == 2:
        return nn.Conv1d(shape[0], shape[0], 3, padding=1)
    if kind == 4:
        mode = draw.choice(["zeros", "zeros", "replicate", "circular"])
        groups = draw.choice([1, shape[0]])
        return nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=groups, padding_mode=mode)
    return draw.choice([nn.BatchNorm2d(shape[0]), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)])


def changing(draw: random.Random, shape: Shape) -> nn.Module:
    """A module that may change the shape of its input."""
    if len(shape) == 1:
        size = draw.randint(2, 6)
        return draw.choice([nn.Linear(shape[0], size), Function(draw.choice(OF_VECTORS))])
    if len(shape) == 2:
        return draw.choice([nn.Flatten(), nn.Linear(shape[1], 4), nn.AvgPool1d(2, 1)])
    channels, outputs = shape[0], draw.randint(1, 4)
    stride, padding = draw.randint(1, 2), draw.randint(0, 1)
    made: list[nn.Module] = [
        nn.Conv2d(channels, outputs, 2, stride, padding),
        nn.ConvTranspose2d(channels, outputs, 3, stride, padding),
        nn.ConvTranspose2d(channels, outputs, 2, 2, 0, padding),
        nn.MaxPool2d(2, stride),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ]
    return draw.choice([*made, *(Function(draw.choice(OF_MAPS)) for _ in made)])


def network(seed: int) -> tuple[nn.Module, Shape]:
    """A random network, float64, in evaluation mode, with the shape of its inputs."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    shape: Shape = draw.choice([(4,), (6,), (2, 4, 4), (3, 5, 3)])
    shapes, steps = [shape], []
    while len(steps) < draw.randint(2, 9):
        inputs, axis = _sources(draw, shapes)
        x = [torch.zeros(2, *shapes[k]) for k in inputs]
        joined = x[0] if axis is None else torch.cat(x, axis)
        made = keeping if draw.random() < 0.6 else changing
        module = made(draw, tuple(joined.shape[1:]))
        try:
            found = tuple(module.eval()(joined).shape[1:])
        except (RuntimeError, IndexError, ValueError):
            continue  # It does not take values of this shape.
        if 0 < math.prod(found) <= MAX_ENTRIES:
            steps.append((inputs, axis, module))
            shapes.append(found)
    net = Net(steps, sum(math.prod(s) for s in shapes[-2:])).double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.running_var is not None:
            m.running_var.uniform_(0.5, 2)
    return net, shape


def _sources(draw: random.Random, shapes: list[Shape]) -> tuple[list[int], int | None]:
    """Values to be computed from: one, or several that are added or stand side by side."""
    last = len(shapes) - 1
    first = draw.choice([last, last, draw.randint(0, last)])
    alike = [k for k, shape in enumerate(shapes) if shape == shapes[first] and k != first]
    if not alike or draw.random() < 0.4:
        return [first], None
    inputs = [first, *draw.sample(alike, draw.randint(1, min(2, len(alike))))]
    draw.shuffle(inputs)
    side_by_side = draw.random() < 0.4
    return inputs, draw.randint(1, len(shapes[first])) if side_by_side else None


def difference(net: nn.Module, folded: PlainNetwork, shape: Shape) -> float:
    """Largest difference of module and network, in units of the largest value."""
    x = torch.randn(20, *shape, dtype=torch.float64)
    with torch.no_grad():
        outputs = net(x)
        return float((folded(x) - outputs).abs().max() / outputs.abs().max())


def excess(net: nn.Module, folded: PlainNetwork, shape: Shape) -> float:
    """Largest slope between near and far inputs, in units of the bound."""
    x = torch.randn(20, *shape, dtype=torch.float64)
    far = torch.tensor([1e-3, 1.0]).double().repeat(10).view(-1, *(1,) * len(shape))
    y = x + far * torch.randn_like(x)
    with torch.no_grad():
        slopes = (net(x) - net(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    bound = sequence_bound(folded.operations, shape)
    # Differences of near outputs are rounded.
    return float((slopes / max(bound, 1e-9)).max()) if bound or slopes.max() > 1e-9 else 0.0


def attacked(net: nn.Module, folded: PlainNetwork, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Predictions; those after a few steps inside the radii; number of positive radii."""
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
        found = torch.where(certified.radius > 0, net(moved).argmax(1), own)
    return own, found, int((certified.radius > 0).sum())


def main(arguments: Any = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--certificates", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start, worst, largest, certificates, wrong, seed = time.monotonic(), 0.0, 0.0, 0, 0, 0
    for seed in range(options.seed, options.seed + options.graphs):
        net, shape = network(seed)
        folded = fold_network(net, shape)
        apart, slope = difference(net, folded, shape), excess(net, folded, shape)
        worst, largest = max(worst, apart), max(largest, slope)
        found = False
        if certificates < options.certificates:
            x = torch.randn(CERTIFIED, *shape, dtype=torch.float64)
            own, moved, count = attacked(net, folded, x)
            certificates += count
            found = not torch.equal(own, moved)
        if not apart <= TOLERANCE or not slope <= 1 + 1e-6 or found:
            print(f"seed {seed}: difference {apart:.3g}, slope {slope:.9g}, attacked {found}")
            wrong += 1
        if time.monotonic() - start > options.seconds:
            break
    print(
        f"{seed + 1 - options.seed} graphs: largest difference {worst:.2g} of the largest value, "
        f"largest slope {largest:.6f} of the bound; {certificates} certificates attacked; "
        f"{wrong} wrong; {time.monotonic() - start:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
