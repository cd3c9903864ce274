"""Files and folders that appear complete or not at all, whatever interrupts the writing."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` at the end, if nothing was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _naming(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def resumable_folder(
    path: Path,
    replaceable: Callable[[Path], bool],
    key: str,
    keep: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[Path]:
    """Yield ``<path>.partial``, which becomes ``path`` at the end, if nothing was raised.

    A process that was interrupted or killed leaves it, and the next one with the same key goes on
    in it; with another key it is emptied first. An error leaves it too, if it holds work.

    Args:
        path: What stands there is removed, but only when its replacement is complete.
        replaceable: Whether an existing folder, not empty, may be removed.
        key: Whatever the content depends on.
        keep: Whether what an error leaves is work to go on with.

    Raises:
        FileExistsError: ``path`` may not be replaced, or another process is writing it.
    """
    _may_replace(path, replaceable)
    temporary = path.with_name(f"{path.name}.partial")
    temporary.mkdir(exist_ok=True)
    note = temporary / _KEY
    with _locked(temporary):
        if not note.is_file() or note.read_text() != key:
            for entry in temporary.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            note.write_text(key)
        try:
            yield temporary
            note.unlink()
            _replace(temporary, path)
        except Exception as error:
            if keep(temporary):
                log.warning("%s keeps what was finished: the same command goes on there", temporary)
            else:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise _naming(error, path) from error
            raise


# Name of the file that says what an unfinished folder belongs to.
_KEY = "key"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The system releases the lock with the process, however that ends.
    if sys.platform == "win32":  # which has no such locks
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"{folder}: another process is writing it") from error
        yield
    finally:
        os.close(handle)


def _may_replace(path: Path, replaceable: Callable[[Path], bool]) -> None:
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or replaceable(path))):
        raise FileExistsError(f"{path} exists and holds something else: it is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)


def _replace(new: Path, path: Path) -> None:
    old = _beside(path, "old")
    try:
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had begun in a folder and its subfolders.

    Only for a folder that no other process writes to.
    """
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+\.(tmp|old)", path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _naming(error: OSError, path: Path) -> OSError:
    # A full disk fails a write without naming the file.
    if error.filename is None and error.errno is not None:
        return OSError(error.errno, error.strerror, str(path))
    return error


def _beside(path: Path, suffix: str) -> Path:
    # In the same folder, so that renaming never copies; hidden, and one for each process.
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")
