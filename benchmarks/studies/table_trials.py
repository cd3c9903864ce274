"""Trials behind the recipes of tables: verified accuracy in folds of the training split.

    python -m benchmarks.studies.table_trials outputs/table_trials
    python -m benchmarks.studies.table_trials outputs/table_trials --show

Every trial trains a network by `train.py` on each of FOLDS parts of a table's training split, with
inputs in standard deviations, and certifies the rows that were left out; the test split is not
read. Results are kept one by one: start a stopped run again.
"""

import argparse
import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.tables import COMMON, MIDDLE, NETWORKS, Arrays, shares, standardised

TABLES = ("breast_cancer", "phishing")
FOLDS = 3
SUBSPACES = ("model=subspaces", "~layer", "~capacity", "~activation", "certifier=quadratic")
# What is typed beside the recipe.
TRIALS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "radius up to 2 epsilon": ("epsilon_schedule.end=2",),
    "radius up to 1.3 epsilon": ("epsilon_schedule.end=1.3",),
    "2 layers of 256": ("model.width=256", "model.depth=2"),
    "smooth MaxMin, second order": ("activation=smooth", "certifier=second_order"),
    "weight decay 0.01": ("+optimizer.weight_decay=0.01",),
    "temperature 0.5, up to 2": ("objective.temperature=0.5", "epsilon_schedule.end=2"),
    "temperature 0.05, up to 1.3": ("objective.temperature=0.05", "epsilon_schedule.end=1.3"),
    "160 epochs, up to 2": ("trainer.max_epochs=160", "epsilon_schedule.end=2"),
    "8 subspaces of rank 2": (*SUBSPACES, "model.per_class=8", "model.rank=2"),
    "32 subspaces of rank 1": (*SUBSPACES, "model.per_class=32", "model.rank=1"),
    "128 subspaces of rank 1": (*SUBSPACES, "model.per_class=128", "model.rank=1"),
    "8 subspaces of rank 2 behind a dense layer": (
        *("model=deep_subspaces", "certifier=quadratic", "activation=smooth"),
        *("model.depth=1", "model.per_class=8", "model.rank=2"),
    ),
}


def folds(name: str, out: Path) -> list[tuple[Path, Arrays]]:
    """Parts of the training split: each a file to train on, and its arrays."""
    from sklearn.model_selection import StratifiedKFold

    _, arrays = standardised(name, out)
    x, y = arrays["x_train"], arrays["y_train"]
    found = []
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y)
    for k, (train, rest) in enumerate(split):
        part = {"x_train": x[train], "y_train": y[train], "x_test": x[rest], "y_test": y[rest]}
        path = out / f"{name}_fold_{k}.npz"
        np.savez(path, columns=arrays["columns"], **part)
        found.append((path, part))
    return found


def trial(name: str, typed: tuple[str, ...], path: Path, part: Arrays) -> dict[str, Any]:
    """How many of the rows that were left out are classified right, and stay so at each radius."""
    import tempfile

    import hydra

    import robustcert
    from robustcert.config.build import build_certifier
    from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
    from robustcert.network.fold import fold_network
    from robustcert.runs.commands import plain, register_resolvers
    from robustcert.runs.train import train

    register_resolvers()
    recipe = ("dataset=npz", f"dataset.root={path}", *COMMON, *NETWORKS[name][1])
    given = [option for option in recipe if "~capacity" not in typed or "capacity" not in option]
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        config = plain(hydra.compose("train", [*given, f"epsilon={MIDDLE}", "seed=0", *typed]))
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        module = robustcert.load_module(folder)
    x = torch.from_numpy(part["x_test"])
    network = fold_network(module, tuple(x.shape[1:]))
    found = build_certifier(config["certifier"]).certify(network, x)
    correct = (found.prediction == torch.from_numpy(part["y_test"])).numpy()
    return shares(correct, found.radius.numpy())


def table(rows: dict[str, Any]) -> str:
    """The trials as markdown: rows classified right, and verified ones, of all left out in turn."""
    heads = [f"{name}: right, verified at {MIDDLE:g}, of" for name in TABLES]
    lines = ["| trial | " + " | ".join(heads) + " |", "| --- " * (1 + len(heads)) + "|"]
    for words in TRIALS:
        cells = []
        for name in TABLES:
            found = [rows[key] for k in range(FOLDS) if (key := f"{name}, {words}, {k}") in rows]
            right, count = (sum(row[key] for row in found) for key in ("correct", "samples"))
            kept = sum(row["at"][str(MIDDLE)] for row in found)
            cells.append(f"{right}, {kept}, {count}" if found else "")
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what has not been, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--show", action="store_true", help="print what has been measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "trials.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    torch.set_num_threads(1)
    parts = {name: folds(name, options.out) for name in ([] if options.show else TABLES)}
    for name, files in parts.items():
        for (k, file), (words, typed) in product(enumerate(files), TRIALS.items()):
            key = f"{name}, {words}, {k}"
            if key not in rows:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows[key] = trial(name, typed, *file)
                kept.write_text(json.dumps(rows, indent=1))
                print(key, json.dumps(rows[key]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
