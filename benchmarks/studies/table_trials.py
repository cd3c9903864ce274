r"""Trials behind the recipes of tables: verified accuracy in folds of the training split.

    python -m benchmarks.studies.table_trials outputs/table_trials
    python -m benchmarks.studies.table_trials outputs/table_trials --trials 'the recipe' --seeds 3
    python -m benchmarks.studies.table_trials outputs/table_trials --show
    python -m benchmarks.studies.table_trials outputs/table_trials --tables phishing --seeds 3 \
        --trials 'logistic regression on steps' 'random forest, not attacked'

Every trial trains a network by `train.py` on each of FOLDS parts of a table's training split, with
inputs in standard deviations, and certifies the rows that were left out; the test split is not
read. Results are kept one by one: start a stopped run again.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.tables import (
    COMMON,
    MIDDLE,
    NETWORKS,
    TREES,
    Arrays,
    shares,
    standardised,
    stepped,
)
from robustcert.network.network import PlainNetwork

TABLES = ("breast_cancer", "phishing")
FOLDS = 3
MEMBERS = 3  # networks whose logits are averaged
SUBSPACES = ("model=subspaces", "~layer", "~capacity", "~activation", "certifier=quadratic")
WIDE = ("model.width=256", "model.depth=2")
# What pays at the large radii of images.
SOFT = ("objective.temperature=0.5", "epsilon_schedule.end=2")
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
    "2 layers of 256, temperature 0.5, up to 2": (*WIDE, *SOFT),
    "2 layers of 256, average of weights": (*WIDE, "callbacks=weight_averaging"),
    "smooth MaxMin, 2 layers of 256, second order, temperature 0.5, up to 2": (
        *("activation=smooth", "certifier=second_order"),
        *(*WIDE, *SOFT),
    ),
    "32 subspaces of rank 1, temperature 0.5, up to 2": (
        *(*SUBSPACES, "model.per_class=32", "model.rank=1"),
        *SOFT,
    ),
    "8 subspaces of rank 4, temperature 0.5, up to 2": (
        *(*SUBSPACES, "model.per_class=8", "model.rank=4"),
        *SOFT,
    ),
    "8 subspaces of rank 2 behind 2 layers of 256, temperature 0.5, up to 2": (
        *("model=deep_subspaces", "certifier=quadratic", "layer=cholesky_residual"),
        *("model.per_class=8", "model.rank=2", *WIDE, *SOFT),
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


def trained(name: str, typed: tuple[str, ...], seed: int, path: Path) -> tuple[PlainNetwork, Any]:
    """A network trained on a part, and the options of its certifier."""
    import tempfile

    import hydra

    import robustcert
    from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
    from robustcert.network.fold import fold_network
    from robustcert.runs.commands import plain, register_resolvers
    from robustcert.runs.train import train

    register_resolvers()
    recipe = ("dataset=npz", f"dataset.root={path}", *COMMON, *NETWORKS[name][1])
    given = [option for option in recipe if "~capacity" not in typed or "capacity" not in option]
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        config = plain(
            hydra.compose("train", [*given, f"epsilon={MIDDLE}", f"seed={seed}", *typed])
        )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        module = robustcert.load_module(folder)
    with np.load(path) as arrays:
        shape = arrays["x_test"].shape[1:]
    return fold_network(module, shape), config["certifier"]


def trial(name: str, words: str, seed: int, path: Path, part: Arrays) -> dict[str, Any]:
    """How many of the rows that were left out are classified right, and stay so at each radius."""
    from robustcert.config.build import build_certifier

    network, certifier = trained(name, TRIALS[words], seed, path)
    found = build_certifier(certifier).certify(network, torch.from_numpy(part["x_test"]))
    correct = (found.prediction == torch.from_numpy(part["y_test"])).numpy()
    return shares(correct, found.radius.numpy())


def averaged(name: str, _: str, seed: int, path: Path, part: Arrays) -> dict[str, Any]:
    """The mean of the logits of networks of the recipe, whose constants are at most their mean."""
    from robustcert.certifiers import LipschitzCertifier
    from robustcert.margins import certified_radius

    x, y = torch.from_numpy(part["x_test"]).double(), torch.from_numpy(part["y_test"])
    members = [trained(name, (), MEMBERS * seed + k, path)[0] for k in range(MEMBERS)]
    logits = torch.stack([network(x) for network in members]).mean(0)
    bounds = [LipschitzCertifier().pairwise_bound(network) for network in members]
    radius = certified_radius(logits, y, torch.stack(bounds).mean(0)).detach().numpy()
    return shares(radius > 0, radius)


def stepwise(_name: str, _words: str, _seed: int, _path: Path, part: Arrays) -> dict[str, Any]:
    """Logistic regression on steps."""
    return stepped(part)


def grown(_name: str, _words: str, seed: int, _path: Path, part: Arrays) -> dict[str, Any]:
    """A random forest that nothing attacks: what is right is an upper bound of what is robust."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(TREES, random_state=seed).fit(part["x_train"], part["y_train"])
    correct = model.predict(part["x_test"]) == part["y_test"]
    return shares(correct, np.full(len(correct), np.inf))


# Models that are not trained by one command, of the arguments of a trial.
OTHERS: dict[str, Callable[[str, str, int, Path, Arrays], dict[str, Any]]] = {
    "mean of three networks of the recipe": averaged,
    "logistic regression on steps": stepwise,
    "random forest, not attacked": grown,
}


def table(rows: dict[str, Any]) -> str:
    """The trials as markdown: rows classified right, and verified ones, of all left out in turn."""
    heads = [f"{name}: right, verified at {MIDDLE:g}, of" for name in TABLES]
    lines = ["| trial | " + " | ".join(heads) + " |", "| --- " * (1 + len(heads)) + "|"]
    for words in (*TRIALS, *OTHERS):
        cells = []
        for name in TABLES:
            found = [row for key, row in rows.items() if key.startswith(f"{name}, {words}, fold ")]
            right, count = (sum(row[key] for row in found) for key in ("correct", "samples"))
            kept = sum(row["at"][str(MIDDLE)] for row in found)
            cells.append(f"{right}, {kept}, {count}" if found else "")
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what has not been, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), choices=[*TRIALS, *OTHERS])
    parser.add_argument("--seeds", type=int, default=1, help="trainings on each part")
    parser.add_argument("--show", action="store_true", help="print what has been measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "trials.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    torch.set_num_threads(1)
    for name in [] if options.show else options.tables:
        parts = folds(name, options.out)
        for seed, words, (k, file) in product(
            range(options.seeds), options.trials, enumerate(parts)
        ):
            key = f"{name}, {words}, fold {k}, seed {seed}"
            if key not in rows:
                start = time.process_time()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows[key] = OTHERS.get(words, trial)(name, words, seed, *file)
                rows[key]["seconds"] = round(time.process_time() - start, 1)
                kept.write_text(json.dumps(rows, indent=1))
                print(key, json.dumps(rows[key]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
