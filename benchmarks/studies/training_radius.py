r"""For which radius should one train? Verified accuracy against the radius at the end of training.

    python train.py -m experiment=fashion_mnist_1.0,fashion_mnist_1.0_subspaces certify=false \
        epsilon_schedule.end=0.25,0.5,0.75,1,1.5,2,3 trainer.max_epochs=4
    python -m benchmarks.studies.training_radius docs/figures/fashion_mnist_radius.png multirun

On the validation split, of ``best.ckpt``; every kind of model has a panel of its own, and every
radius at which it is certified a line, largest where it is best.
"""

import argparse
from pathlib import Path
from statistics import fmean

from robustcert.certificate.style import COLOURS, drawing, save
from robustcert.report.runs import Run, find_runs


def points(runs: list[Run], radius: float) -> tuple[list[float], list[float]]:
    """Radii at the end of training, and mean verified accuracies at ``radius``, ascending."""
    found: dict[float, list[float]] = {}
    for run in runs:
        trained = run.config["epsilon"] * run.config["epsilon_schedule"]["end"]
        found.setdefault(trained, []).append(run.metrics[f"val/vra_{radius:.4g}"])
    return sorted(found), [fmean(found[trained]) for trained in sorted(found)]


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="runs, or folders of runs")
    options = parser.parse_args()
    models: dict[str, list[Run]] = {}
    for run in find_runs(options.runs):
        if run.metrics:
            models.setdefault(run.config["model"]["_target_"].rpartition(".")[2], []).append(run)
    with drawing((1.0 + 4.6 * len(models), 3.6)) as figure:
        grid = figure.subplots(1, len(models), squeeze=False, sharey=True).ravel()
        for axes, (name, runs) in zip(grid, models.items(), strict=True):
            for radius, color in zip(runs[0].config["radii"], COLOURS, strict=False):
                trained, verified = points(runs, radius)
                style = {"color": color, "marker": "o"}
                axes.plot(trained, verified, **style, markersize=3, label=f"at {radius:g}")
                best = max(range(len(trained)), key=verified.__getitem__)
                axes.plot(trained[best], verified[best], **style, markersize=8)
            seeds = {run.config["seed"] for run in runs}
            axes.set_title(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}")
            axes.set_xlabel("radius at the end of training")
        grid[0].set_ylabel("verified accuracy, validation split")
        grid[0].set_ylim(0, 1)
        grid[-1].legend()
        save(figure, options.figure)


if __name__ == "__main__":
    main()
