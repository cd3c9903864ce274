"""What made the difference: a base and one change at a time, on the validation split.

    python -m benchmarks.studies.ablation --experiment mnist_1.58 --epochs 4 --out outputs/ablation

Overrides that follow, such as ``model.width=256``, are part of the base. Runs there already are not
repeated, begun ones are continued, so the command can be stopped and given again. Nothing is
certified and the test split is not read: ``val/vra`` of ``best.ckpt`` rests on proved bounds.
Differences from the base are taken seed by seed. ``--page docs/results.md`` puts the table there.
``--generated FILE`` adds a row that trains on generated images too, one for each real one.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from math import prod, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.publish.results import place
from benchmarks.studies.claims import compose
from robustcert.config.build import COMMAND_LINE_TARGETS, build_dataset
from robustcert.errors import ConfigError, DivergedError, UnsoundNetworkError
from robustcert.runs.results import read_row
from robustcert.runs.train import train

AFFINE = "{_target_:robustcert.data.RandomAffine,degrees:8.0,translate:0.05,scale:0.05}"
CHANGES: dict[str, list[str]] = {
    "layer": [
        *(f"layer={name}" for name in ("aol", "cayley", "cholesky_residual", "sll")),
        *(f"layer={name}" for name in ("sandwich", "lires", "unconstrained")),
    ],
    "activation": [
        *(f"activation={name}" for name in ("relu", "abs", "householder", "n_activation")),
        *(
            f"activation={name}"
            for name in ("smooth", "smooth_abs", "smooth_householder", "norm_pair")
        ),
    ],
    "objective": [
        *(f"objective={name}" for name in ("cross_entropy", "gloro", "trades_gloro", "lmt")),
        *(f"objective={name}" for name in ("offset_cross_entropy", "logit_annealing", "hkr")),
        "objective.temperature=0.1",
        "objective.temperature=0.4",
    ],
    "head": ["model.normalize_head=false"],
    "schedule": [
        "epsilon_schedule.start=1.0",
        "epsilon_schedule.end=1.0",
        "epsilon_schedule.end=2.0",
        "lr_schedule.final=1.0",
        "lr_schedule.warmup=0.1",
    ],
}
Rows = dict[tuple[str, str], list[dict[str, Any]]]
HEAD = ("what", "change", "parameters", "accuracy", "verified", "difference", "seconds")


def changes(config: dict[str, Any], generated: Path | None = None) -> list[tuple[str, str]]:
    """Kinds of changes and what is typed for them; the base comes first, with nothing typed."""
    found = [("base", "")]
    found += [(kind, typed) for kind, options in CHANGES.items() for typed in options]
    found += [("width, depth", typed) for typed in shapes(config)]
    augmented = config["loader"]["augmentation"]
    images = len(build_dataset(config, COMMAND_LINE_TARGETS).input_shape) == 3
    if augmented or images:
        typed = "loader.augmentation=" + ("null" if augmented else f"[{AFFINE}]")
        found.append(("augmentation", typed))
    if generated:
        typed = f"loader.generated={generated} loader.generated_ratio=1.0"
        found.append(("extra data", typed))
    return found


def shapes(config: dict[str, Any]) -> list[str]:
    """Depths with the width at which an MLP has as many weights; nothing for other models."""
    model = config["model"]
    if not model["_target_"].endswith(".MLP"):
        return []
    inputs = prod(build_dataset(config, COMMAND_LINE_TARGETS).input_shape)
    width, depth = model["width"], model["depth"]
    weights = inputs * width + (depth - 1) * width**2
    found = []
    for other in sorted({max(1, depth // 2), 2 * depth} - {depth}):
        hidden = other - 1
        exact = (
            (sqrt(inputs**2 + 4 * hidden * weights) - inputs) / (2 * hidden)
            if hidden
            else weights / inputs
        )
        found.append(f"model.depth={other} model.width={8 * round(exact / 8)}")
    return found


def folder_of(out: Path, typed: str, seed: int) -> Path:
    """Where a change's run is."""
    # A list of augmentations is no name for a folder.
    name = typed.partition("=[")[0].replace(" ", "-").replace("/", "-") or "base"
    return out / name / str(seed)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    # Without what a run chooses itself, or is told of another run.
    return {key: value for key, value in config.items() if key not in ("resume", "threads")}


def run(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The row of a run, trained if it is not there.

    Raises:
        ValueError: the folder holds the run of another configuration.
    """
    config = compose(*overrides)
    row = read_row(folder)
    if row is not None and _settings(row["config"]) != _settings(config):
        raise ValueError(f"{folder} holds a run of other settings: choose another --out")
    if row is None or row["status"] != "complete":
        train(config, folder, multirun=True)
        row = read_row(folder)
    assert row is not None
    return row


def summarise(rows: Rows) -> list[list[str]]:
    """Cells of the table: means with standard deviations over seeds, differences by seed."""
    base = [row["metrics"]["val/vra"] for row in rows["base", ""]]
    table = []
    for (kind, typed), found in rows.items():
        failed = next((row["error"] for row in found if "metrics" not in row), None)
        if failed is not None:
            table.append([kind, f"`{typed}`", "", "", f"failed: {failed}", "", ""])
            continue
        vra = [row["metrics"]["val/vra"] for row in found]
        change = [a - b for a, b in zip(vra, base, strict=True)]
        table.append(
            [
                kind,
                f"`{typed}`" if typed else "",
                f"{found[0]['parameters']:,}",
                spread([row["metrics"]["val/accuracy"] for row in found]),
                spread(vra),
                spread(change, "+") if typed else "",
                f"{fmean(row['seconds']['train'] for row in found):.0f}",
            ]
        )
    return table


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds."""
    mean = f"{fmean(values):{sign}.4f}"
    return f"{mean} ± {stdev(values):.4f}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", help="of conf/experiment; the default run without one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--kinds", nargs="+", help="only these: layer, activation ...")
    parser.add_argument(
        "--page", type=Path, help="with <!-- ablation --> in it, such as docs/results.md"
    )
    parser.add_argument("--generated", type=Path, help="see benchmarks/studies/generated_images.py")
    parser.add_argument("base", nargs="*", help="further overrides of the base")
    options = parser.parse_intermixed_args(arguments)
    base = [*options.base, "certify=false", "trainer.enable_progress_bar=false"]
    base += [f"experiment={options.experiment}"] if options.experiment else []
    base += [f"trainer.max_epochs={options.epochs}"] if options.epochs else []
    found = changes(compose(*base), options.generated)
    wanted = {"base", *(options.kinds or [kind for kind, _ in found])}
    rows: Rows = {}
    # All changes with one seed before the next, so that a table is there early.
    for seed in range(options.seeds):
        for kind, typed in found:
            if kind not in wanted:
                continue
            folder = folder_of(options.out, typed, seed)
            try:
                row = run(folder, [*base, *typed.split(), f"seed={seed}"])
                said = f"val/vra {row['metrics']['val/vra']:.4f}"
            except (ConfigError, DivergedError, UnsoundNetworkError) as error:
                row, said = {"error": str(error)}, str(error)
            rows.setdefault((kind, typed), []).append(row)
            sys.stdout.write(f"seed {seed}  {typed or 'base'}: {said}\n")
            sys.stdout.flush()
        write(options.out, options.page, rows, base)


def write(out: Path, page: Path | None, rows: Rows, base: Sequence[str]) -> None:
    """``ablation.csv`` and ``ablation.md``, and the table in a page."""
    table = summarise(rows)
    with (out / "ablation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *table])
    seeds = len(rows["base", ""])
    lines = [f"Base: `python train.py {' '.join(base)}`; {seeds} seeds, validation split.", ""]
    lines += ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *table)]
    (out / "ablation.md").write_text("\n".join(lines) + "\n")
    if page:
        page.write_text(place(page.read_text(), "ablation", "\n".join(lines)))


if __name__ == "__main__":
    main()
