"""What nothing reads of a certificate folder: keys and files, which are listed."""

import itertools
import os
from pathlib import Path
from typing import Any

from robustcert.check.reader import UnreadableError
from robustcert.check.report import Report
from robustcert.check.statement import CLAIMS, Space

# Maximum number and length of the keys of certificate.json that nothing reads: all are listed.
MAX_UNREAD_KEYS, MAX_KEY_LENGTH = 64, 64
# Maximum number of files of the folder that nothing reads: all are listed.
MAX_UNREAD_FILES = 64


def unread_keys(claim: dict[str, Any]) -> list[str]:
    """Keys whose values, and whatever is nested in these, are taken as said."""
    unread = sorted(claim.keys() - CLAIMS)
    if len(unread) > MAX_UNREAD_KEYS or any(len(key) > MAX_KEY_LENGTH for key in unread):
        raise UnreadableError(
            f"certificate.json: expected at most {MAX_UNREAD_KEYS} keys beside the claims, of at "
            f"most {MAX_KEY_LENGTH} characters, got {len(unread)}, the longest of "
            f"{max(map(len, unread))}: remove them"
        )
    return [ascii(key)[1:-1] for key in unread]


def unread_files(folder: Path, content: dict[str, bytes]) -> list[str]:
    """Files of the folder beside those that are read."""
    most = MAX_UNREAD_FILES + len(content)
    with os.scandir(folder) as entries:
        names = {entry.name for entry in itertools.islice(entries, most + 1)}
    if len(names) > most:
        raise UnreadableError(
            f"expected at most {MAX_UNREAD_FILES} files in the folder beside the certificate's: "
            "remove the others"
        )
    return [ascii(name)[1:-1] for name in sorted(names - content.keys())]


def name_unchecked(space: Space, keys: list[str], files: list[str], report: Report) -> None:
    """Note what is taken from a folder as said."""
    report.said += [
        "who wrote the folder, with which version, and how the network was trained",
        "names of operations, and metadata of the .safetensors files",
    ]
    if space.names is not None:
        report.said.append("the names of the columns or channels")
    if keys:
        report.said.append(f"not read in certificate.json: {', '.join(keys)}")
    if files:
        report.said.append(f"files that are not read: {', '.join(files)}")
