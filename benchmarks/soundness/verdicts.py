"""The independent checker's verdict on a certificate folder, reached once and kept beside it.

A kept verdict counts only for the same bytes: of every file that the checker reads, and of the
checker itself. The checker runs in a process of its own.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import robustcert.check
from robustcert.check import INTERVAL_FILES
from robustcert.check.isolation import command
from robustcert.check.reader import FILES, METRIC, MULTIPLIERS

KEPT = "checked.json"
# Exit status of a check that had no time for everything, which is not kept.
PARTLY = 3
# What the checker reads of a dataset.
READABLE = (".bin", ".npz", "ubyte", "ubyte.gz")


@dataclass(frozen=True)
class Verdict:
    """What the checker said.

    Attributes:
        certificate: SHA-256 over the names and contents of the folder's files.
        checker: SHA-256 over the checker's own sources.
        compared: Whether the samples were compared with the dataset's files.
        verified: Whether every claim was proved.
        said: The last line that it printed.
    """

    certificate: str
    checker: str
    compared: bool
    verified: bool
    said: str


def verdict(folder: Path, data: Sequence[Path] = ()) -> Verdict:
    """The verdict on a folder: a kept one that still counts, or a new one, which is kept.

    Args:
        folder: What certify.py wrote.
        data: Files of the split that the samples must be from.
    """
    kept = folder.with_name(f"{folder.name}-{KEPT}")
    digest, checker = certificate_digest(folder), checker_digest()
    if kept.exists():
        old = Verdict(**json.loads(kept.read_text()))
        if (old.certificate, old.checker) == (digest, checker) and old.compared >= bool(data):
            return old
    arguments = [str(folder), *(["--data", *map(str, data)] if data else [])]
    done = subprocess.run(
        command("supervisor", arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = (done.stdout.strip().splitlines() or ["the checker said nothing"])[-1]
    found = Verdict(digest, checker, bool(data), done.returncode == 0, said)
    if done.returncode != PARTLY:
        kept.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return found


def certificate_digest(folder: Path) -> str:
    """SHA-256 over the files of a certificate that the checker reads."""
    names = dict.fromkeys((*FILES, *INTERVAL_FILES, MULTIPLIERS, METRIC))
    return _digest(folder / name for name in names if (folder / name).exists())


def checker_digest() -> str:
    """SHA-256 over the checker's sources."""
    return _digest(sorted(Path(robustcert.check.__file__).parent.rglob("*.py")))


def data_files(record: dict[str, Any]) -> list[Path]:
    """The files of the split that a certificate's samples are from, if they are all still there.

    Args:
        record: ``certificate.json``.
    """
    root = (record.get("config") or {}).get("dataset", {}).get("root")
    named = [str(file["name"]) for file in (record.get("dataset") or {}).get("files", [])]
    if not root or not all(name.endswith(READABLE) for name in named):
        return []
    # Images come before labels, as the checker wants them, also in the alphabet.
    found = [next(iter(Path(root).rglob(Path(name).name)), None) for name in sorted(named)]
    return [path for path in found if path] if all(found) else []


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        total.update(f"{path.name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()
