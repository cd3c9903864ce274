"""Datasets that are files: where they lie, how they are fetched, and whether they are official."""

import hashlib
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from robustcert.data.dataset import Dataset, DatasetError

log = logging.getLogger(__name__)

Checksum = Literal["warn", "strict"]
Official = bool | Literal["unknown"]

# Longest wait for a server.
TIMEOUT_SECONDS = 30


class FileDataset(Dataset):
    """A dataset read from files under ``root``.

    Args:
        root: Folder of the files.
        download: Fetch missing files from the official mirrors.
        checksum: What to do with a file under ``root`` that is not known to be the official one:
            ``"warn"`` logs a warning and records it in ``provenance()``, ``"strict"`` refuses it.
            A download that is not the official file is always refused.
    """

    def __init__(
        self, root: str | os.PathLike[str], download: bool = True, checksum: Checksum = "warn"
    ) -> None:
        if checksum not in ("warn", "strict"):
            raise ValueError(
                f"expected dataset.checksum to be 'warn' or 'strict', but got {checksum!r}"
            )
        self.root = Path(root).expanduser()
        self.download = download
        self.checksum = checksum
        self._files: dict[str, dict[str, Any]] = {}

    def provenance(self) -> dict[str, Any]:
        """Record of the files read so far, each once."""
        return {"name": self.name, "files": [dict(record) for record in self._files.values()]}

    def _fetch(self, name: str, urls: Sequence[str], refuse: Callable[[Path], str | None]) -> Path:
        """Download ``root/name``, or raise an error that says how to come by it."""
        path = self.root / name
        remedy = (
            f"Get it from {' or '.join(urls)} and put it there, or set dataset.root to the folder "
            "that holds it"
        )
        if not self.download:
            raise DatasetError(
                f"{self.name}: expected the file {path}, but there is none. {remedy}, or set "
                "dataset.download=true"
            )
        try:
            fetch(urls, path, refuse)
        except OSError as error:
            raise DatasetError(
                f"{self.name}: expected the file {path}, but there is none and the download "
                f"failed: {error}. {remedy}"
            ) from error
        return path

    def _record(self, path: Path, official: Official, reason: str) -> None:
        """Keep a record of a file that was read; ``reason`` says why it is not ``official``."""
        self._judge(path, official, reason)
        self._files[path.name] = {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": digest(path),
            "official": official,
        }

    def _judge(self, path: Path, official: Official, reason: str) -> None:
        """Log or, under ``checksum="strict"``, refuse what is not known to be ``official``."""
        if official is not True:
            if self.checksum == "strict":
                raise DatasetError(
                    f"{path}: dataset.checksum=strict expects the official file, but {reason}. "
                    "Replace the file, or set dataset.checksum=warn"
                )
            log.log(logging.INFO if official == "unknown" else logging.WARNING, f"{path}: {reason}")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal hash of a file's bytes."""
    with path.open("rb") as file:
        new = lambda: hashlib.new(algorithm, usedforsecurity=False)  # noqa: E731
        return hashlib.file_digest(file, new).hexdigest()


def fetch(urls: Sequence[str], path: Path, refuse: Callable[[Path], str | None]) -> None:
    """Download to ``path`` from the first mirror whose file is not refused.

    The file appears under its name only when complete and accepted, so that an interrupted or
    concurrent download never leaves half a file.

    Args:
        urls: Mirrors, tried in order.
        path: Destination; its folder is made.
        refuse: Looks at the complete temporary file and returns why it is not acceptable, or None.

    Raises:
        OSError: No mirror gave an acceptable file; the message names each mirror's reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in urls:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            ):
                log.info(f"downloading {url}")
                shutil.copyfileobj(response, file)
            reason = refuse(Path(temporary))
            if reason is None:
                # mkstemp makes files private; a dataset may be shared.
                Path(temporary).chmod(0o644)
                os.replace(temporary, path)
                return
            failures.append(f"{url}: {reason}")
        except OSError as error:
            failures.append(f"{url}: {error}")
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise OSError("; ".join(failures))
