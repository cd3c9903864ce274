"""Several runs compared: a page, its pictures as PNG, its tables as CSV."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robustcert.atomic import complete_file
from robustcert.report.page import number, percent, write_page, write_pictures
from robustcert.report.pictures import Picture
from robustcert.report.runs import FINISHED, STATES, Run, find_runs
from robustcert.report.scores import Scores, scores_of, split_of
from robustcert.report.summary import Group, group_runs, searched, value_of
from robustcert.report.sweep_figures import (
    draw_capacity,
    draw_pareto,
    draw_radii,
    draw_slices,
    pareto,
)

# Times of a run, in seconds.
_SECONDS = ("seconds.train", "seconds.certify")


@dataclass(frozen=True)
class Task:
    """Configurations of one dataset and one trained radius, which can be compared.

    Attributes:
        dataset: Name of the dataset.
        epsilon: Radius that was trained for, in input units.
        split: ``test``, or ``val`` where nothing is certified.
        groups: The configurations.
        columns: What tells them apart.
        radii: Metric by radius, in increasing order.
        scores: What configurations are compared by.
        measured: Heads, metrics, and whether they are shares, as the table shows them.
    """

    dataset: str
    epsilon: float
    split: str
    groups: list[Group]
    columns: list[str]
    radii: dict[float, str]
    scores: Scores
    measured: list[tuple[str, str, bool]]

    @property
    def accuracy(self) -> str:
        """Metric of clean accuracy, of a regression that of its error."""
        return f"{self.split}/{self.scores.clean}"

    @property
    def vra(self) -> str | None:
        """Certified metric at the trained radius, or at the nearest reported one."""
        if not self.radii:
            return None
        return self.radii[min(self.radii, key=lambda r: abs(r - self.epsilon))]

    @property
    def tightness(self) -> str | None:
        """Metric of the mean radius over distance, where some run has measured it."""
        metric = "val/tightness"
        return metric if any(group.estimate(metric) for group in self.groups) else None

    @cached_property
    def front(self) -> list[Group]:
        """The configurations that no other one beats."""
        if self.vra is None:
            return []
        return pareto(self.groups, self.accuracy, self.vra, larger=self.scores.larger)


def write_sweep_page(roots: Sequence[Path], out: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Compare all runs under some folders.

    Args:
        roots: Folders of runs or of sweeps, finished or not.
        out: Folder for ``index.html``, ``groups.csv``, ``runs.csv`` and the pictures.
        formats: What pictures are written as for papers, beside PNG: ``pdf``, ``svg``.

    Returns:
        What was written.

    Raises:
        ReportError: there are no runs, or a file of theirs cannot be read.
    """
    runs = find_runs(roots)
    tasks = compare(group_runs(runs))
    pictures = [_pictures(i, task) for i, task in enumerate(tasks)]
    written = [
        write_page(
            out / "index.html",
            "sweep.html.j2",
            title=" and ".join(root.resolve().name for root in roots),
            tasks=list(zip(tasks, pictures, strict=True)),
            seconds=_SECONDS,
            runs=[(run, _run_cells(run)) for run in runs],
            common=_common(runs),
            counts=[(s, n) for s in STATES if (n := Counter(r.state for r in runs)[s])],
            pages={run.name: _page(run, out) for run in runs},
            logs={run.name: _logs(run, out) for run in runs},
        ),
        _write(out / "groups.csv", _groups_csv(tasks)),
        _write(out / "runs.csv", _runs_csv(runs)),
    ]
    for picture in (p for several in pictures for p in several):
        written.append(_write(out / f"{picture.name}.png", picture.light))
        written += write_pictures([picture], out, formats)
    return written


def compare(groups: Sequence[Group]) -> list[Task]:
    """Configurations by task."""
    found: dict[tuple[str, float], list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return [_task(name, epsilon, members) for (name, epsilon), members in found.items()]


def _task(dataset: str, epsilon: float, groups: list[Group]) -> Task:
    runs = [run for group in groups for run in group.runs]
    scores = scores_of(runs)
    split = split_of(runs, scores)
    columns = [c for c in groups[0].values if len({group.values[c] for group in groups}) > 1]
    radii, measured = scores.radii(runs, split), scores.columns(runs, split)
    return Task(dataset, epsilon, split, groups, columns, radii, scores, measured)


def _pictures(i: int, task: Task) -> list[Picture]:
    # Pictures are of shares; a table says what there is of regressions.
    if task.vra is None or not task.scores.share:
        return []
    suffix = f"_{i}" if i else ""
    groups, vra = task.groups, task.vra
    radius = next(r for r, metric in task.radii.items() if metric == vra)
    free = searched(groups)
    sizes = {e.mean for group in groups if (e := group.estimate("parameters"))}
    if free:
        first = draw_slices(f"slices{suffix}", groups, free, vra, radius)
    elif len(sizes) > 1:
        first = draw_capacity(f"vra_capacity{suffix}", groups, task.radii)
    else:
        first = draw_radii(f"vra_radii{suffix}", groups, task.radii)
    return [first, draw_pareto(f"pareto{suffix}", groups, task.accuracy, vra, radius, free)]


def _common(runs: Sequence[Run]) -> list[str]:
    if len(runs) < 2:
        return []
    return [o for o in runs[0].overrides if all(o in run.overrides for run in runs)]


def _page(run: Run, out: Path) -> str | None:
    page = run.folder / "report.html"
    return _link(page, out) if run.state != "missing" and page.is_file() else None


def _logs(run: Run, out: Path) -> list[tuple[str, str | None]]:
    # Of what went well nobody reads the log.
    if run.state in (FINISHED, "duplicate"):
        return []
    links = [(path, _link(path, out) if path.is_file() else None) for path in run.logs]
    return [(f"{run.name}/{path.name}" if link else str(path), link) for path, link in links]


def _link(path: Path, out: Path) -> str | None:
    """A relative address, where both are in the same tree, so that they can be moved together."""
    base, target = out.resolve(), path.resolve()
    up = next((i for i, p in enumerate([base, *base.parents]) if target.is_relative_to(p)), None)
    if up is None or up > 3:
        return None
    return "../" * up + quote(target.relative_to([base, *base.parents][up]).as_posix())


def _run_cells(run: Run) -> tuple[str, str]:
    """What a run reached without a perturbation and at its trained radius, in words."""
    scores = scores_of([run])
    split, epsilon = split_of([run], scores), run.config.get("epsilon")
    certified = f"_{epsilon:.4g}" if isinstance(epsilon, int | float) else ""
    keys = (f"{split}/{scores.clean}", f"{split}/{scores.certified}{certified}")
    told = percent if scores.share else number
    return told(value_of(run, keys[0])), told(value_of(run, keys[1]))


def _groups_csv(tasks: Sequence[Task]) -> bytes:
    columns = list(dict.fromkeys(c for task in tasks for c in task.groups[0].values))
    measured = list(
        dict.fromkeys(
            metric
            for task in tasks
            for metric in ("parameters", *(key for _, key, _ in task.measured), task.tightness)
            if metric
        )
    )
    metrics = [*measured, *_SECONDS]
    rows = []
    for task in tasks:
        for group in task.groups:
            row: dict[str, Any] = {
                "dataset": task.dataset,
                "epsilon": task.epsilon,
                **group.values,
                "runs": len(group.runs),
                "pareto": int(group in task.front),
            }
            for metric in metrics:
                found = group.estimate(metric)
                row[metric] = "" if found is None else f"{found.mean:.6g}"
                half = None if found is None else found.half
                row[f"{metric} ±"] = "" if half is None else f"{half:.6g}"
            rows.append(row)
    heads = ["dataset", "epsilon", *columns, "runs", "pareto"]
    heads += [name for metric in metrics for name in (metric, f"{metric} ±")]
    return _csv(list(dict.fromkeys(heads)), rows)


def _runs_csv(runs: Sequence[Run]) -> bytes:
    metrics = sorted({key for run in runs for key in run.metrics})
    seconds = sorted({f"seconds.{key}" for run in runs for key in run.seconds})
    heads = ["run", "state", "detail", "overrides", "seed", "parameters", "log", *metrics, *seconds]
    rows = [
        {
            "run": run.name,
            "state": run.state,
            "detail": run.detail,
            "overrides": " ".join(run.overrides),
            "seed": run.config.get("seed", ""),
            "log": " ".join(map(str, run.logs)),
            **{key: value_of(run, key) for key in ("parameters", *metrics, *seconds)},
        }
        for run in runs
    ]
    return _csv(heads, rows)


def _csv(heads: list[str], rows: list[dict[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _write(path: Path, content: bytes) -> Path:
    with complete_file(path) as temporary:
        temporary.write_bytes(content)
    return path
