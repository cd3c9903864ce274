r"""Attack certificates in random metrics on inputs, strictly inside their radii.

    python -m benchmarks.soundness.attack_metrics --certificates 50000 --ddn 2000

Networks with random weights (affine, dense with several activations, convolutional, quadratic) get
a random metric S: scales from 1/16 to 16, some columns or channels frozen, or a matrix with fewer,
as many or more directions than columns. Samples and points near the decision boundary are certified
by the certifiers in turn, and attacked in u: by the margin attack on all of them and by DDN with
restarts on some. S and u are multiples of powers of two, so that x + S u is computed without
rounding: a success counts if :math:`|u| < r` in rational arithmetic, and float64 sees another
prediction at this very point. Exits with 1 if a certificate is broken.

``--factor 1.5`` attacks radii that claim half as much again: what the attacks would notice.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from statistics import median

import torch
from torch import Tensor, nn

from robustcert import activations
from robustcert.attacks import ddn, margin_attack
from robustcert.attacks.crosscheck import INSIDE
from robustcert.attacks.gradient import changed
from robustcert.certifiers import (
    Certifier,
    CombinedCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
    QuadricCertifier,
)
from robustcert.errors import UnsoundNetworkError
from robustcert.margins import smallest_margin
from robustcert.models import MLP, LayerFamily, Subspaces
from robustcert.models.normalize import Normalize
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, Metric, factor, scaling
from robustcert.network.network import PlainNetwork

# Samples are multiples of the first, entries of S of the second, those of u of the third: with
# values below 2^9, sums of products fit the 53 bits of float64.
SAMPLE_GRID, METRIC_GRID, MOVE_GRID = 2.0**-12, 2.0**-8, 2.0**-34
COLUMNS, CHANNELS, SIDE, CLASSES = 7, 3, 5, 4
KINDS = ("affine", "relu", "maxmin", "smooth", "convolution", "quadratic")
METRICS = ("scales", "frozen", "matrix", "wide matrix", "narrow matrix")
LAYERS = LayerFamily(dense=nn.Linear, conv=nn.Conv2d)


@dataclass
class Tally:
    """Counts of one row of the table."""

    networks: int = 0
    attacked: int = 0
    broken: int = 0
    quotients: list[float] = field(default_factory=list)


def random_network(kind: str) -> PlainNetwork:
    """A network of random weights, with a normalisation of every column by itself."""
    spread = [0.5 + 3 * float(torch.rand(())) for _ in range(COLUMNS)]
    if kind == "convolution":
        convolution = nn.Conv2d(CHANNELS, 6, 3, padding=1, stride=int(torch.randint(1, 3, ())))
        first = nn.Sequential(
            Normalize([0.1], spread[:CHANNELS], channels=CHANNELS), convolution, nn.ReLU()
        )
        shape = (CHANNELS, SIDE, SIDE)
        size = first(torch.zeros(1, *shape)).numel()
        return fold_network(nn.Sequential(*first, nn.Flatten(), nn.Linear(size, CLASSES)), shape)
    if kind == "affine":
        model: nn.Module = nn.Sequential(
            Normalize([0.1], spread, channels=COLUMNS), nn.Linear(COLUMNS, CLASSES)
        )
    elif kind == "quadratic":
        model = Subspaces((COLUMNS,), CLASSES, per_class=2, rank=2)
    else:
        model = MLP(
            (COLUMNS,),
            CLASSES,
            width=16,
            depth=2,
            layer=LAYERS,
            activation={
                "relu": activations.ReLU,
                "maxmin": activations.GroupSort,
                "smooth": activations.SmoothMaxMin,
            }[kind],
            mean=[0.1] * COLUMNS,
            std=spread,
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return fold_network(model, (COLUMNS,))


def random_metric(kind: str, shape: Sequence[int]) -> Metric:
    """S in multiples of ``METRIC_GRID``."""
    size = shape[0]
    scale = (2 ** (8 * torch.rand(size, dtype=torch.float64) - 4) / METRIC_GRID).round()
    scale = scale * METRIC_GRID
    if kind == "scales" or (len(shape) > 1 and kind != "frozen"):
        return scaling(scale)
    if kind == "frozen":
        still = torch.randperm(size)[: int(torch.randint(1, size, ()))]
        return scaling(scale.index_fill(0, still, 0.0))
    width = {"matrix": size, "wide matrix": size + 3, "narrow matrix": max(1, size // 2)}[kind]
    matrix = torch.randn(size, width, dtype=torch.float64) * scale[:, None].sqrt()
    return factor((matrix / METRIC_GRID).round() * METRIC_GRID)


def certifiers_of(kind: str) -> list[Certifier]:
    """The certifiers that take turns."""
    if kind == "quadratic":
        return [QuadricCertifier()]
    found: list[Certifier] = [LipschitzCertifier(), LipschitzCertifier()]
    if kind != "convolution":
        found.append(LipSDPCertifier(iterations=10))
    return [*found, CombinedCertifier()] if kind == "smooth" else found


def samples(network: PlainNetwork, count: int) -> Iterator[Tensor]:
    """Batches without end, half of them near the boundary, in multiples of ``SAMPLE_GRID``."""
    while True:
        x, other = 3 * torch.randn(2, count, *network.input_shape, dtype=torch.float64)
        near = count // 2
        x[:near] = _near_boundary(network, x[:near], other[:near])
        yield (x / SAMPLE_GRID).round() * SAMPLE_GRID


def _near_boundary(network: PlainNetwork, a: Tensor, b: Tensor) -> Tensor:
    first, size = network(a).argmax(1), (len(a), *(1,) * (a.dim() - 1))
    low, high = torch.zeros(size, dtype=a.dtype), torch.ones(size, dtype=a.dtype)
    for _ in range(30):
        middle = (low + high) / 2
        same = (network(a + middle * (b - a)).argmax(1) == first).view(size)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return a + (low - 10 ** (-3 * torch.rand(size, dtype=a.dtype))) * (b - a)


def is_break(f: Callable[[Tensor], Tensor], u: Tensor, label: Tensor, radius: float) -> bool:
    """Whether u on the grid is inside the radius, and the point that it leads to of another class.

    Args:
        f: The function of u around one sample.
        u: Shape ``(1, *)``.
        label: Class, shape ``(1,)``.
        radius: What was certified.
    """
    u = (u / MOVE_GRID).trunc() * MOVE_GRID
    inside = sum(Fraction(v) ** 2 for v in u.flatten().tolist()) < Fraction(radius) ** 2
    return inside and bool(changed(smallest_margin(f(u), label)))


def attack(
    network: PlainNetwork,
    x: Tensor,
    label: Tensor,
    radius: Tensor,
    by_ddn: int,
    options: argparse.Namespace,
    tally: Tally,
) -> list[str]:
    """Attack certificates, ``by_ddn`` of them by DDN as well; the broken ones in words."""
    f, zero = network.around(x)
    least, u = margin_attack(f, zero, label, radius * INSIDE, steps=options.steps)
    hits = [("margin", int(i), u[i]) for i in changed(least).nonzero()[:, 0]]
    share = least / smallest_margin(network(x), label)
    rows = share.argsort()[:by_ddn]
    f, zero = network.around(x[rows])
    distance, u = ddn(
        f,
        zero,
        label[rows],
        steps=options.ddn_steps,
        restarts=options.restarts,
        initial_norm=radius[rows],
    )
    tally.quotients += (distance / radius[rows]).tolist()
    hits += [("DDN", int(rows[i]), u[i]) for i in (distance < radius[rows]).nonzero()[:, 0]]
    tally.attacked += len(x)
    messages = []
    for method, i, move in hits:
        around, _ = network.around(x[i : i + 1])
        if is_break(around, move[None], label[i : i + 1], float(radius[i])):
            tally.broken += 1
            messages.append(f"{method}: radius {float(radius[i])!r} broken at {move.norm():.17g}")
    return messages


def run(
    kind: str, metric: str, quota: int, by_ddn: int, options: argparse.Namespace, tally: Tally
) -> list[str]:
    """Attack ``quota`` certificates of a random network in a random metric."""
    network = random_network(kind)
    space = InputSpace("columns", None, random_metric(metric, network.input_shape))
    network = replace(network, space=space)
    tally.networks += 1
    messages: list[str] = []
    left, certifiers = quota, certifiers_of(kind)
    for turn, x in enumerate(samples(network, -(-quota // len(certifiers)))):
        try:
            found = certifiers[turn % len(certifiers)].certify(network, x)
        except UnsoundNetworkError as error:
            return [*messages, f"not certified: {error}"]
        rows = ((found.radius > 0) & found.radius.isfinite()).nonzero()[:left, 0]
        radius = found.radius[rows] * options.factor
        count = -(-by_ddn // len(certifiers))
        part = x[rows], found.prediction[rows], radius
        messages += attack(network, *part, count, options, tally)
        left -= len(rows)
        if left <= 0 or turn > 8 * len(certifiers):
            return messages
    return messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack until the certificates are used up; 1 if one is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certificates", type=int, default=50_000)
    parser.add_argument("--ddn", type=int, default=2_000, help="how many are attacked by DDN too")
    parser.add_argument("--networks", type=int, default=4, help="of each kind in each metric")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20, help="of the margin attack")
    parser.add_argument("--ddn-steps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=3, help="of DDN")
    parser.add_argument("--factor", type=float, default=1.0, help="times the certified radius")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    cases = [(k, m) for k in KINDS for m in METRICS for _ in range(options.networks)]
    table: dict[str, Tally] = defaultdict(Tally)
    started, done = time.monotonic(), 0
    for i, (kind, metric) in enumerate(cases):
        tally, before = table[kind], table[kind].attacked
        quota = -(-(options.certificates - done) // (len(cases) - i))
        for message in run(kind, metric, quota, -(-options.ddn // len(cases)), options, tally):
            print(f"BROKEN --seed {options.seed} {kind}, {metric}: {message}", flush=True)
        done += tally.attacked - before
    print(
        f"{'network':12} {'networks':>8} {'attacked':>8} {'broken':>6} {'least':>9} {'median':>8}"
    )
    for kind, row in table.items():
        least, middle = min(row.quotients), median(row.quotients)
        print(
            f"{kind:12} {row.networks:8} {row.attacked:8} {row.broken:6} {least:9.6f} {middle:8.3f}"
        )
    broken = sum(row.broken for row in table.values())
    print("least, median: distance found by DDN over certified radius")
    print(f"{done} certificates attacked, {broken} broken, {time.monotonic() - started:.0f} s")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
