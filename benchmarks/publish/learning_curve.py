"""Learning curves of runs: accuracy and verified accuracy on the validation split over epochs.

    python -m benchmarks.publish.learning_curve docs/figures/cifar10_small.png outputs/<run> ...

Every command has a panel of its own, in which the seeds are lines of one colour.
"""

import argparse
import csv
import math
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from benchmarks.publish.results import command_of
from robustcert.certificate.style import ATTACKED, NEUTRAL, VERIFIED, drawing, save
from robustcert.report.runs import Run, find_runs

CURVES = {
    "val/accuracy": ("accuracy", NEUTRAL),
    "val/vra": ("verified accuracy (bound)", VERIFIED),
    "train/vra_estimate": ("verified accuracy in training (estimate)", ATTACKED),
}
COLUMNS = 3


def read(path: Path, column: str) -> tuple[list[int], list[float]]:
    """Epochs, from 1, and the values that a column has in them."""
    with path.open(newline="") as file:
        rows = [(row["epoch"], row.get(column)) for row in csv.DictReader(file)]
    found = [(int(epoch) + 1, float(value)) for epoch, value in rows if epoch and value]
    return [epoch for epoch, _ in found], [value for _, value in found]


def draw(axes: Axes, command: str, runs: list[Run]) -> None:
    """One command's curves."""
    for column, (label, color) in CURVES.items():
        lines = [read(run.folder / "metrics" / "metrics.csv", column) for run in runs]
        end = fmean(values[-1] for _, values in lines)
        for epochs, values in lines:
            axes.plot(epochs, values, color=color, linewidth=1)
        axes.lines[-1].set_label(f"{label}, {end:.3f} at the end")
    seeds = "" if len(runs) == 1 else f", {len(runs)} seeds"
    axes.set_title(command.removeprefix("python train.py ") + seeds, fontsize=8)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7, loc="lower right")


def main() -> None:
    """Draw the curves of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="runs, or folders of runs")
    options = parser.parse_args()
    panels: dict[str, list[Run]] = {}
    for run in find_runs(options.runs):
        panels.setdefault(command_of(run), []).append(run)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with drawing((1.0 + 5.0 * columns, 3.4 * rows)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (command, runs) in zip(grid, panels.items(), strict=False):
            draw(axes, command, runs)
        for axes in grid[len(panels) :]:
            axes.remove()
        save(figure, options.figure)


if __name__ == "__main__":
    main()
