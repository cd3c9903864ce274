"""The progress of a sweep: a line whenever a job begins or ends, and a list of failures."""

import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from robustcert.atomic import complete_file
from robustcert.config.command_line import sweep_jobs
from robustcert.runs.job import is_first_rank, is_running
from robustcert.runs.results import read_row


class SweepProgress(Callback):
    """Hydra's callback: every job notes its state in a folder, which the launching process watches.

    A folder, because jobs run in other processes and on other machines.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin to watch."""
        board = f".sweep-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
        self.board = Path(config.hydra.sweep.dir).resolve() / board
        self.board.mkdir(parents=True)
        _watches.append(Watch(self.board, count_jobs(config)))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that a job begins, or that it was done before."""
        if not self._watched():
            return
        row = read_row(Path(config.hydra.runtime.output_dir))
        self._note(config, "before" if row and row["status"] == "complete" else "running")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how it ended."""
        if not self._watched():
            return
        if job_return.status == JobStatus.FAILED:
            self._note(config, "failed", " ".join(str(job_return._return_value).split()))
        elif self._noted(config).get("status") != "before":
            self._note(config, "done")

    def _watched(self) -> bool:
        # A single run has no board, and of several ranks one is enough.
        return hasattr(self, "board") and is_first_rank()

    def _noted(self, config: DictConfig) -> dict[str, Any]:
        return _read(self.board / f"{config.hydra.job.num}.json")

    def _note(self, config: DictConfig, status: str, error: str = "") -> None:
        note = {
            "status": status,
            "folder": str(config.hydra.runtime.output_dir),
            "overrides": list(config.hydra.overrides.task),
            "error": error.removeprefix("error: "),
        }
        with complete_file(self.board / f"{config.hydra.job.num}.json") as temporary:
            temporary.write_text(json.dumps(note))


def finish_sweeps() -> int:
    """Stop watching, say what failed, and return how many jobs have no result."""
    return sum(_watches.pop().close() for _ in range(len(_watches)))


class Watch:
    """Prints a line whenever the states in a folder change.

    Args:
        board: The folder.
        total: Number of jobs.
    """

    def __init__(self, board: Path, total: int) -> None:
        self.board, self.total = board, total
        self._started = time.monotonic()
        self._last: Counter[str] = Counter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Print the end of it; the number of jobs without a result."""
        self._closing.set()
        self._thread.join()
        notes = self._read()
        shutil.rmtree(self.board, ignore_errors=True)
        never = self.total - len(notes)
        bad = [note for note in notes if note["status"] in ("failed", "running")]
        for note in bad:
            parts = " ".join(note["overrides"]), note["error"], f"log: {note['folder']}/train.log"
            job = "; ".join(filter(None, parts))
            if note["status"] == "failed":
                _say(f"failed: {job}")
            elif is_running(Path(note["folder"])):
                _say(f"still running: {job}")
            else:
                _say(f"ended without a result: {job}")
        if never:
            _say(f"not started: {never} jobs")
        if bad or never:
            _say("the same command again runs what is missing")
        return len(bad) + never

    def _watch(self) -> None:
        while not self._closing.wait(0.5):
            self._report()
        self._report()

    def _report(self) -> None:
        counts = Counter(note["status"] for note in self._read())
        if counts != self._last:
            self._last = counts
            _say(describe(counts, self.total, time.monotonic() - self._started))

    def _read(self) -> list[dict[str, Any]]:
        found = [_read(path) for path in sorted(self.board.glob("*.json"))]
        return [note for note in found if note]


def describe(counts: Counter[str], total: int, elapsed: float) -> str:
    """The line: jobs done, running and failed, the time so far and the time that is left.

    The rate is that of the jobs that were run here: those done before took no time.
    """
    before, running, failed = (counts[key] for key in ("before", "running", "failed"))
    done = counts["done"] + before
    line = f"sweep: {done} done, {running} running, {failed} failed of {total}"
    line += f" ({before} done before)" if before else ""
    line += f"; {_clock(elapsed)} so far"
    ran = counts["done"] + failed
    left = total - done - failed
    return line + (f", about {_clock(elapsed / ran * left)} left" if ran and left else "")


def count_jobs(config: DictConfig) -> int:
    """How many jobs a composed sweep has."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    return len(sweep_jobs([*params, *config.hydra.overrides.task]))


# Callbacks travel to the jobs by pickling, which a thread could not.
_watches: list[Watch] = []


def _read(path: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return note


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
