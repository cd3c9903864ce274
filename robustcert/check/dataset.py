"""Samples against files of the dataset: idx, CIFAR binary and NumPy archives."""

import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcert.check.reader import Array, UnreadableError, show

LARGEST_FILE = 2**32
IMAGE = 3072


def compare(
    files: Sequence[str | Path],
    inputs: Array,
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
) -> tuple[str, list[str]]:
    """Compare samples with the rows of a split that their indices name.

    Args:
        files: An idx file of images and one of labels (``.gz`` or not), or CIFAR ``.bin`` files
            in the order of the split, or one ``.npz`` archive, whose test part is taken unless
            ``:train`` follows its name.
        inputs: Shape ``(N, *)``.
        labels: Classes.
        indices: Rows of the split, in file order.

    Returns:
        What was compared, and the mismatches.

    Raises:
        UnreadableError: a file cannot be read.
    """
    try:
        images, classes = _read([str(name) for name in files])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableError(f"--data: {show(str(error))}") from None
    if len(images) != len(classes):
        raise UnreadableError(f"--data: {len(images)} images and {len(classes)} labels")
    mismatches = []
    if indices.min() < 0 or indices.max() >= len(images):
        mismatches.append(f"samples: an index is not among the {len(images)} rows of the data")
    else:
        rows = images[indices].reshape(len(indices), -1)
        if rows.shape[1] != inputs[0].size:
            mismatches.append(f"samples: {inputs[0].size} values each, {rows.shape[1]} in the data")
        else:
            if rows.dtype == np.uint8 and inputs.dtype != np.uint8:
                rows = rows.astype(np.float32) / np.float32(255)
            same = (rows.astype(inputs.dtype) == inputs.reshape(rows.shape)).all(axis=1)
            mismatches += [
                f"samples: input {position} is not row {indices[position]} of the data"
                for position in np.flatnonzero(~same)[:5]
            ]
        mismatches += [
            f"samples: label {position} is not that of row {indices[position]} of the data"
            for position in np.flatnonzero(classes[indices] != labels)[:5]
        ]
    return f"{len(indices)} of the {len(images)} rows of the given files", mismatches


def by_digest(
    files: Sequence[str | Path],
    digests: NDArray[np.uint8],
    indices: NDArray[np.int64],
    shape: tuple[int, ...],
) -> Array:
    """The inputs that digests stand for, from files of the dataset; see :func:`compare`.

    Args:
        files: As for :func:`compare`.
        digests: SHA-256 of every input, as bytes or as float32 in [0, 1]; shape ``(N, 32)``.
        indices: Rows of the split, in file order.
        shape: Of one input.

    Raises:
        UnreadableError: a file cannot be read, or a row is not what the digest stands for.
    """
    try:
        images, _ = _read([str(name) for name in files])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableError(f"--data: {show(str(error))}") from None
    if indices.min() < 0 or indices.max() >= len(images):
        raise UnreadableError(f"--data: an index is not among the {len(images)} rows")
    rows = np.ascontiguousarray(images[indices].reshape(len(indices), -1))
    rows = rows if rows.dtype == np.uint8 else rows.astype(np.float32)
    if rows.shape[1] != int(np.prod(shape)):
        raise UnreadableError(
            f"--data: {rows.shape[1]} values in a row, expected the shape {shape}"
        )
    for position, row in enumerate(rows):
        if hashlib.sha256(row.tobytes()).digest() != digests[position].tobytes():
            raise UnreadableError(
                f"--data: row {indices[position]} is not the input {position} of the digest"
            )
    return rows.reshape(-1, *shape)


def _read(names: list[str]) -> tuple[Array, Array]:
    path, _, split = names[0].partition(".npz:")
    if names[0].endswith(".npz") or split:
        part = split or "test"
        with np.load(f"{path}.npz" if split else path, allow_pickle=False) as archive:
            return archive[f"x_{part}"], archive[f"y_{part}"].astype(np.int64)
    if all(name.endswith(".bin") for name in names):
        records = np.concatenate([_records(_content(name)) for name in names])
        return records[:, -IMAGE:], records[:, -IMAGE - 1].astype(np.int64)
    if len(names) != 2:
        raise ValueError("expected idx images and labels, CIFAR .bin files or one .npz archive")
    first, second = (_idx(_content(name)) for name in names)
    return (second, first.astype(np.int64)) if first.ndim == 1 else (first, second.astype(np.int64))


def _content(name: str) -> bytes:
    with Path(name).open("rb") as file:
        content = file.read(LARGEST_FILE)
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            content = packed.read(LARGEST_FILE)
    return content


def _records(content: bytes) -> Array:
    # One label, or CIFAR-100's coarse and fine label, before each image.
    size = IMAGE + (1 if len(content) % (IMAGE + 1) == 0 else 2)
    return np.frombuffer(content, np.uint8).reshape(-1, size)


def _idx(content: bytes) -> Array:
    if len(content) < 8 or content[:3] != b"\0\0\x08" or content[3] not in (1, 2, 3, 4):
        raise ValueError("expected an idx file of bytes")
    shape = np.frombuffer(content, ">u4", content[3], 4).astype(np.int64)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
