"""Certified samples and their radii: two files of a certificate that grow batch by batch."""

import csv
import hashlib
import io
import json
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustcert.certifiers import Certificates
from robustcert.data import Stream
from robustcert.data.dataset import Rows

RADII = "radii.csv"
SAMPLES = "samples.safetensors"
COLUMNS = ("index", "label", "prediction", "correct", "status", "radius", "radius_hex", "margin")
# Inputs of more bytes stay where they are, and the certificate holds their digests.
MAX_INPUT_BYTES = 2**31
# Names of dtypes in a safetensors file.
SAFETENSORS_DTYPES = {torch.uint8: "U8", torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True)
class CertifiedSplit:
    """Certificates for the samples of a split.

    Attributes:
        inputs: Shape ``(N, *input_shape)``, uint8 or float32 as the dataset holds them.
        target: True classes, shape ``(N,)``.
        indices: Position of every sample in the official split.
        certificates: What the certifier said.
    """

    inputs: Tensor | Stream
    target: Tensor
    indices: Tensor
    certificates: Certificates
    # Files that hold the samples and what is said of them.
    files: ClassVar[tuple[str, ...]] = (SAMPLES, RADII)

    @property
    def correct(self) -> Tensor:
        """Whether the prediction is the true class, and proved, shape ``(N,)``.

        Never where logits are NaN or overflow: then no class is the largest one.
        """
        found = self.certificates
        return (found.prediction == self.target) & torch.isfinite(found.margin) & found.decided

    @property
    def undecided(self) -> Tensor:
        """Whether the true class is predicted, but rounding may have decided it, shape ``(N,)``."""
        return (self.certificates.prediction == self.target) & ~self.correct

    def certified_count(self, radius: float) -> int:
        """Samples that are correct and certified beyond ``radius``."""
        return int((self.correct & (self.certificates.radius > radius)).sum())

    def summary(self, radii: Sequence[float]) -> dict[str, Any]:
        """Counts of the samples, and of those certified beyond each radius."""
        return {
            "samples": len(self.target),
            "correct": int(self.correct.sum()),
            "undecided": int(self.undecided.sum()),
            "certified": [
                {"radius": float(r).hex(), "decimal": float(r), "count": self.certified_count(r)}
                for r in radii
            ],
        }

    def curve(self, points: int = 200) -> tuple[list[float], list[float]]:
        """Radii and verified robust accuracy up to the largest certified radius."""
        radius = torch.where(self.correct, self.certificates.radius, 0.0)
        finite = radius[torch.isfinite(radius)]
        top = float(finite.max()) if len(finite) else 0.0
        grid = torch.linspace(0, top * 1.02 or 1.0, points, dtype=torch.float64, device="cpu")
        return grid.tolist(), [(self.certified_count(float(r)) / len(radius)) for r in grid]


class StoredInputs(Stream):
    """Inputs of a file, read when they are indexed.

    Not mapped: around each row that is touched, the kernel maps up to half a megabyte.

    Args:
        path: The file.
        start: Where in it the inputs begin, in bytes.
        shape: Of all inputs, ``(N, *input_shape)``.
        dtype: Of the inputs, uint8 or float32.
        rows: Which of them, shape ``(M,)``; all by default.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        rows: Tensor | None = None,
    ) -> None:
        self.path, self.start = path, start
        self.rows = (
            torch.arange(shape[0], dtype=torch.int64, device="cpu") if rows is None else rows
        )
        self.shape, self.dtype = (len(self.rows), *shape[1:]), dtype

    def __getitem__(self, rows: Rows) -> Tensor:
        chosen = self.rows[rows].tolist()
        found = torch.empty(len(chosen), *self.shape[1:], dtype=self.dtype, device="cpu")
        with self.path.open("rb") as file:
            for one, row in zip(found.numpy(), chosen, strict=True):
                file.seek(self.start + row * one.nbytes)
                if file.readinto(one) != one.nbytes:
                    raise ValueError(f"{self.path}: row {row} is not there: the file was cut")
        return found

    def select(self, rows: Rows) -> "StoredInputs":
        """The inputs at the given rows, unread."""
        shape = (0, *self.shape[1:])
        return StoredInputs(self.path, self.start, shape, self.dtype, self.rows[rows])


class SampleFiles:
    """``samples.safetensors`` and ``radii.csv`` of a folder, complete up to some sample.

    Indices and labels are written first, then inputs and rows, batch by batch, each time flushed to
    the disk before the rows that speak of them. What an interrupted process left is found again:
    whole batches are kept, and a last one that is not whole is cut off, so that what is appended
    next is what would have been. Large inputs are represented by their SHA-256 digests.

    Args:
        folder: Holds the files, or will.
        indices: Position of every sample of the split, shape ``(N,)``.
        labels: Their classes, shape ``(N,)``.
        shape: Of one input.
        dtype: Of the inputs, uint8 or float32.
        batch_size: Samples appended at once, but for the last time.
        positive: What a row calls a sample with a radius, see :func:`positive_status`.
    """

    def __init__(
        self,
        folder: Path,
        indices: Tensor,
        labels: Tensor,
        shape: Sequence[int],
        dtype: torch.dtype,
        batch_size: int,
        positive: str = "certified",
    ) -> None:
        self.folder = folder
        self.indices = indices
        self.labels = labels
        self.shape = tuple(shape)
        self.dtype = dtype
        self.positive = positive
        size = math.prod(shape) * dtype.itemsize
        self.by_digest = len(labels) * size > MAX_INPUT_BYTES
        self._row_bytes = 32 if self.by_digest else size
        self._head = self._header() + b"".join(_to_bytes(t) for t in (indices, labels))
        self.done = self._resume(batch_size)

    def append(self, inputs: Tensor, certificates: Certificates) -> None:
        """Add the next samples."""
        rows = slice(self.done, self.done + len(inputs))
        part = CertifiedSplit(inputs, self.labels[rows], self.indices[rows], certificates)
        if self.by_digest:
            content = b"".join(hashlib.sha256(_to_bytes(x)).digest() for x in inputs)
        else:
            content = _to_bytes(inputs)
        _append(self.folder / SAMPLES, content)
        write_radii(self.folder / RADII, part, self.positive)
        self.done += len(inputs)

    def split(self, source: Tensor | Stream) -> CertifiedSplit:
        """All samples, once appended; ``source`` has the inputs that are here as digests only."""
        shape = (len(self.labels), *self.shape)
        stored = StoredInputs(self.folder / SAMPLES, len(self._head), shape, self.dtype)
        inputs = source if self.by_digest else stored
        certificates = read_radii(self.folder / RADII)
        return CertifiedSplit(inputs, self.labels, self.indices, certificates)

    def _header(self) -> bytes:
        # As safetensors writes it: eight bytes are the size of a JSON object, padded to eight.
        count = len(self.labels)
        kind = "digests" if self.by_digest else "inputs"
        shape = [count, 32] if self.by_digest else [count, *self.shape]
        ends = [0, 8 * count, 16 * count, 16 * count + count * self._row_bytes]
        integers = SAFETENSORS_DTYPES[torch.int64]
        last = SAFETENSORS_DTYPES[torch.uint8 if self.by_digest else self.dtype]
        described = {
            name: {"dtype": dtype, "shape": shape, "data_offsets": ends[i : i + 2]}
            for i, (name, dtype, shape) in enumerate(
                [("indices", integers, [count]), ("labels", integers, [count]), (kind, last, shape)]
            )
        }
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _resume(self, batch_size: int) -> int:
        samples, radii = self.folder / SAMPLES, self.folder / RADII
        done = min(self._whole_inputs(samples), self._whole_rows(radii))
        if done < len(self.labels):
            done -= done % batch_size
        if done == 0:
            samples.write_bytes(self._head)
            radii.unlink(missing_ok=True)
            return 0
        os.truncate(samples, len(self._head) + done * self._row_bytes)
        with radii.open("rb") as file:
            for _ in range(done + 1):
                file.readline()
            end = file.tell()
        os.truncate(radii, end)
        return done

    def _whole_inputs(self, path: Path) -> int:
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            if file.read(len(self._head)) != self._head:
                return 0
        return (path.stat().st_size - len(self._head)) // self._row_bytes

    def _whole_rows(self, path: Path) -> int:
        """Rows up to the first one that is incomplete or not about its sample."""
        if not path.is_file():
            return 0
        whole = 0
        with path.open() as file:
            if file.readline() != ",".join(COLUMNS) + "\n":
                return 0
            for row, index, label in zip(file, self.indices, self.labels, strict=False):
                mine = row.startswith(f"{int(index)},{int(label)},")
                if not (mine and row.endswith("\n") and row.count(",") == len(COLUMNS) - 1):
                    break
                whole += 1
        return whole


def has_radii(folder: Path) -> bool:
    """Whether a folder holds samples that :class:`SampleFiles` has appended."""
    return (folder / RADII).is_file()


def positive_status(smoothing: Mapping[str, Any] | None) -> str:
    """What a sample with a radius is called: certified, or true with some confidence only.

    Args:
        smoothing: Noise and confidence of a :class:`robustcert.certifiers.Claim` without proof.
    """
    return "certified" if smoothing is None else f"confidence {smoothing['confidence']}"


def write_radii(path: Path, split: CertifiedSplit, positive: str = "certified") -> None:
    """Append a row for each sample, after the names of the columns if the file is new."""
    certificates = split.certificates
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(COLUMNS)
    for index, label, prediction, correct, radius, margin in zip(
        split.indices.tolist(),
        split.target.tolist(),
        certificates.prediction.tolist(),
        split.correct.tolist(),
        certificates.radius.tolist(),
        certificates.margin.tolist(),
        strict=True,
    ):
        status = positive if radius > 0 else "abstain"
        writer.writerow(
            [
                index,
                label,
                prediction,
                int(correct),
                status,
                decimal_floor(radius),
                float(radius).hex(),
                f"{margin:.9g}",
            ]
        )
    _append(path, text.getvalue().encode())


def read_radii(path: Path) -> Certificates:
    """The certificates of a file of radii: margins to nine digits, errors unknown (NaN).

    Predictions count as decided where a row says that they are correct, or has a radius.
    """
    # Row by row into plain numbers: a row as text takes a hundred times the memory.
    prediction, radius, margin, correct = array("q"), array("d"), array("d"), array("b")
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            prediction.append(int(row["prediction"]))
            radius.append(float.fromhex(row["radius_hex"]))
            margin.append(float(row["margin"]))
            correct.append(int(row["correct"]))
    distance = torch.tensor(radius, dtype=torch.float64, device="cpu")
    return Certificates(
        prediction=torch.tensor(prediction, dtype=torch.int64, device="cpu"),
        radius=distance,
        margin=torch.tensor(margin, dtype=torch.float64, device="cpu"),
        error=torch.full((len(radius),), math.nan, dtype=torch.float64, device="cpu"),
        decided=torch.tensor(correct, dtype=torch.bool, device="cpu") | (distance > 0),
    )


def decimal_floor(value: float, digits: int = 6) -> str:
    """Decimal of a nonnegative float, rounded down, never up."""
    if math.isinf(value):
        return "inf"
    # The largest float has 309 digits before the point.
    with localcontext(prec=310 + digits):
        floor = Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR)
    return f"{floor:f}"


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
