"""Tables of verified results: runs in, docs/results.json and docs/results.md out.

    python -m benchmarks.publish.results multirun outputs/mnist  # add these runs, write the tables
    python -m benchmarks.publish.results                         # write the tables again

A run counts if it is finished, its certificate is of the whole test split, no attack broke it and
the independent checker verifies the folder, samples compared with the dataset's files where those
are there. Everything else is refused, named, and makes the exit status 1. Verified accuracy is
counted anew from the certificate's radii. Runs that differ by their seed only are one row. What was
read stays in docs/results.json, so that the runs need not be kept; a run replaces an older one of
the same command and seed.
"""

import argparse
import csv
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import beta

from benchmarks.soundness.verdicts import Verdict, data_files, verdict
from robustcert.check.reader import parse_radii
from robustcert.report.runs import FINISHED, Run, find_runs
from robustcert.report.summary import experiment

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = Path(__file__).with_name("published.csv")
# What is typed and makes no other experiment.
ASIDE = re.compile(
    r"(seed|certify|allow_targets|resume)=|(hydra|logger|attack)[./=]|dataset\.(root|download|checks)"
    r"|loader\.(num_workers|eval_batch_size)=|\+?trainer\.enable_"
)

# Options that came after rows were published, with the value that stands for what was before.
ADDED = {"model.pool": 1, "trainer.compile": False}
# Test splits so small that the interval of every seed is shown.
MAX_SMALL = 1000

Json = dict[str, Any]


class Refused(ValueError):
    """A run that does not count, and why."""


def command_of(run: Run) -> str:
    """What starts this run again, whatever its seed.

    Raises:
        Refused: the run was started from Python, and nothing was typed.
    """
    command = run.results.get("command") or {}
    typed = run.overrides or command.get("overrides") or ()
    if not typed and not command:
        raise Refused("no command is recorded: train it with train.py")
    kept = [word for word in typed if not ASIDE.match(word)]
    return " ".join(["python train.py", *sorted(kept, key=lambda w: "experiment" not in w)])


def checked(run: Run) -> tuple[Json, Verdict]:
    """The certificate of a run and the verdict on it.

    Raises:
        Refused: the run does not count.
    """
    folder = run.folder / "certificate"
    if run.state != FINISHED:
        raise Refused(f"{run.state} {run.detail}".strip())
    if not (folder / "certificate.json").exists():
        raise Refused("no certificate")
    record: Json = json.loads((folder / "certificate.json").read_text())
    if record["dataset"]["split"] != "test":
        raise Refused(f"certified on the {record['dataset']['split']} split")
    broken = (record["attack"].get("inside") or {}).get("broken", 0)
    if broken:
        raise Refused(f"{broken} certificates were broken by an attack")
    found = verdict(folder, data_files(record))
    if not found.verified:
        raise Refused(f"the checker did not verify it: {found.said}")
    return record, found


def where_trained(run: Run) -> Json:
    """Seed, length and place of a run's training."""
    return {
        "seed": run.config["seed"],
        "epochs": run.results["epochs"],
        "best_epoch": run.results["best_epoch"],
        "seconds": run.seconds["train"],
        "processor_seconds": run.seconds.get("train_processor"),
        "threads": run.results["threads"],
        "device": run.results["device"],
        "processor": run.results.get("processor", "not recorded"),
    }


def of_all_seeds(run: Run, record: Json, radii: Sequence[float]) -> Json:
    """What the runs of a row have in common."""
    settings = experiment(run).items()
    kept = {key: value for key, value in settings if key not in ADDED or value != ADDED[key]}
    config = json.dumps(kept, sort_keys=True)
    return {
        "command": command_of(run),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "dataset": record["dataset"]["name"],
        "epsilon": float(run.config["epsilon"]),
        "radii": list(radii),
        "parameters": run.results["parameters"],
        "samples": record["summary"]["samples"],
    }


def read(run: Run) -> tuple[Json, Json]:
    """What all seeds of a run's row have in common, and what is its own.

    Raises:
        Refused: the run does not count, or is a regression.
    """
    record, found = checked(run)
    if record["claim"].get("task", "classification") != "classification":
        raise Refused("a regression: python -m benchmarks.publish.regressions reads it")
    inside = record["attack"]["inside"] or {"samples": 0, "broken": 0}
    count = record["summary"]["samples"]
    radii = sorted(float(row["decimal"]) for row in record["summary"]["certified"])
    rows = parse_radii((run.folder / "certificate" / "radii.csv").read_bytes(), count)
    own = {
        **where_trained(run),
        "certificate": found.certificate,
        "compared": found.compared,
        "correct": sum(row.correct for row in rows),
        "verified": [sum(row.correct and row.radius > radius for row in rows) for radius in radii],
        "attacked": inside["samples"],
        "broken": inside["broken"],
    }
    return of_all_seeds(run, record, radii), own


def merge(rows: list[Json], common: Json, own: Json) -> list[Json]:
    """The rows with one more run; what another configuration gave for its command is dropped."""
    rows = [r for r in rows if r["command"] != common["command"] or r["config"] == common["config"]]
    same = next((row for row in rows if row["command"] == common["command"]), None)
    runs = [r for r in (same or {}).get("runs", []) if r["seed"] != own["seed"]]
    row = {**common, "runs": sorted([*runs, own], key=lambda r: r["seed"])}
    return sorted([r for r in rows if r is not same] + [row], key=_order)


def _order(row: Json) -> tuple[Any, ...]:
    return row["dataset"], row["epsilon"], row["command"]


def share(hits: Sequence[int], count: int) -> str:
    """Mean, standard deviation and least over seeds of a share of ``count`` samples."""
    values = [hit / count for hit in hits]
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{fmean(values):.4f} ± {stdev(values):.4f} (least {min(values):.4f})"


def table(rows: Sequence[Json]) -> str:
    """The rows of one dataset, and the published figures beside them."""
    radii = sorted({radius for row in rows for radius in row["radii"]})
    head = ["command", "accuracy", *(f"at {_name(r)}" for r in radii), "parameters", "epochs"]
    lines = [line_of([*head, "training", "seeds", "certificates", "attacked, broken"])]
    lines.append(line_of(["---"] * (len(head) + 4)))
    for row in rows:
        runs, count = row["runs"], row["samples"]
        cells = [f"`{row['command']}`", share([run["correct"] for run in runs], count)]
        for radius in radii:
            if radius not in row["radii"]:
                cells.append("")
                continue
            at = row["radii"].index(radius)
            text = share([run["verified"][at] for run in runs], count)
            cells.append(f"**{text}**" if math.isclose(radius, row["epsilon"]) else text)
        cells += [f"{row['parameters']:,}", _range(run["epochs"] for run in runs), training(runs)]
        cells.append(", ".join(str(run["seed"]) for run in runs))
        cells.append(" ".join(f"`{run['certificate'][:8]}`" for run in runs))
        attacked, broken = (sum(run[key] for run in runs) for key in ("attacked", "broken"))
        lines.append(line_of([*cells, f"{attacked}, {broken}"]))
    return "\n".join([*lines, *_intervals(rows), *_published(rows[0]["dataset"])])


def _intervals(rows: Sequence[Json]) -> list[str]:
    """Intervals of the shares at the trained radius, where the test split is small."""
    lines = []
    for row in rows:
        count = row["samples"]
        if count <= MAX_SMALL and row["epsilon"] in row["radii"]:
            at = row["radii"].index(row["epsilon"])
            ends = [binomial_interval(run["verified"][at], count) for run in row["runs"]]
            text = ", ".join(f"{low:.3f}-{high:.3f}" for low, high in ends)
            lines += ["", f"Exact 95 % intervals at {_name(row['epsilon'])}, by seed: {text}."]
    return lines


def binomial_interval(count: int, samples: int) -> tuple[float, float]:
    """The exact binomial interval at 95 %, of Clopper and Pearson."""
    low = 0.0 if count == 0 else beta.ppf(0.025, count, samples - count + 1)
    high = 1.0 if count == samples else beta.ppf(0.975, count + 1, samples - count)
    return float(low), float(high)


def training(runs: Sequence[Json]) -> str:
    """How long the runs of a row trained, and on what."""
    seconds = _range(round(run["seconds"]) for run in runs)
    spent = [run.get("processor_seconds") for run in runs]
    of_processor = f" ({_range(map(round, spent))} s of processor)" if all(spent) else ""
    threads = _range(run["threads"] for run in runs)
    where = {r["processor"] if r["device"] == "cpu" else r["device"] for r in runs}
    plural = "" if threads == "1" else "s"
    return f"{seconds} s{of_processor}, {threads} thread{plural}, {' and '.join(sorted(where))}"


def _published(dataset: str) -> list[str]:
    with PUBLISHED.open(newline="") as file:
        known = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    if not known:
        return ["", "Published deterministic figures for these radii: none known."]
    radii = sorted({row["radius"] for row in known}, key=lambda text: float(Fraction(text)))
    head = ["published, deterministic", "accuracy", *(f"at {radius}" for radius in radii), "source"]
    methods: dict[tuple[str, ...], dict[str, str]] = {}
    for row in known:
        name = row["method"] + (f", {row['parameters']}" if row["parameters"] else "")
        key = (name, row["accuracy"], row["source"])
        methods.setdefault(key, {})[row["radius"]] = row["verified"]
    lines = ["", line_of(head), line_of(["---"] * len(head))]
    for (name, accuracy, source), verified in methods.items():
        cells = [verified.get(radius, "") for radius in radii]
        lines.append(line_of([name, accuracy, *cells, source]))
    return lines


def _name(radius: float) -> str:
    pixels = round(255 * radius)
    in_pixels = round(radius, 4) != radius and math.isclose(255 * radius, pixels)
    return f"{pixels}/255" if in_pixels else f"{radius:g}"


def _range(values: Iterable[float]) -> str:
    seen = sorted(set(values))
    return f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"


def line_of(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def place(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers of ``name``.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no place for {name}: expected {begin!r} and {end!r}")
    return f"{before}{begin}{text}\n{end}{after}"


def gather(
    rows: list[Json], folders: Sequence[Path], read: Callable[[Run], tuple[Json, Json]]
) -> tuple[list[Json], int]:
    """The rows with the runs of some folders, and how many were refused, each with its reason."""
    refused = 0
    for run in find_runs(folders) if folders else []:
        try:
            rows = merge(rows, *read(run))
        except Refused as error:
            refused += 1
            sys.stderr.write(f"refused {run.name}: {error}\n")
    return rows, refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Read runs, write numbers and tables; 1 if a run was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="runs, or folders of runs")
    parser.add_argument("--docs", type=Path, default=DOCS, help="holds results.json, results.md")
    options = parser.parse_args(arguments)
    numbers, page = options.docs / "results.json", options.docs / "results.md"
    rows: list[Json] = json.loads(numbers.read_text()) if numbers.exists() else []
    rows, refused = gather(rows, options.folders, read)
    numbers.write_text(json.dumps(rows, indent=1) + "\n")
    text = page.read_text()
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        text = place(text, dataset, table(own))
    page.write_text(text)
    sys.stdout.write(f"{len(rows)} rows, {sum(len(r['runs']) for r in rows)} runs: {page}\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
