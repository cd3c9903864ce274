"""Readers of a certificate folder as untrusted data: fixed names, bounded sizes, strict formats."""

import functools
import hashlib
import io
import json
import math
import operator
import os
import re
import reprlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.available import free_memory

Array = NDArray[Any]

# Files of every certificate folder.
FILES = ("certificate.json", "network.safetensors", "samples.safetensors", "radii.csv")
# File of the multipliers of semidefinite bounds, in folders that claim these.
MULTIPLIERS = "multipliers.safetensors"
# File of the metric, in folders whose radii are not in the l2 distance of inputs.
METRIC = "metric.safetensors"
# Maximum number of bytes of each file. The memory that is free may be less, and then decides.
MAX_FILE = {
    "certificate.json": 2**26,
    "network.safetensors": 2**36,
    "samples.safetensors": 2**33,
    "radii.csv": 2**29,
    MULTIPLIERS: 2**28,
    METRIC: 2**28,
    "global.json": 2**26,
    "intervals.csv": 2**29,
}
# Maximum number of bytes of the header of a safetensors file.
MAX_HEADER = 2**24
# Maximum number of values in JSON.
MAX_JSON_VALUES = 4_000_000
# Maximum number of tensors of a file, and of entries of a tensor.
MAX_TENSORS, MAX_ENTRIES = 20_000, 2**33
# Maximum number of characters of a line of radii.csv.
MAX_ROW = 500
# NumPy's dtype for each dtype that tensors may have.
DTYPES = {"F32": "<f4", "F64": "<f8", "U8": "|u1", "I64": "<i8"}
# Header of radii.csv.
COLUMNS = "index,label,prediction,correct,status,radius,radius_hex,margin"
# Forms of an integer, of a margin and of a hexadecimal float.
INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")
MARGIN = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-][0-9]{1,3})?|-?inf|nan")
HEX = re.compile(r"0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}")


class UnreadableError(ValueError):
    """The folder is no certificate of a kind that this checker knows: nothing was checked."""


# How values from a folder are written in messages: cut where they are long.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100
SHORT.maxlist = SHORT.maxtuple = SHORT.maxdict = 20
SHORT.maxlevel = 3


def show(value: object) -> str:
    """A value from a folder as text for a message: one short line of ASCII."""
    text = SHORT.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def fail(where: str, expected: str, got: object) -> UnreadableError:
    """An error that says where, what was expected and what came."""
    return UnreadableError(f"{where}: expected {expected}, got {show(got)}")


def read_bytes(folder: Path, name: str) -> bytes:
    """Content of a regular file of the folder, which must be no link and of bounded size.

    It is read, not mapped into memory: what is proved has to be of the bytes that were hashed, and
    whoever wrote the file may write to it again.
    """
    path = folder / name
    # Opened without following a link and without waiting for a pipe.
    flags = (getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    limit = MAX_FILE[name]
    try:
        if path.is_symlink() or not path.is_file():
            raise UnreadableError(f"{name}: not a regular file in the folder")
        handle = os.open(path, functools.reduce(operator.or_, flags, os.O_RDONLY))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError(f"{name}: not a regular file")
            if status.st_size > limit:
                raise UnreadableError(f"{name}: {status.st_size} bytes, more than {limit}")
            require_memory(status.st_size, f"reading {name}")
            # One byte more than there should be, so that a file that grows is noticed.
            content = file.read(status.st_size + 1)
    except OSError as error:
        raise UnreadableError(f"{name}: cannot be read: {error.strerror}") from None
    if len(content) != status.st_size:
        raise UnreadableError(
            f"{name}: expected its {status.st_size} bytes, got {len(content)}: it changes while "
            "it is read; check a copy that nobody writes to"
        )
    return content


def require_memory(need: int, what: str) -> None:
    """Refuse what certainly takes more memory than is free, before the system ends the process.

    Raises:
        UnreadableError: it takes more.
    """
    lacking = free_memory().lacks(need)
    if lacking is not None:
        raise UnreadableError(f"{what}: {lacking}: check the folder where there is more")


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes, where: str) -> Any:
    """JSON without duplicate keys, NaN, infinities or more values than MAX_JSON_VALUES."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise UnreadableError(f"{where}: a key appears twice in one object")
        return found

    def refuse(text: str) -> Any:
        raise UnreadableError(f"{where}: {text} is not JSON")

    if sum(content.count(mark) for mark in b"[{,") > MAX_JSON_VALUES:
        raise UnreadableError(f"{where}: more than {MAX_JSON_VALUES} values")
    try:
        return json.loads(content.decode(), object_pairs_hook=pairs, parse_constant=refuse)
    except UnreadableError:
        raise
    except RecursionError:
        raise UnreadableError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise UnreadableError(f"{where}: not JSON: {str(error)[:80]}") from None


def keys(value: Any, where: str, required: set[str], optional: set[str] | None = None) -> dict:
    """A JSON object with these keys and no others; ``optional=None`` admits any others."""
    if not isinstance(value, dict):
        raise fail(where, "an object", value)
    missing = sorted(required - value.keys())
    unknown = [] if optional is None else sorted(value.keys() - required - optional)
    if missing or unknown:
        what = f"no {missing[0]!r}" if missing else f"unknown key {show(unknown[0])}"
        raise UnreadableError(f"{where}: {what}")
    return value


def items(value: Any, where: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise fail(where, "a list", value)
    return value


def text(value: Any, where: str) -> str:
    """A JSON string."""
    if not isinstance(value, str):
        raise fail(where, "a string", value)
    return value


def whole(value: Any, where: str, least: int = 0, most: int = 2**62) -> int:
    """A JSON integer within a range; true and false are no integers."""
    if type(value) is not int or not least <= value <= most:
        raise fail(where, f"an integer from {least} to {most}", value)
    return value


def hex_float(value: Any, where: str) -> float:
    """A nonnegative finite float64 in the one way that ``float.hex`` writes it."""
    if not isinstance(value, str) or not HEX.fullmatch(value):
        raise fail(where, "a nonnegative hexadecimal float", value)
    try:
        number = float.fromhex(value)
    except (OverflowError, ValueError):
        raise fail(where, "a nonnegative hexadecimal float", value) from None
    if number.hex() != value or not math.isfinite(number):
        raise fail(where, "a nonnegative hexadecimal float", value)
    return number


def parse_safetensors(content: bytes, where: str) -> dict[str, Array]:
    """Tensors of a safetensors file; every byte belongs to exactly one of them."""
    if len(content) < 8:
        raise UnreadableError(f"{where}: shorter than its header")
    size = int.from_bytes(content[:8], "little")
    if size > min(MAX_HEADER, len(content) - 8):
        raise UnreadableError(f"{where}: header of {size} bytes in a file of {len(content)}")
    header = parse_json(content[8 : 8 + size], f"{where} header")
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise UnreadableError(f"{where}: the header is no object of at most {MAX_TENSORS} tensors")
    header.pop("__metadata__", None)
    data = memoryview(content)[8 + size :]
    found, end = {}, 0
    entries = [(name, _entry(entry, f"{where} {show(name)}")) for name, entry in header.items()]
    for name, (dtype, shape, first, last) in sorted(entries, key=lambda item: item[1][2:]):
        place = f"{where} {show(name)}"
        if first != end or last > len(data):
            raise UnreadableError(f"{place}: its bytes overlap, leave a gap or pass the end")
        end = last
        if math.prod(shape) * np.dtype(dtype).itemsize != last - first:
            raise UnreadableError(f"{place}: {last - first} bytes do not fill the shape {shape}")
        found[name] = np.frombuffer(data[first:last], dtype).reshape(shape)
    if end != len(data):
        raise UnreadableError(f"{where}: {len(data) - end} bytes belong to no tensor")
    return found


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    keys(entry, where, {"dtype", "shape", "data_offsets"}, set())
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise fail(where, f"a dtype among {', '.join(DTYPES)}", entry["dtype"])
    shape = items(entry["shape"], where)
    offsets = items(entry["data_offsets"], where)
    if len(shape) > 8 or len(offsets) != 2:
        raise UnreadableError(f"{where}: more than 8 dimensions, or not two offsets")
    sizes = tuple(whole(n, where) for n in shape)
    # Sizes of 0 count as 1: NumPy refuses arrays whose other sizes are too large, even if empty.
    if math.prod(max(n, 1) for n in sizes) > MAX_ENTRIES:
        raise fail(f"{where} shape", f"at most {MAX_ENTRIES} entries", sizes)
    first, last = (whole(n, where) for n in offsets)
    if first > last:
        raise UnreadableError(f"{where}: offsets {first} > {last}")
    return DTYPES[entry["dtype"]], sizes, first, last


@dataclass(frozen=True, slots=True)
class Row:
    """One line of radii.csv."""

    index: int
    label: int
    prediction: int
    correct: bool
    certified: bool
    decimal: str
    radius: float
    margin: float

    @property
    def right(self) -> bool:
        """Whether the label is predicted and the margin is finite; correct if it is also proved."""
        return self.label == self.prediction and math.isfinite(self.margin)

    @property
    def void(self) -> bool:
        """Whether the row claims nothing: no finite margin, not correct and not certified."""
        return not (math.isfinite(self.margin) or self.correct or self.certified)


def parse_radii(content: bytes, count: int, certified: str = "certified") -> list[Row]:
    """The ``count`` rows of radii.csv, in which samples with a radius have the status given."""
    lines = content.count(b"\n")
    if lines != count + 1 or not content.endswith(b"\n"):
        raise UnreadableError(f"radii.csv: expected {count + 1} lines for the samples, got {lines}")
    if not content.isascii():
        raise UnreadableError("radii.csv: not ASCII")
    # Read line by line: a list of all lines would take more memory than the file.
    file = io.BytesIO(content)
    head = file.readline().decode().removesuffix("\n")
    if head != COLUMNS:
        raise fail("radii.csv line 1", f"the header {COLUMNS}", head)
    return [
        _row(line.decode().removesuffix("\n"), f"radii.csv line {number}", certified)
        for number, line in enumerate(file, 2)
    ]


def _row(line: str, where: str, certified: str) -> Row:
    cells = line.split(",", 8) if len(line) <= MAX_ROW else []
    if len(cells) != 8:
        raise fail(where, "8 columns", line)
    index, label, prediction, correct, status, decimal, radius, margin = cells
    for cell in (index, label, prediction):
        if not INTEGER.fullmatch(cell):
            raise fail(where, "an integer", cell)
    if correct not in ("0", "1") or status not in (certified, "abstain"):
        expected = f"correct 0 or 1 and status {certified} or abstain"
        raise fail(where, expected, f"{correct},{status}")
    if not MARGIN.fullmatch(margin):
        raise fail(where, "a margin", margin)
    return Row(
        int(index),
        int(label),
        int(prediction),
        correct == "1",
        status == certified,
        decimal,
        math.inf if radius == "inf" else hex_float(radius, where),
        float(margin),
    )
