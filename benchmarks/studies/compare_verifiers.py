"""Certified radius and CPU seconds per sample of each verifier on the same folded networks.

python -m benchmarks.studies.compare_verifiers --seeds 3 --samples 20

Small dense networks, one per activation and seed, are trained by cross-entropy on a toy in the
plane and on the digits. Medians are over correctly classified samples, then averaged over seeds;
'exact' is the lower bound of branch and bound on the plane (piecewise linear networks only), with
the number of samples where it met the upper one, and 'DDN' an attack, from above.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcert.activations import Abs, GroupSort, ReLU, SmoothMaxMin, Softplus, Tanh
from robustcert.attacks import ddn
from robustcert.certifiers import (
    CombinedCertifier,
    CROWNCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
    LocalLipschitzCertifier,
)
from robustcert.data import Digits, Square, to_unit
from robustcert.errors import UnsoundNetworkError
from robustcert.ground_truth.exact_distance import Distance, exact_distance
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": ReLU,
    "Abs": Abs,
    "MaxMin": GroupSort,
    "SmoothMaxMin, 0.5": partial(SmoothMaxMin, temperature=0.5, learnable=False),
    "softplus, 0.5": partial(Softplus, temperature=0.5, learnable=False),
    "tanh": Tanh,
}
VERIFIERS = {
    "lipschitz": LipschitzCertifier(),
    "lipsdp": LipSDPCertifier(),
    "second order": CombinedCertifier(),
    "local lipsdp": LocalLipschitzCertifier(),
    "crown alone": CROWNCertifier(alone=True),
}


def train(x: Tensor, y: Tensor, activation: Callable[[int], nn.Module], width: int) -> PlainNetwork:
    """A dense network of two hidden layers, folded."""
    sizes, classes = x[0].numel(), int(y.max()) + 1
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(sizes, width),
        activation(width),
        nn.Linear(width, width),
        activation(width),
        nn.Linear(width, classes),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        rows = torch.randint(0, len(x), (128,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fold_network(model.eval(), x.shape[1:])


@dataclass
class Cell:
    """One verifier on one network, seed by seed.

    Attributes:
        radius: Median certified radius.
        share: Median of the radius over the attack's distance.
        seconds: CPU seconds per sample.
    """

    radius: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.radius:
            return "—"
        low, high = min(self.share), max(self.share)
        radius, milliseconds = mean(self.radius), 1e3 * mean(self.seconds)
        return f"{radius:.3f}; {mean(self.share):.2f} [{low:.2f}, {high:.2f}]; {milliseconds:.1f}"


def timed(run: Callable[[], Tensor], count: int) -> tuple[Tensor, float]:
    """What is returned, and CPU seconds per sample."""
    start = time.process_time()
    return run(), (time.process_time() - start) / count


def compare(network: PlainNetwork, x: Tensor, own: Tensor, cells: dict[str, Cell]) -> None:
    """Add one network's figures to the cells."""

    def add(name: str, run: Callable[[], Tensor]) -> None:
        try:
            radius, seconds = timed(run, len(x))
        except UnsoundNetworkError:
            return
        cells[name].radius.append(float(radius.median()))
        cells[name].share.append(float((radius / attacked).median()))
        cells[name].seconds.append(seconds)

    def attack() -> Tensor:
        return ddn(network, x, own, restarts=3, initial_norm=0.1)[0]

    attacked, seconds = timed(attack, len(x))
    cells["DDN (above)"].radius.append(float(attacked.median()))
    cells["DDN (above)"].share.append(1.0)
    cells["DDN (above)"].seconds.append(seconds)
    for name, certifier in VERIFIERS.items():
        add(name, lambda c=certifier: c.certify(network, x).radius)
    if x[0].numel() > 2:
        return
    found: list[Distance] = []

    def exact() -> Tensor:
        found.extend(exact_distance(network, sample) for sample in x)
        # What is proved: where the search stopped early this is below the distance.
        return torch.tensor([distance.lower for distance in found])

    add("exact", exact)
    if found:
        solved = sum(d.lower >= d.upper * (1 - 2e-6) for d in found)
        cells["solved"].radius.append(solved)
        cells["solved"].share.append(len(found))


def main() -> None:
    """Train, verify and print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = [*VERIFIERS, "exact", "DDN (above)"]
    print("median radius; share of DDN's distance [range over seeds]; CPU ms per sample")
    print(f"| network | {' | '.join(columns)} | exact where lower met upper |")
    print(f"|---|{'---|' * len(columns)}---|")
    for data, width in ((Square(), 16), (Digits(), 32)):
        train_split, test = data.read("train"), data.read("test")
        x, y = to_unit(train_split.inputs), train_split.labels
        for name, activation in ACTIVATIONS.items():
            cells: dict[str, Cell] = defaultdict(Cell)
            for seed in range(arguments.seeds):
                torch.manual_seed(seed)
                network = train(x, y, activation, width)
                z = to_unit(test.inputs).double()
                own = network(z).argmax(1)
                rows = (own == test.labels).nonzero()[: arguments.samples, 0]
                compare(network, z[rows], own[rows], cells)
            solved = cells["solved"]
            met = f"{sum(solved.radius):.0f} of {sum(solved.share):.0f}" if solved.radius else "—"
            row = " | ".join(str(cells[column]) for column in columns)
            print(f"| {data.name} {width}, {name} | {row} | {met} |", flush=True)


if __name__ == "__main__":
    main()
