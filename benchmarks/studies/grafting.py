"""Linearity grafting on the digits, before and after, beside training on without it.

python -m benchmarks.studies.grafting [--seeds N] [--share 0.3]

Runs experiment=grafting_digits, by default three seeds, for MaxMin and ReLU; the control grafts no
unit. Of each: the share of units with a kink within epsilon of training samples (graft/kinks) and
verified accuracy on the validation split, before grafting and after the last epoch, and verified
accuracy of the last epoch's network on the test split. Means and standard deviations over seeds,
one thread.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
import torch

from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
from robustcert.runs.certify import certify
from robustcert.runs.commands import plain, register_resolvers
from robustcert.runs.train import train


def compose(base: str, share: float, seed: int) -> dict[str, Any]:
    """The configuration of one run."""
    overrides = [
        "experiment=grafting_digits",
        f"model.activation.base={base}",
        f"trainer.callbacks.0.share={share}",
        f"seed={seed}",
        "certify=false",
    ]
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        return plain(hydra.compose("train", overrides))


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Validation rows of a run, by epoch."""
    with (folder / "metrics" / "metrics.csv").open() as file:
        yield from (row for row in csv.DictReader(file) if row["val/vra"])


def measure(base: str, share: float, seed: int, folder: Path) -> list[float]:
    """Folds before and after, validation VRA before and after, test accuracy and VRA."""
    with redirect_stdout(StringIO()):
        config = compose(base, share, seed)
        train(config, folder)
        last = str(folder / "checkpoints" / "last.ckpt")
        found = certify(last, attack={"samples": 0}, output=str(folder / "last"))
    steps = list(rows(folder))
    before, after = steps[config["trainer"]["callbacks"][0]["epoch"] - 1], steps[-1]
    keys = ("graft/kinks", "val/vra")
    values = [float(row[key]) for key in keys for row in (before, after)]
    return [*values, found["test/accuracy"], found[f"test/vra_{config['epsilon']:.4g}"]]


def main() -> None:
    """Print a line for each activation, grafted or not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bases", nargs="+", default=["maxmin", "relu"])
    parser.add_argument("--share", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    print("base, share: kinks before, after; val/vra before, after; test accuracy, test vra")
    for base in options.bases:
        for share in (0.0, options.share):
            found = []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    found.append(measure(base, share, seed, Path(folder) / "run"))
            cells = [
                f"{mean(c):.3f} ± {stdev(c) if len(c) > 1 else 0:.3f}"
                for c in zip(*found, strict=True)
            ]
            print(f"{base}, {share}: " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
