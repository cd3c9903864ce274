"""Files and folders that appear complete or not at all, whatever interrupts the writing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
def complete_folder(path: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` at the end, if nothing was raised.

    Args:
        path: What stands there is removed, but only when its replacement is complete.
        replaceable: Whether an existing folder, not empty, may be removed.

    Raises:
        FileExistsError: ``path`` may not be replaced.
    """
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or replaceable(path))):
        raise FileExistsError(f"{path} exists and holds something else: it is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise _naming(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
