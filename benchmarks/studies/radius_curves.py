"""Verified accuracy against radius: what certificates of runs prove of the test split.

    python train.py -m experiment=cifar10_1.0,cifar10_1.0_subspaces seed=0,1,2
    python -m benchmarks.studies.radius_curves docs/figures/cifar10_radii.png multirun

Every dataset has a panel, and every command a line: the mean over its seeds, in a band from the
least to the largest of them. The same is printed at the radii of the dataset.
"""

import argparse
import textwrap
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.publish.results import Refused, command_of
from robustcert.certificate.style import COLOURS, LINES, drawing, save
from robustcert.check.reader import parse_radii
from robustcert.report.runs import FINISHED, Run, find_runs

# Number of radii at which lines are drawn.
POINTS = 200

# The seeds of every command, with the radii that they prove.
Commands = dict[str, list[tuple[Run, NDArray[np.float64]]]]


def read(run: Run) -> NDArray[np.float64]:
    """Radii of all samples that are proved to be classified rightly; -1 for the others.

    Raises:
        Refused: the run has no certificate of the test split.
    """
    table = run.folder / "certificate" / "radii.csv"
    if run.state != FINISHED or not table.exists():
        raise Refused(f"{run.state} {run.detail}".strip())
    content = table.read_bytes()
    rows = parse_radii(content, content.count(b"\n") - 1)
    return np.array([row.radius if row.correct else -1.0 for row in rows])


def verified(radii: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the samples that are verified at some radii."""
    # At radius 0 what counts is a right prediction.
    return (radii[:, None] > np.where(at > 0, at, -0.5)).mean(axis=0)


def draw(axes: Axes, commands: Commands, largest: float) -> None:
    """One dataset's lines."""
    at = np.linspace(0, largest, POINTS)
    for place, (command, runs) in enumerate(commands.items()):
        curves = np.stack([verified(radii, at) for _, radii in runs])
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)]}
        label = f"{_short(command)}, {len(runs)} seed{'s' * (len(runs) > 1)}"
        axes.plot(at, curves.mean(axis=0), **style, linewidth=1.2, label=label)
        axes.fill_between(at, curves.min(axis=0), curves.max(axis=0), **style, alpha=0.2, lw=0)
    axes.set_xlabel("radius")
    axes.set_xlim(0, largest)
    axes.legend(fontsize=7)


def _short(command: str) -> str:
    # What fits into a legend.
    typed = command.removeprefix("python train.py ").removeprefix("experiment=")
    return textwrap.shorten(typed, 40, placeholder=" …")


def say(commands: Commands) -> None:
    """One dataset's table."""
    for command, runs in commands.items():
        first, _ = runs[0]
        at = np.array([0.0, *sorted(first.config["radii"])])
        found = np.stack([verified(radii, at) for _, radii in runs])
        spent = [run.seconds.get("train_processor", float("nan")) for run, _ in runs]
        cells = [
            f"{radius:.4g}: {mean:.4f} (least {least:.4f})"
            for radius, mean, least in zip(at, found.mean(0), found.min(0), strict=True)
        ]
        acr = fmean(radii.clip(0).mean() for _, radii in runs)
        size = f"{first.results['parameters']:,} parameters, {fmean(spent):.3g} processor s"
        print(f"{command}\n    {size}, ACR {acr:.4f}\n    {'; '.join(cells)}")


def main() -> None:
    """Draw the figure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="runs, or folders of runs")
    parser.add_argument("--largest", type=float, default=1.5, help="largest radius, input units")
    options = parser.parse_args()
    panels: dict[str, Commands] = {}
    for run in find_runs(options.runs):
        try:
            radii = read(run)
        except Refused as error:
            print(f"{run.name}: {error}")
            continue
        dataset = run.config["dataset"]["_target_"].rpartition(".")[2]
        panels.setdefault(dataset, {}).setdefault(command_of(run), []).append((run, radii))
    if not panels:
        parser.error("no run with a certificate of the test split")
    with drawing((1.0 + 4.6 * len(panels), 3.6)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True).ravel()
        for axes, (dataset, commands) in zip(grid, panels.items(), strict=True):
            draw(axes, commands, options.largest)
            axes.set_title(dataset)
            say(commands)
        # Up to the next tenth above all lines, which share their scale.
        top = max(line.get_ydata()[0] for axes in grid for line in axes.lines)  # type: ignore[index]
        grid[0].set_ylim(0, np.ceil(10 * top) / 10)
        grid[0].set_ylabel("verified accuracy, test split")
        save(figure, options.figure)


if __name__ == "__main__":
    main()
