"""Coverage and size of conformal prediction sets that hold under perturbations, over many draws.

    python -m benchmarks.studies.conformal outputs/conformal
    python -m benchmarks.studies.conformal outputs/conformal --show

Every seed draws training, calibration and test rows anew from all rows of a table, which makes
them exchangeable, trains a network by `train.py` and reads the prediction sets of its certificate:
their coverage without a perturbation and where an attack within RADIUS moves every test sample, and
their size in multiples of the sets that allow for no perturbation. The metric counts standard
deviations of the training rows. Results are kept one by one: start a stopped run again.
"""

import argparse
import json
import math
import platform
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

RADIUS, COVERAGE = 0.1, 0.9
# Shares of all rows, and of what is left of them.
TEST, CALIBRATION = 0.3, 0.4
COMMON = (
    *("dataset=npz", "dataset.domain=columns", "norm.scale=training", "capacity=tiny"),
    *("normalization={mean: training, std: training}", f"loader.calibration={CALIBRATION}"),
    *("loader.batch_size=32", "trainer.max_epochs=40", "trainer.enable_progress_bar=false"),
    *(f"epsilon={RADIUS}", f"radii=[{RADIUS}]", f"coverage={COVERAGE}", "attack.samples=1000"),
)
TABLES = {
    "diabetes": ("Diabetes", ("objective=squared", "layer=unconstrained", "optimizer.lr=0.01")),
    "phishing": ("Phishing", ()),
}


def draw(name: str, seed: int, out: Path) -> Path:
    """All rows of a table in a random order, cut into a train and a test split."""
    import robustcert.data as data

    dataset = getattr(data, TABLES[name][0])()
    splits = [dataset.read(split) for split in ("train", "test")]
    x = np.concatenate([part.inputs.numpy() for part in splits])
    y = np.concatenate([part.labels.numpy() for part in splits])
    order = np.random.RandomState(seed).permutation(len(x))
    count = round(TEST * len(x))
    test, rest = order[:count], order[count:]
    path = out / f"{name}_{seed}.npz"
    arrays = {"x_train": x[rest], "y_train": y[rest], "x_test": x[test], "y_test": y[test]}
    np.savez(path, columns=np.array(dataset.columns), **arrays)
    return path


def measure(name: str, seed: int, out: Path) -> dict[str, Any]:
    """What a run's certificate says of its sets, without a perturbation and at RADIUS."""
    import hydra

    from robustcert.config.command_line import CONFIG_DIR, HYDRA_VERSION
    from robustcert.runs.commands import plain, register_resolvers
    from robustcert.runs.train import train

    register_resolvers()
    folder = out / "runs" / f"{name}_{seed}"
    typed = [*COMMON, *TABLES[name][1], f"dataset.root={draw(name, seed, out)}", f"seed={seed}"]
    with hydra.initialize_config_dir(str(CONFIG_DIR), **HYDRA_VERSION):
        config = plain(hydra.compose("train", typed))
    if not (folder / "results.json").exists():
        train(config, folder)
    record = json.loads((folder / "certificate" / "certificate.json").read_text())
    sets = record["conformal"]
    plainly, moved = sets["radii"]
    assert (plainly["radius"], moved["radius"]) == (0.0, RADIUS)
    return {
        "calibration": sets["calibration"]["samples"],
        "test": record["summary"]["samples"],
        "unit": sets["unit"],
        "clean": plainly["coverage"],
        "attacked": moved["attacked"]["coverage"],
        "sizes": [plainly["size"], moved["size"]],
        "error": record["summary"].get("mean_absolute_error"),
    }


def table(rows: dict[str, Any]) -> str:
    """Means over the seeds, each with its standard error."""
    lines = [
        "| data | seeds | calibration, test | coverage | under attack | size | over plain size |"
    ]
    lines.append("| --- " * 7 + "|")
    for name in TABLES:
        found = [row for key, row in rows.items() if key.startswith(f"{name} ")]
        if not found:
            continue
        ratios = [row["sizes"][1] / row["sizes"][0] for row in found]
        cells = [
            *(mean([row[key] for row in found], 3) for key in ("clean", "attacked")),
            f"{mean([row['sizes'][1] for row in found], 4)} ({found[0]['unit']})",
            mean(ratios, 3),
        ]
        counts = f"{found[0]['calibration']}, {found[0]['test']}"
        lines.append(f"| {name} | {len(found)} | {counts} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{rows['machine']}."])


def mean(values: list[float], digits: int) -> str:
    """Mean and standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{fmean(values):.{digits}g} ± {error:.2g}"


def main() -> None:
    """Measure, and print the table."""
    from robustcert.runs.results import processor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--datasets", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--show", action="store_true", help="print what has been measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "conformal.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if not options.show:
        rows["machine"] = f"{processor()}, Python {platform.python_version()}"
        for name in options.datasets:
            for seed in range(options.seeds):
                if f"{name} {seed}" not in rows:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        rows[f"{name} {seed}"] = measure(name, seed, options.out)
                    kept.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
