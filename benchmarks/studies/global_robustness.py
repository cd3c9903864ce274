r"""Global robustness by every method on the same small networks, several seeds.

python -m benchmarks.studies.global_robustness [--seeds 3] [--nodes 1500]

Dense ReLU networks, trained by cross-entropy with and without the penalty of
objective=global_robustness. For all pairs of inputs of the unit box within delta in linf: the
largest change of an output by the Lipschitz bound, by symbolic bounds, by linear programmes of the
interleaved twin encoding (over one fold at a time; over all; over all with some neurons decided),
exactly (branch and bound, proved; HiGHS' own optimum in floats), and from below by an attack on
10,000 pairs. Of every network the mean over its first three outputs; of these mean and standard
deviation over seeds. Lipschitz constants are of l2 distances: within delta in linf, n inputs are
within sqrt(n) delta in l2. Seconds are CPU time for these outputs, one thread.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from robustcert.activations import ReLU
from robustcert.attacks import largest_changes
from robustcert.certifiers.global_robustness.mip import (
    Effort,
    change_bounds,
    exactly,
    mixed_change,
    tighten,
)
from robustcert.certifiers.global_robustness.twin import Domain, Twin
from robustcert.data import Dataset, Digits, Moons, Square, to_unit
from robustcert.lipschitz import pairwise_lipschitz_estimate
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork, output_bound
from robustcert.objectives import GlobalRobustness
from robustcert.relaxations.backward import steps_of

REFINED = 6
# Seconds that HiGHS gets for one output.
HIGHS = 6.0


@dataclass(frozen=True)
class Case:
    """A data set, the widths of the hidden layers, delta, and epsilon and weight of the penalty."""

    data: Dataset
    widths: tuple[int, ...]
    delta: float
    epsilon: float
    weights: tuple[float, ...]


CASES = (
    Case(Square(), (8, 8), 0.02, 0.05, (0.0, 0.1)),
    Case(Moons(), (12, 12), 0.02, 0.05, (0.0, 0.1)),
    Case(Digits(), (16,), 0.01, 0.1, (0.0, 1.0)),
)


def train(case: Case, weight: float, seed: int) -> tuple[PlainNetwork, float]:
    """A trained network, folded, and its accuracy on the test split."""
    torch.manual_seed(seed)
    split, test = case.data.read("train"), case.data.read("test")
    x, y = to_unit(split.inputs).flatten(1), split.labels
    sizes = (x.shape[1], *case.widths)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ReLU(after)]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], case.data.num_classes))
    objective = GlobalRobustness(weight)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(600):
        rows = torch.randint(0, len(x), (128,))
        constants = pairwise_lipschitz_estimate(model)
        loss = objective(model(x[rows]), y[rows], constants, case.epsilon)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network = fold_network(model.eval(), (x.shape[1],))
    hits = network(to_unit(test.inputs).flatten(1)).argmax(1) == test.labels
    return network, float(hits.double().mean())


def measure(network: PlainNetwork, delta: float, nodes: int) -> Iterator[tuple[str, float]]:
    """Names of methods with their mean bounds, and their CPU seconds; then what was not closed."""
    inputs = math.prod(network.input_shape)
    low = torch.zeros(inputs, dtype=torch.float64)
    domain, steps = Domain(low, low + 1, delta, "linf"), steps_of(network)
    rows, lengths = _rows(network)
    effort, open_ = Effort(), 0.0

    def timed(name: str, run: Callable[[], Tensor]) -> Iterator[tuple[str, float]]:
        start = time.process_time()
        bound = run()
        yield name, float(bound.mean())
        yield f"{name}, s", time.process_time() - start

    yield from timed("K sqrt(n) delta", lambda: lengths * domain.distance("l2"))
    yield from timed("symbolic", lambda: Twin(steps, domain).change(rows))
    short = Effort(window=1)
    yield from timed(
        "LP, one fold", lambda: change_bounds(tighten(steps, domain, short), rows, short)[0]
    )
    yield from timed("LP", lambda: change_bounds(tighten(steps, domain, effort), rows, effort)[0])
    some = Effort(refine=REFINED, nodes=100)
    yield from timed(
        f"LP, {REFINED} decided", lambda: change_bounds(tighten(steps, domain, some), rows, some)[0]
    )
    twin = tighten(steps, domain, effort)

    def exact() -> Tensor:
        nonlocal open_
        bound, closed = change_bounds(twin, rows, exactly(Effort(nodes=nodes)))
        open_ = closed.count(False) / len(closed)
        return bound

    yield from timed("exact, proved", exact)

    def solver() -> Tensor:
        return torch.tensor([mixed_change(twin, row, HIGHS).dual_bound for row in rows])

    yield from timed("exact, HiGHS (floats)", solver)
    yield from timed("attack, from below", lambda: _attack(network, domain, rows))
    yield "share not closed", open_


def _rows(network: PlainNetwork) -> tuple[Tensor, Tensor]:
    """The first three outputs, and their Lipschitz bounds."""
    lengths = output_bound(network)
    return torch.eye(len(lengths), dtype=torch.float64)[:3], lengths[:3]


def _attack(network: PlainNetwork, domain: Domain, rows: Tensor) -> Tensor:
    sides = domain.low, domain.high, domain.delta, domain.norm
    return largest_changes(network, *sides, rows, tries=10_000)


def euclidean(network: PlainNetwork, delta: float) -> Iterator[tuple[str, float]]:
    """The same for l2 distances."""
    low = torch.zeros(math.prod(network.input_shape), dtype=torch.float64)
    domain = Domain(low, low + 1, delta, "l2")
    rows, lengths = _rows(network)
    yield "l2: K delta", float(lengths.mean()) * delta
    yield "l2: symbolic", float(Twin(steps_of(network), domain).change(rows).mean())
    yield "l2: attack, from below", float(_attack(network, domain, rows).mean())


def main() -> None:
    """Train, bound and print one table per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=1500, help="of one exact bound, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        for weight in case.weights:
            found: dict[str, list[float]] = {}
            for seed in range(arguments.seeds):
                network, accuracy = train(case, weight, seed)
                named = [("accuracy", accuracy)]
                named += measure(network, case.delta, arguments.nodes)
                named += euclidean(network, case.delta)
                for name, value in named:
                    found.setdefault(name, []).append(value)
            sizes = "-".join(map(str, (*case.widths, case.data.num_classes)))
            print(
                f"\n{case.data.name}, {math.prod(case.data.input_shape)}-{sizes}, delta "
                f"{case.delta}, penalty {weight} at {case.epsilon}\n\n| | mean | sd | CPU s |\n"
                "|---|---|---|---|"
            )
            for name, values in found.items():
                if name.endswith(", s"):
                    continue
                clock = found.get(f"{name}, s")
                spread = stdev(values) if len(values) > 1 else math.nan
                spent = f"{mean(clock):.2f}" if clock else ""
                print(f"| {name} | {mean(values):.4f} | {spread:.4f} | {spent} |", flush=True)


if __name__ == "__main__":
    main()
