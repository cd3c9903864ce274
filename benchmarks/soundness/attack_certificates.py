"""Attack certificates of trained networks, strictly inside their radii.

    python -m benchmarks.soundness.attack_certificates --certificates 1000000 --ddn 20000 --seconds
    1500

Trains a small network for every model and activation of conf/ with several layers and data sets,
certifies samples, noisy samples, random points and points near the decision boundary by every
certifier that covers the network, and attacks all of them by the margin attack just inside the
radius and some by DDN with restarts, in float64. A success counts only if the perturbed input, as
it is in float64, lies inside the radius in rational arithmetic. Prints a line for every model and
activation. Exits with 1 if a certificate is broken and prints how to repeat it.

``--factor 1.5`` attacks radii that claim half as much again: what the attacks would notice.
"""

import argparse
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from robustcert.attacks import ddn, margin_attack
from robustcert.attacks.crosscheck import INSIDE
from robustcert.attacks.gradient import changed
from robustcert.config.build import build
from robustcert.data import Dataset, to_unit
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.margins import smallest_margin
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.objectives import EMMA

CONF = Path(__file__).parents[2] / "conf"
ALLOWED = ("robustcert",)
DATASETS = {"mlp": ["digits", "moons", "wedge"]}  # others take images
CHUNK = 4096


def names(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read(group: str, name: str) -> dict[str, Any]:
    """One option as plain values, nothing resolved."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return values


@dataclass(frozen=True)
class Case:
    """One network to train."""

    model: str
    activation: str
    layer: str
    dataset: str

    def __str__(self) -> str:
        return f"{self.model}/{self.activation}/{self.layer}/{self.dataset}"


@dataclass
class Tally:
    """Counts of one row of the table."""

    networks: int = 0
    attacked: int = 0
    broken: int = 0
    by_ddn: int = 0
    broken_by_ddn: int = 0
    quotients: list[float] = field(default_factory=list)


def train(case: Case, options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """A network after a few epochs, and the inputs of its data set."""
    config = read("dataset", case.dataset)
    dataset = build(config["dataset"], "dataset", ALLOWED, expected=Dataset)
    data, test = dataset.read("train"), dataset.read("test")
    x, y, epsilon = to_unit(data.inputs), data.labels, config["epsilon"]
    node = read("model", case.model) | {
        "width": options.width,
        "depth": options.depth,
        "layer": read("layer", case.layer),
        "activation": read("activation", case.activation),
        "mean": config["normalization"]["mean"],
        "std": [options.std * s for s in config["normalization"]["std"]],
        "normalize_head": bool(torch.rand(()) < 0.5),
    }
    shape = tuple(dataset.input_shape)
    model = build(node, "model", ALLOWED, input_shape=shape, num_classes=dataset.num_classes)
    objective = EMMA(0.2)
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x)).split(256):
            optimizer.zero_grad()
            loss = objective(model(x[rows]), y[rows], pairwise_lipschitz_estimate(model), epsilon)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
    return model.eval(), torch.cat([to_unit(test.inputs), x])


def inputs(network: PlainNetwork, samples: Tensor, count: int) -> Iterator[Tensor]:
    """Batches of points of every kind, without end; the first holds ``count`` samples."""
    samples = samples.double()
    yield samples[torch.randperm(len(samples))[:count]]
    while True:
        a, b = (samples[torch.randint(len(samples), (CHUNK // 4,))] for _ in range(2))
        size = (len(a), *(1,) * (a.dim() - 1))
        noisy = a + 10 ** (-3 * torch.rand(size, dtype=a.dtype)) * torch.randn_like(a)
        uniform = 3 * torch.rand_like(a) - 1
        mixed = a + torch.rand(size, dtype=a.dtype) * (b - a)
        yield torch.cat([noisy, uniform, mixed, near_boundary(network, a, b)])


def near_boundary(network: PlainNetwork, a: Tensor, b: Tensor) -> Tensor:
    """Points at distances down to 1e-12 from a change of the prediction between a and b."""
    first = network(a).argmax(1)
    size = (len(a), *(1,) * (a.dim() - 1))
    low, high = torch.zeros(2, *size, dtype=a.dtype)
    high += 1
    for _ in range(50):
        middle = (low + high) / 2
        same = (network(a + middle * (b - a)).argmax(1) == first).view(size)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return a + (low - 10 ** (-12 * torch.rand(size, dtype=a.dtype))) * (b - a)


def is_break(network: PlainNetwork, x: Tensor, label: int, radius: float, delta: Tensor) -> bool:
    """Whether ``x + delta``, as it is in float64, is inside the radius and not of the class."""
    other = x + delta
    move = [
        Fraction(p) - Fraction(q)
        for p, q in zip(other.flatten().tolist(), x.flatten().tolist(), strict=True)
    ]
    inside = sum(d * d for d in move) < Fraction(radius) ** 2
    margin = smallest_margin(network(other[None]), torch.tensor([label]))
    return inside and bool(changed(margin))


def certificates(
    network: PlainNetwork, samples: Tensor, certifiers: Sequence[Any], quota: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``quota`` points with their predictions and positive radii; the certifiers take turns."""
    found, left, barren = [], quota, 0
    for turn, x in enumerate(inputs(network, samples, quota // 5)):
        result = certifiers[turn % len(certifiers)].certify(network, x)
        rows = ((result.radius > 0) & result.radius.isfinite()).nonzero()[:left, 0]
        found.append((x[rows], result.prediction[rows], result.radius[rows]))
        left -= len(rows)
        barren = 0 if len(rows) else barren + 1
        if left <= 0 or barren == 5:
            break
    x, label, radius = (torch.cat(parts) for parts in zip(*found, strict=True))
    return x, label, radius


def attack(
    network: PlainNetwork,
    x: Tensor,
    label: Tensor,
    radius: Tensor,
    count: int,
    options: argparse.Namespace,
    tally: Tally,
) -> list[str]:
    """Attack certificates, ``count`` of them by DDN as well; the broken ones in words."""
    hits, shares = [], []
    for rows in torch.arange(len(x)).split(CHUNK):
        size = radius[rows] * INSIDE
        least, delta = margin_attack(
            network, x[rows], label[rows], size, steps=options.steps, seed=options.seed
        )
        shares.append(least / smallest_margin(network(x[rows]), label[rows]))
        hits += [("margin", int(rows[i]), delta[i]) for i in changed(least).nonzero()[:, 0]]
    tally.attacked += len(x)
    # DDN takes those where the margin fell furthest, and as many at random.
    weakest = torch.cat(shares).argsort()[: count // 2]
    chosen = torch.cat([weakest, torch.randperm(len(x))[: count - len(weakest)]])
    for rows in chosen.split(CHUNK):
        distance, delta = ddn(
            network,
            x[rows],
            label[rows],
            steps=options.ddn_steps,
            restarts=options.restarts,
            initial_norm=radius[rows],
            seed=options.seed,
        )
        tally.quotients += (distance / radius[rows]).tolist()
        hits += [("DDN", int(rows[i]), delta[i]) for i in (distance < radius[rows]).nonzero()[:, 0]]
    tally.by_ddn += len(chosen)
    messages = []
    for method, i, delta in hits:
        if is_break(network, x[i], int(label[i]), float(radius[i]), delta):
            tally.broken += method == "margin"
            tally.broken_by_ddn += method == "DDN"
            messages.append(f"{method}: radius {float(radius[i])!r} broken at {delta.norm():.17g}")
    return messages


def covering(network: PlainNetwork, names: Sequence[str]) -> list[Any]:
    """The certifiers that take the network."""
    found = []
    for name in names:
        certifier = build(read("certifier", name), "certifier", ALLOWED)
        try:
            certifier.certify(network, torch.zeros(1, *network.input_shape))
        except UnsoundNetworkError:
            continue
        found.append(certifier)
    return found


def run(case: Case, quota: int, count: int, options: argparse.Namespace, tally: Tally) -> list[str]:
    """Train a network and attack ``quota`` of its certificates, ``count`` by DDN."""
    torch.manual_seed(zlib.crc32(f"{options.seed} {case}".encode()))
    model, samples = train(case, options)
    shape = tuple(samples.shape[1:])
    network = fold_network(model, shape).to(torch.device("cpu"), torch.float64)
    certifiers = covering(network, options.certifiers)
    tally.networks += 1
    x, label, radius = certificates(network, samples, certifiers, quota)
    messages = attack(network, x, label, radius * options.factor, count, options, tally)
    return [f"{case}: {message}" for message in messages]


def report(table: dict[tuple[str, str], Tally]) -> int:
    """Print the table; the number of broken certificates."""
    print(
        f"{'model':9} {'activation':19} {'networks':>8} {'attacked':>9} {'broken':>6} "
        f"{'by DDN':>7} {'broken':>6} {'least':>9} {'median':>9}"
    )
    total = Tally()
    for (model, activation), row in [*sorted(table.items()), (("all", ""), total)]:
        if row is not total:
            for key, value in vars(row).items():
                setattr(total, key, getattr(total, key) + value)
        quotients = row.quotients or [float("nan")]
        print(
            f"{model:9} {activation:19} {row.networks:8} {row.attacked:9} {row.broken:6} "
            f"{row.by_ddn:7} {row.broken_by_ddn:6} {min(quotients):9.6f} {median(quotients):9.4f}"
        )
    print("least, median: distance found by DDN over certified radius")
    return total.broken + total.broken_by_ddn


def main() -> int:
    """Attack until the certificates or the seconds are used up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certificates", type=int, default=1_000_000)
    parser.add_argument("--ddn", type=int, default=20_000, help="how many are attacked by DDN too")
    parser.add_argument("--seconds", type=float, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=names("model"))
    parser.add_argument("--activations", nargs="+", default=names("activation"))
    parser.add_argument("--layers", nargs="+", default=["cholesky", "aol", "unconstrained"])
    parser.add_argument("--certifiers", nargs="+", default=names("certifier"))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--std", type=float, default=0.5, help="input scale, times the data set's")
    parser.add_argument("--steps", type=int, default=20, help="of the margin attack")
    parser.add_argument("--ddn-steps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10, help="of DDN")
    parser.add_argument("--factor", type=float, default=1.0, help="times the certified radius")
    options = parser.parse_args()
    cases = [
        Case(model, activation, layer, dataset)
        for model, activation, layer in product(options.models, options.activations, options.layers)
        for dataset in DATASETS.get(model, ["digits"])
    ]
    table: dict[tuple[str, str], Tally] = defaultdict(Tally)
    started, done, by_ddn, messages = time.monotonic(), 0, 0, []
    for i, case in enumerate(cases):
        if time.monotonic() - started > options.seconds:
            print(f"out of time: {len(cases) - i} of {len(cases)} networks were left out")
            break
        quota = -(-(options.certificates - done) // (len(cases) - i))
        count = -(-(options.ddn - by_ddn) // (len(cases) - i))
        tally = table[case.model, case.activation]
        before = tally.attacked, tally.by_ddn
        try:
            found = run(case, quota, count, options, tally)
        except ConfigError as error:
            print(f"{case}: left out: {error}")
            continue
        done += tally.attacked - before[0]
        by_ddn += tally.by_ddn - before[1]
        messages += found
        for message in found:
            print(f"BROKEN --seed {options.seed} {message}", flush=True)
    broken = report(table)
    print(f"{done} certificates attacked, {broken} broken, {time.monotonic() - started:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
