"""The folder of a run that came to nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcert.training.stage import is_first_process


def is_new(folder: Path) -> bool:
    """Whether a run's folder is not there, or holds Hydra's record and an empty log alone."""
    entries = list(folder.iterdir()) if folder.exists() else []
    return all(map(_is_hydras, entries)) if entries else not folder.exists()


@contextmanager
def removed_unless(
    worth_keeping: Callable[[], bool], folder: Path, new: bool | None = None
) -> Iterator[None]:
    """Remove a new run's folder if the run fails with nothing in it that is worth keeping.

    Args:
        worth_keeping: Asked when the run has failed; a checkpoint is worth it in any case.
        folder: The run's; one that is not new is left alone.
        new: Whether it was, before this process logged into it; by default :func:`is_new`.
    """
    fresh = is_new(folder) if new is None else new
    try:
        yield
    except BaseException:
        trained = any((folder / "checkpoints").glob("*"))
        if fresh and is_first_process() and not trained and not worth_keeping():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_hydras(entry: Path) -> bool:
    return entry.name == ".hydra" or (entry.suffix == ".log" and entry.stat().st_size == 0)
