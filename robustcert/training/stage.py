"""What a command is doing, said while it does it: a bar in a terminal, lines elsewhere.

Every piece of work that may take more than two seconds is a stage. It is silent if it is quick. In
a log file the time between two lines grows with the stage, so that hours leave a hundred of them.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# Seconds of silence after which a stage is spoken of, and their least share of its own time.
MAX_SILENCE = 1.0
MIN_SHARE = 0.05

Advance = Callable[[int], None]


def is_first_process() -> bool:
    """Whether this is a run's only process, or the first of those that were started for it."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return not any(int(os.environ.get(key, 0)) for key in ranks)


class _Lines:
    """A stage as lines of the log, written by a thread of its own."""

    # When the last line was written, by whatever stage: two quick ones are together not silent.
    spoken = time.monotonic()

    def __init__(self, said: str, total: int | None, unit: str) -> None:
        self._said, self._total, self._unit = said, total, unit
        self._done = 0
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Advance:
        self._thread.start()
        return self._advance

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _advance(self, count: int) -> None:
        self._done += count

    def _speak(self) -> None:
        wait = self._started + MAX_SILENCE / 2 - time.monotonic()
        while not self._over.wait(max(0.0, wait)):
            now = time.monotonic()
            due = _Lines.spoken + max(MAX_SILENCE, MIN_SHARE * (now - self._started))
            if now >= due:
                log.info("%s", self._line(now - self._started))
                _Lines.spoken = now
                due = now + max(MAX_SILENCE, MIN_SHARE * (now - self._started))
            wait = due - time.monotonic()

    def _line(self, seconds: float) -> str:
        parts = [f"{seconds:.0f} s"]
        if self._total:
            parts.insert(0, f"{self._done} of {self._total} {self._unit}")
        return f"{self._said}: {', '.join(parts)}"


@contextmanager
def _bar(said: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A stage as a bar that is gone when the stage is over."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    count = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(unit)) if total else ()
    columns = (TextColumn("{task.description}"), *count, TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(said, total=total)
        yield lambda number: progress.advance(task, number)


@contextmanager
def stage(
    said: str, total: int | None = None, unit: str = "samples", *, bar: bool | None = None
) -> Iterator[Advance]:
    """A piece of work; nothing is shown where nobody listens to log lines, or a rank before does.

    Args:
        said: What is done, as in ``attacking 256 samples, at most 60 s``.
        total: How much there is to do, if that is known.
        unit: Of what.
        bar: Whether a bar is drawn, by default in a terminal.

    Yields:
        A function that is called with how much more is done.
    """
    if not (log.isEnabledFor(logging.INFO) and is_first_process()):
        yield lambda number: None
        return
    drawn = sys.stdout.isatty() if bar is None else bar
    with _bar(said, total, unit) if drawn else _Lines(said, total, unit) as advance:
        yield advance


@contextmanager
def loading(said: str) -> Iterator[None]:
    """A stage in which torch is imported, and nothing is searched for garbage.

    Modules make objects by the hundred thousand and keep them. Python would search all of them
    again and again, while they grow and later, which is a quarter of the time until the first step.
    """
    if "torch" in sys.modules or not gc.isenabled():
        with stage(said):
            yield
        return
    gc.disable()
    try:
        with stage(said):
            yield
    finally:
        gc.freeze()
        gc.enable()
