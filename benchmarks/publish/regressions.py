"""Tables of certified regressions: runs in, docs/regressions.json and docs/regression.md out.

    python train.py -m experiment=diabetes_0.25 seed=0,1,2,3,4,5,6,7,8,9
    python -m benchmarks.studies.regressions outputs/regressions
    python -m benchmarks.publish.regressions multirun --beside outputs/regressions

A run counts as in :mod:`benchmarks.publish.results`: finished, of the whole test split, its folder
verified by the independent checker. Errors and widths are counted anew from ``intervals.csv``;
coverage is that of the certificate, which the checker does not prove. What was read stays in
docs/regressions.json, with what ``--beside`` measured of other models.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.publish.results import (
    DOCS,
    Json,
    Refused,
    checked,
    gather,
    line_of,
    of_all_seeds,
    place,
    training,
    where_trained,
)
from robustcert.check import means, parse_intervals
from robustcert.report.runs import Run


def read(run: Run) -> tuple[Json, Json]:
    """What all seeds of a run's row have in common, and what is its own.

    Raises:
        Refused: the run does not count, or is no regression.
    """
    record, found = checked(run)
    if record["claim"].get("task") != "regression":
        raise Refused("no regression: python -m benchmarks.publish.results reads it")
    radii = [float(row["decimal"]) for row in record["summary"]["certified"]]
    content = (run.folder / "certificate" / "intervals.csv").read_bytes()
    counted = means(parse_intervals(content, record["summary"]["samples"], radii), len(radii))
    sets = (record.get("conformal") or {}).get("radii", [])
    at = {float(row["radius"]): row for row in sets}
    own = {
        **where_trained(run),
        "certificate": found.certificate,
        "compared": found.compared,
        "error": counted.error,
        "certified": list(counted.worst),
        "widths": list(counted.widths),
        "coverage": [at[r]["coverage"] if r in at else None for r in radii],
        "attacked": record["attack"]["samples"],
    }
    return of_all_seeds(run, record, radii), own


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean and standard deviation over seeds; nothing where a seed has no number."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values) or not all(map(math.isfinite, known)):
        return ""
    text = f"{fmean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {stdev(known):.{digits}f}"


def table(rows: Sequence[Json], beside: Sequence[Json]) -> str:
    """The rows of one dataset, a line for each radius, and the other models below.

    Args:
        rows: Of runs.
        beside: Other models: ``words``, ``error`` of each seed, and ``within`` by radius.
    """
    head = ["model", "seeds", "mean absolute error", "radius", "within the radius", "width"]
    head += ["coverage of sets", "parameters", "training", "certificates"]
    lines = [line_of(head), line_of(["---"] * len(head))]
    for row in rows:
        runs = row["runs"]
        whole = [f"`{row['command']}`, proved", str(len(runs))]
        whole.append(spread([run["error"] for run in runs]))
        end = [f"{row['parameters']:,}", training(runs)]
        end.append(" ".join(f"`{run['certificate'][:8]}`" for run in runs))
        for k, radius in enumerate(row["radii"]):
            at = [spread([run[key][k] for run in runs]) for key in ("certified", "widths")]
            at.append(spread([run["coverage"][k] for run in runs], 3))
            lines.append(line_of([*_once(whole, k), f"{radius:g}", *at, *_once(end, k)]))
    for model in beside:
        for k, (radius, found) in enumerate(model["within"].items()):
            whole = [model["words"], str(len(found)), spread(model["error"])]
            cells = [*_once(whole, k), radius, spread(found)]
            lines.append(line_of([*cells, *[""] * (len(head) - len(cells))]))
    return "\n".join(lines)


def _once(cells: list[str], k: int) -> list[str]:
    """What all radii have in common, which stands on the first of their lines."""
    return cells if k == 0 else [""] * len(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read runs and what was measured beside them, write the tables; 1 if a run was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="runs, or folders of runs")
    parser.add_argument("--beside", type=Path, help="folder of benchmarks.studies.regressions")
    parser.add_argument("--docs", type=Path, default=DOCS, help="holds regression.md")
    options = parser.parse_args(arguments)
    numbers, page = options.docs / "regressions.json", options.docs / "regression.md"
    kept: Json = {"runs": [], "beside": {}}
    if numbers.exists():
        kept = json.loads(numbers.read_text())
    kept["runs"], refused = gather(kept["runs"], options.folders, read)
    if options.beside:
        kept["beside"] |= json.loads((options.beside / "regressions.json").read_text())
    numbers.write_text(json.dumps(kept, indent=1) + "\n")
    text = page.read_text()
    for dataset in dict.fromkeys(row["dataset"] for row in kept["runs"]):
        own = [row for row in kept["runs"] if row["dataset"] == dataset]
        text = place(text, dataset, table(own, kept["beside"].get(dataset, [])))
    page.write_text(text)
    sys.stdout.write(f"{len(kept['runs'])} rows: {page}\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
