"""Find the runs under folders and tell how far each one got."""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from robustcert.config.renamed_options import current_option
from robustcert.errors import ReportError
from robustcert.runs.job import is_running

# Version of the record of a run that is read.
RUN_FORMAT = 1
# States of a run.
FINISHED = "finished"
STATES = (
    FINISHED,
    "running",
    "not certified",
    "unfinished",
    "interrupted",
    "failed",
    "duplicate",
    "missing",
)
# Maximum number of characters of an error message in a table.
MAX_LENGTH = 200


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Its folder, relative to the folder that was asked for.
        folder: Its folder.
        state: One of :data:`STATES`.
        detail: What else is known of a run that is not finished.
        results: What ``results.json`` holds; empty without one.
        overrides: What was typed for this run.
    """

    name: str
    folder: Path
    state: str
    detail: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.results.get("config") or {}

    @property
    def choices(self) -> dict[str, Any]:
        """Which option of every config group was chosen, under the name that it has today.

        Empty for runs started from Python.
        """
        chosen = (self.results.get("command") or {}).get("choices") or {}
        return {group: current_option(group, option) for group, option in chosen.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name."""
        return self.results.get("metrics") or {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of ``train``, ``certify`` and ``attack``."""
        return self.results.get("seconds") or {}

    @property
    def logs(self) -> list[Path]:
        """What the run logged, and what the scheduler kept of what it printed."""
        # Its folder may have been moved since the row was written.
        own = sorted(self.folder.glob("*.log")) if self.state != "missing" else []
        named = [] if own else [self.results.get("log")]
        named.append((self.results.get("slurm") or {}).get("log"))
        return [*own, *(Path(path) for path in named if path)]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, begun or finished."""
    return any((folder / name).exists() for name in ("results.json", "checkpoints", ".hydra"))


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """All runs under folders, those that a sweep has not started yet included.

    Raises:
        ReportError: a folder is none, there is no run, or a ``results.json`` cannot be read.
    """
    found: dict[Path, Run] = {}
    missing: list[Run] = []
    for root in roots:
        if not root.is_dir():
            raise ReportError(f"{root}: no such folder")
        for folder in _folders(root):
            if is_run(folder):
                name = _label(root, folder, len(roots) > 1)
                found.setdefault(folder.resolve(), read_run(folder, name))
            elif (folder / "multirun.yaml").is_file():
                missing += _not_started(folder, _label(root, folder, len(roots) > 1))
    if not found and not missing:
        shown = ", ".join(map(str, roots))
        raise ReportError(f"{shown}: no runs: expected folders with results.json in them")
    # In whatever order they were typed.
    begun = {frozenset(run.overrides) for run in found.values()}
    missing = [run for run in missing if frozenset(run.overrides) not in begun]
    return _mark_duplicates(sorted([*found.values(), *missing], key=_order))


def read_run(folder: Path, name: str) -> Run:
    """One run, as far as it got.

    Raises:
        ReportError: its ``results.json`` is damaged or of another format.
    """
    overrides = _overrides(folder)
    path = folder / "results.json"
    if not path.exists():
        return Run(name, folder, *_without_results(folder), overrides=overrides)
    try:
        results = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ReportError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(results, dict) or results.get("format") != RUN_FORMAT:
        version = results.get("format") if isinstance(results, dict) else None
        raise ReportError(f"{path}: results format {version!r}; this version reads {RUN_FORMAT}")
    for key in ("config", "metrics", "seconds", "command", "slurm"):
        if not isinstance(results.get(key) or {}, dict):
            raise ReportError(f"{path}: expected {key} to be an object")
    return Run(name, folder, *_state(folder, results), results, overrides)


def _state(folder: Path, results: dict[str, Any]) -> tuple[str, str]:
    error, status = results.get("error"), results.get("status")
    if error or status in ("failed", "interrupted"):
        state = "interrupted" if status == "interrupted" else "failed"
        return state, _short(str(error or "no reason recorded").removeprefix(f"{state}: "))
    if status == "running" and is_running(folder):
        return "running", "certifying" if results.get("metrics") else _progress(folder)
    if not results.get("metrics"):
        return _without_results(folder)
    certifying = (results.get("config") or {}).get("certify")
    if certifying and "certify" not in (results.get("seconds") or {}):
        return "not certified", "trained; the certificate is not there yet"
    return FINISHED, ""


def _without_results(folder: Path) -> tuple[str, str]:
    error = _last_error(folder)
    if error:
        return "failed", _short(error)
    return "unfinished", _progress(folder)


def _progress(folder: Path) -> str:
    path = folder / "metrics" / "metrics.csv"
    if path.is_file():
        with path.open(newline="") as file:
            values = [row.get("epoch") or "" for row in csv.DictReader(file)]
        epochs = max((int(v) + 1 for v in values if v.isdigit()), default=0)
        if epochs:
            return f"{epochs} epochs in metrics.csv"
    # Another logger than CSV keeps its epochs elsewhere.
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    return "at least one epoch finished" if begun else "no epoch finished"


def _last_error(folder: Path) -> str | None:
    # Whatever came after the error, such as a resumed run's lines, means that it went on.
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        if lines and "error: " in lines[-1]:
            return lines[-1].partition("error: ")[2]
    return None


def _overrides(folder: Path) -> tuple[str, ...]:
    path = folder / ".hydra" / "overrides.yaml"
    typed = _read_yaml(path) if path.is_file() else []
    return tuple(str(value) for value in typed) if isinstance(typed, list) else ()


def _not_started(sweep: Path, name: str) -> list[Run]:
    # Every job that the sweep's own record stands for; those that began are taken out later.
    from robustcert.config.command_line import sweep_jobs

    path = sweep / "multirun.yaml"
    try:
        hydra = _read_yaml(path)["hydra"]
        sweeper, typed = hydra["sweeper"], hydra["overrides"]["task"]
        if not str(sweeper["_target_"]).endswith("BasicSweeper"):
            # A search chooses its jobs as it goes.
            return []
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        jobs = sweep_jobs([*params, *map(str, typed)])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{path}: not the record of a sweep: {error!r}") from error
    prefix = "" if name == sweep.resolve().name else f"{name}/"
    return [
        Run(f"{prefix}(job {i})", sweep, "missing", "not started", {}, job)
        for i, job in enumerate(jobs)
    ]


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read as YAML: {error}") from error


def _mark_duplicates(runs: list[Run]) -> list[Run]:
    # The same configuration and seed twice is one result, not two.
    first: dict[str, str] = {}
    marked = []
    for run in runs:
        if run.state == FINISHED and run.config:
            kept = {k: v for k, v in run.config.items() if k not in ("logger", "resume")}
            key = json.dumps(kept, sort_keys=True)
            if key in first:
                detail = f"same configuration and seed as {first[key]}"
                run = Run(run.name, run.folder, "duplicate", detail, run.results, run.overrides)
            first.setdefault(key, run.name)
        marked.append(run)
    return marked


def _folders(root: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(root):
        yield Path(path)
        # What is in a run is the run's.
        names[:] = [] if is_run(Path(path)) else sorted(n for n in names if not n.startswith("."))


def _label(root: Path, folder: Path, several: bool) -> str:
    relative = folder.relative_to(root).as_posix()
    base = root.resolve().name
    if relative == ".":
        return base
    return f"{base}/{relative}" if several else relative


def _order(run: Run) -> list[tuple[int, int, str]]:
    # By what was typed where folders are named by a hash; job 10 comes after job 9.
    parent, _, own = run.name.rpartition("/")
    text = own if own.isdigit() or not run.overrides else " ".join(run.overrides)
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in (*parent.split("/"), *re.split(r"(\d+)", text))
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."
