"""Learning curve of a run: accuracy and verified accuracy on the validation split over epochs.

python benchmarks/learning_curve.py outputs/<run> docs/figures/cifar10_small.png
"""

import argparse
import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CURVES = {
    "val/accuracy": ("accuracy", "0.5"),
    "val/vra": ("verified accuracy (bound)", "#0b6e4f"),
    "train/vra_estimate": ("verified accuracy in training (estimate)", "#c1440e"),
}


def read(path: Path, column: str) -> tuple[list[int], list[float]]:
    """Epochs, from 1, and the values that a column has in them."""
    with path.open(newline="") as file:
        rows = [(row["epoch"], row.get(column)) for row in csv.DictReader(file)]
    found = [(int(epoch) + 1, float(value)) for epoch, value in rows if epoch and value]
    return [epoch for epoch, _ in found], [value for _, value in found]


def main() -> None:
    """Draw the curves of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for column, (label, color) in CURVES.items():
        epochs, values = read(options.run / "metrics" / "metrics.csv", column)
        axes.plot(epochs, values, color=color, label=f"{label}, {values[-1]:.3f} at the end")
    axes.set_xlabel("epoch")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(options.figure, dpi=130)


if __name__ == "__main__":
    main()
