"""Capacity that a verified accuracy takes, with corners alone and with distances to subspaces.

    python -m benchmarks.studies.capacity docs/figures/capacity.png outputs/capacity

MNIST at 1.58 and CIFAR-10 at 1.0: networks of four sizes on both sides, of about the same number of
parameters and trained for about the same processor time, are certified on the test split. Runs that
are finished are found again. Draws verified accuracy against parameters and prints the table.
"""

import argparse
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.studies.radius_curves import read, verified
from benchmarks.studies.radius_trials import train
from robustcert.certificate.style import COLOURS, LINES, drawing, save
from robustcert.report.runs import Run

# Radius of each dataset, trained for and judged by, and what is typed for either side.
DATA = {
    "MNIST": (
        1.58,
        {
            "corners": "experiment=mnist_1.58 ~capacity model.depth=4",
            "subspaces": "experiment=mnist_1.58_deep_subspaces loader.augmentation=null",
        },
    ),
    "CIFAR-10": (
        1.0,
        {
            "corners": "experiment=cifar10_1.0",
            "subspaces": "experiment=cifar10_1.0_subspaces",
        },
    ),
}
# One network of each size: width, subspaces of a class and their rank. Corners have four layers of
# the width, subspaces two before them.
SIZES = ((32, 2, 4), (112, 4, 6), (320, 8, 8), (704, 16, 8))
# Epochs of the sizes that take about the same processor time, by dataset and side.
EPOCHS = {
    "MNIST": {"corners": (54, 51, 39, 22), "subspaces": (27, 26, 21, 18)},
    "CIFAR-10": {"corners": (35, 43, 40, 25), "subspaces": (22, 26, 26, 21)},
}
SIDES = ("corners", "subspaces")


@dataclass(frozen=True)
class Network:
    """One network of the study.

    Attributes:
        data: One of :data:`DATA`.
        side: One of :data:`SIDES`.
        size: Place in :data:`SIZES`.
    """

    data: str
    side: str
    size: int

    @property
    def radius(self) -> float:
        """Trained for and judged by."""
        return DATA[self.data][0]

    @property
    def overrides(self) -> list[str]:
        """What is typed after ``python train.py``."""
        width, per_class, rank = SIZES[self.size]
        epochs = EPOCHS[self.data][self.side][self.size]
        pieces = (f"model.per_class={per_class}", f"model.rank={rank}")
        return [
            *DATA[self.data][1][self.side].split(),
            f"model.width={width}",
            *(pieces if self.side == "subspaces" else ()),
            f"trainer.max_epochs={epochs}",
            f"trainer.check_val_every_n_epoch={epochs}",
            *("trainer.precision=bf16-mixed", "loader.batch_size=512", "optimizer.lr=0.01"),
            *("attack.samples=0", "seed=0"),
        ]


def draw(axes: Axes, place: int, side: str, found: list[tuple[Network, Run]]) -> None:
    """The line of one side."""
    axes.plot(
        [run.results["parameters"] for _, run in found],
        [share(network, run) for network, run in found],
        color=COLOURS[place],
        linestyle=LINES[place],
        marker="o",
        markersize=4,
        label=side,
    )


def share(network: Network, run: Run) -> float:
    """Verified accuracy of the test split at the network's radius."""
    return float(verified(read(run), np.array([network.radius]))[0])


def row(network: Network, run: Run) -> str:
    """A line of the table."""
    cells = [
        *(network.data, network.side, f"{run.results['parameters']:,}"),
        f"{EPOCHS[network.data][network.side][network.size]}",
        f"{run.seconds['train_processor']:.0f} s",
        f"{verified(read(run), np.zeros(1))[0]:.4f}",
        f"{share(network, run):.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is not finished, draw the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, a thread each")
    options = parser.parse_args()
    order = itertools.product(range(len(SIZES)), DATA, SIDES)
    networks = [Network(data, side, size) for size, data, side in order]
    folders = [options.out / f"{n.data}-{n.side}-{n.size}" for n in networks]
    with ThreadPoolExecutor(options.processes) as pool:
        found = pool.map(train, [network.overrides for network in networks], folders)
        runs = dict(zip(networks, found, strict=True))
    print("| data | side | parameters | epochs | training | accuracy | verified |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network in sorted(networks, key=lambda n: (n.data, n.side, n.size)):
        print(row(network, runs[network]))
    with drawing((9.0, 3.6)) as figure:
        for axes, (data, (radius, _)) in zip(
            figure.subplots(1, len(DATA)), DATA.items(), strict=True
        ):
            for place, side in enumerate(SIDES):
                own = [n for n in networks if (n.data, n.side) == (data, side)]
                draw(axes, place, side, [(n, runs[n]) for n in own])
            axes.set_title(f"{data}, radius {radius}")
            axes.set_xscale("log")
            axes.set_xlabel("parameters")
            axes.set_ylabel("verified accuracy, test split")
            axes.legend(fontsize=8)
        save(figure, options.figure)


if __name__ == "__main__":
    main()
