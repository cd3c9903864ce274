"""One line of the board: what the checker proved of a folder, beside what its authors report."""

import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from robustcert.board import classes, regression
from robustcert.board.folders import copy_folder, data_files, name_of, read_reported
from robustcert.board.numbers import number
from robustcert.board.regression import Errors
from robustcert.check import (
    UnreadableError,
    parse_json,
    parse_safetensors,
    read_bytes,
    supervised,
    task_of,
)

# Maximum number of characters of a text of an entry's authors.
MAX_TEXT = 200
# Exit statuses of the checker.
VERIFIED, UNREADABLE, PARTLY = 0, 2, 3
# What more a checker gets than its time, to say that it is over.
GRACE = 30.0


@dataclass(frozen=True)
class Reported:
    """What authors report, which nothing here proves.

    Attributes:
        accuracy: Share of right predictions; None of a regression.
        verified: Verified accuracy by radius, in input units.
        constant: Lipschitz constant that they assume, if they name one.
        source: Where the numbers are from.
        errors: Of a regression; None of classes.
    """

    accuracy: float | None = None
    verified: dict[float, float] = field(default_factory=dict)
    constant: float | None = None
    source: str = ""
    errors: Errors | None = None


@dataclass(frozen=True)
class Proved:
    """What is counted again in the rows that the checker proved.

    Attributes:
        network: Digest of the network.
        operations: Its operations, counted.
        parameters: Numbers in the folded network.
        proof: Name of the proof.
        data: Name of the dataset and the split, as the folder says.
        samples: Number of samples.
        constant: Largest constant of a difference of two logits, divided by the root of 2; None of
            logits that have none. Of a regression, that of the output.
        accuracy: Share of samples with a right and proved prediction; None of a regression.
        verified: Share of samples that are right within each radius, in input units.
        errors: Of a regression; None of classes.
    """

    network: str
    operations: str
    parameters: int
    proof: str
    data: str
    samples: int
    constant: float | None
    accuracy: float | None = None
    verified: dict[float, float] = field(default_factory=dict)
    errors: Errors | None = None


@dataclass(frozen=True)
class Entry:
    """One folder.

    Attributes:
        folder: Its name.
        verified: Whether every claim was proved.
        partly: Whether nothing was refuted, and some of it not tried for want of time.
        verdict: The checker's last line, or why there is none.
        compared: Names of the dataset's files that the samples were compared with.
        proved: What was counted again; None unless it is verified.
        reported: What the authors report; None where that cannot be read.
    """

    folder: str
    verified: bool
    partly: bool
    verdict: str
    compared: tuple[str, ...]
    proved: Proved | None
    reported: Reported | None


def judge(folder: Path, data: Path | None, seconds: float, exact: int | None) -> Entry:
    """Check a folder in processes of its own and count again what was proved.

    Args:
        folder: The folder, which may hold anything.
        data: Folder of datasets.
        seconds: Time of the check.
        exact: Samples that are evaluated in exact arithmetic in any case; None for the checker's
            own choice.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        try:
            copy_folder(folder, copy)
            record = parse_json(read_bytes(copy, "certificate.json"), "certificate.json")
            record = record if isinstance(record, dict) else {}
            files = data_files(record, data)
        except (UnreadableError, OSError) as error:
            return Entry(name_of(folder), False, False, f"UNREADABLE: {error}", (), None, None)
        status, said = _checked(copy, files, seconds, exact)
        proved = _proved(copy, record) if status == VERIFIED else None
        names = tuple(path.name for path in files)
        try:
            reported = _reported(folder, record)
        except UnreadableError as error:
            said, reported = f"{said} ({error})", None
        verified, partly = status == VERIFIED, status == PARTLY
        return Entry(name_of(folder), verified, partly, said, names, proved, reported)


def _checked(
    folder: Path, files: Sequence[Path], seconds: float, exact: int | None
) -> tuple[int, str]:
    """The exit status of the checker on a folder, and its last line."""
    options = ["--seconds", f"{seconds!r}"]
    options += [] if exact is None else ["--exact", str(exact)]
    more = ["--data", *(str(path.resolve()) for path in files)] if files else []
    try:
        done = subprocess.run(
            supervised([str(folder), *options, *more]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds + GRACE,
        )
    except subprocess.TimeoutExpired:
        return UNREADABLE, f"UNREADABLE: the check took more than {seconds:g} s"
    lines = done.stdout.decode("ascii", "backslashreplace").splitlines()
    return done.returncode, (lines or ["UNREADABLE: the checker said nothing"])[-1]


def _proved(folder: Path, record: Mapping[str, Any]) -> Proved:
    """Counts of a folder that was verified, from its own rows."""
    tensors = parse_safetensors(read_bytes(folder, "network.safetensors"), "network.safetensors")
    radii = [float.fromhex(entry["radius"]) for entry in record["summary"]["certified"]]
    dataset = record.get("dataset")
    said = dataset if isinstance(dataset, dict) else {}
    return Proved(
        network=record["network"]["digest"],
        operations=_counted(record["network"]["operations"]),
        parameters=sum(int(tensor.size) for tensor in tensors.values()),
        proof=str(record["claim"].get("proof", "lipschitz")),
        data=f"{said.get('name', 'samples')}, {said.get('split', 'given')}"[:MAX_TEXT],
        **_reader_of(record).counted(folder, record, radii),
    )


def _counted(operations: Sequence[Mapping[str, Any]]) -> str:
    """Kinds of operations with their number, those of branches included."""
    counts = Counter(_kinds(operations))
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())[:MAX_TEXT]


def _kinds(operations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for operation in operations:
        for branch in operation.get("branches", []):
            yield from _kinds(branch)
        if operation["kind"] == "activation":
            yield str(operation["options"]["function"])
        elif operation["kind"] not in ("flatten", "reshape", "sum"):
            yield str(operation["kind"])


def _reported(folder: Path, record: Mapping[str, Any]) -> Reported:
    """What ``reported.json`` says, or the summary of the folder without it.

    Raises:
        UnreadableError: it is malformed.
    """
    content, reader = read_reported(folder), _reader_of(record)
    if content is None:
        return Reported(source="its certificate", **reader.summarised(record.get("summary")))
    said = parse_json(content, "reported.json")
    if not isinstance(said, dict):
        raise UnreadableError("reported.json: expected accuracy, verified by radius and source")
    constant, source = said.get("constant"), said.get("source", "")
    if not isinstance(source, str) or len(source) > MAX_TEXT:
        raise UnreadableError(f"reported.json: expected a source of up to {MAX_TEXT} characters")
    constant = None if constant is None else number(constant)
    return Reported(constant=constant, source=source, **reader.said(said))


class _Reader(NamedTuple):
    """Where the numbers of folders of a task are read: fields of :class:`Proved` or `Reported`."""

    counted: Callable[[Path, Mapping[str, Any], Sequence[float]], dict[str, Any]]
    summarised: Callable[[Any], dict[str, Any]]
    said: Callable[[Mapping[str, Any]], dict[str, Any]]


_READERS: Mapping[str, _Reader] = {
    "classification": _Reader(classes.counted, classes.summarised, classes.said),
    "regression": _Reader(regression.counted, regression.summarised, regression.said),
}


def _reader_of(record: Mapping[str, Any]) -> _Reader:
    return _READERS[task_of(record.get("claim"))]
