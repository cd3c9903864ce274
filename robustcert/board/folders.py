"""Certificate folders as strangers wrote them: found, and copied before they are looked into."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcert.check import (
    FILES,
    INTERVAL_FILES,
    METRIC,
    MULTIPLIERS,
    UnreadableError,
    read_bytes,
)
from robustcert.errors import ReportError

CLAIM = FILES[0]
# Files of a folder that the checker may read.
CHECKED = tuple(dict.fromkeys((*FILES, *INTERVAL_FILES, METRIC, MULTIPLIERS, "global.json")))
# Those of a complete one, of classes or of a real output.
NEEDED = (FILES, INTERVAL_FILES)
# What authors say of a network beside its certificate.
REPORTED = "reported.json"
MAX_FOLDERS = 1000
# Maximum number of bytes of a folder's files, and of what authors say.
MAX_BYTES, MAX_REPORTED = 2**32, 2**16
# Ends of the names of files of a dataset that the checker reads.
DATA = (".bin", ".npz", "ubyte", "ubyte.gz")


def find_folders(given: Sequence[Path]) -> list[Path]:
    """The certificate folders among some folders: themselves, those of runs, or those in them.

    Raises:
        ReportError: one is no folder, holds none, or holds too many.
    """
    found = []
    for folder in given:
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")
        if (own := _certificate(folder)) is not None:
            found.append(own)
            continue
        inside = sorted(_certificate(p) or p for p in folder.iterdir() if p.is_dir())
        if not inside:
            raise ReportError(f"{folder}: holds no certificate folder")
        found += inside
    if len(found) > MAX_FOLDERS:
        raise ReportError(f"{len(found)} folders, more than {MAX_FOLDERS}")
    return found


def _certificate(folder: Path) -> Path | None:
    """The folder itself, or that of a run, if it holds a claim."""
    places = (folder, folder / "certificate")
    return next((place for place in places if os.path.lexists(place / CLAIM)), None)


def name_of(folder: Path) -> str:
    """What a certificate is called: its folder, or its run's."""
    return folder.parent.name if folder.name == "certificate" else folder.name


def copy_folder(folder: Path, copy: Path) -> None:
    """Copy what the checker reads, so that nobody changes it between the check and the page.

    Args:
        folder: What somebody wrote; neither it nor a file of it may be a link.
        copy: An empty folder.

    Raises:
        UnreadableError: it is a link, a file is missing or no regular one, or it is too large.
    """
    if folder.is_symlink():
        raise UnreadableError("a symbolic link: nothing behind it is read")
    present = {name for name in CHECKED if os.path.lexists(folder / name)}
    needed = next((files for files in NEEDED if present >= {*files}), FILES)
    names = [name for name in CHECKED if name in needed or name in present]
    left = MAX_BYTES
    for name in names:
        left -= os.lstat(folder / name).st_size if os.path.lexists(folder / name) else 0
        if left < 0:
            raise UnreadableError(f"more than {MAX_BYTES} bytes")
        (copy / name).write_bytes(read_bytes(folder, name))


def read_reported(folder: Path) -> bytes | None:
    """What the authors say in a file of their own; None without one.

    Raises:
        UnreadableError: it is a link, no regular file or too large.
    """
    path = folder / REPORTED
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_REPORTED:
        raise UnreadableError(
            f"{REPORTED}: expected a regular file of at most {MAX_REPORTED} bytes"
        )
    with path.open("rb") as file:
        return file.read(MAX_REPORTED)


def data_files(record: Mapping[str, Any], root: Path | None) -> list[Path]:
    """The files of a dataset that a certificate names, by their names and SHA-256, or none.

    Args:
        record: ``certificate.json``; what it says decides which files the samples are compared
            with, and nothing else.
        root: Folder of datasets, whose subfolders are searched.
    """
    dataset = record.get("dataset")
    named = dataset.get("files") if isinstance(dataset, dict) else None
    if root is None or not isinstance(named, list) or not 0 < len(named) <= 8:
        return []
    found = [path for entry in named for path in _of_digest(entry, root)]
    # Images come before labels, as the checker wants them, also in the alphabet.
    return sorted(found, key=lambda path: path.name) if len(found) == len(named) else []


def _of_digest(entry: Any, root: Path) -> Iterator[Path]:
    """The first file that has the name and the digest of an entry."""
    wanted = entry if isinstance(entry, dict) else {}
    name = Path(str(wanted.get("name", ""))).name
    if not name.endswith(DATA):
        return
    for place, folders, files in os.walk(root):
        folders.sort()
        path = Path(place) / name
        if name in files and path.is_file() and _digest(path) == wanted.get("sha256"):
            yield path
            return


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
