"""Comparison of samples with files of the dataset: idx, CIFAR binary and NumPy archives."""

import gzip
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.reader import Array, UnreadableError, show

# Maximum number of bytes of a file of the dataset, unpacked.
MAX_DATA_BYTES = 2**32
# Maximum number of classes.
MAX_CLASSES = 2**31
# Shape of a CIFAR image, and its number of bytes.
SIDES = (3, 32, 32)
IMAGE = math.prod(SIDES)
# What files of a dataset may be.
_EXPECTED = "expected idx images and labels, CIFAR .bin files or one .npz archive"


def compare(
    files: Sequence[str | Path],
    inputs: Array,
    labels: NDArray[Any],
    indices: NDArray[np.int64],
) -> tuple[str, list[str]]:
    """Compare samples with the rows of a split that their indices name, value by value.

    Args:
        files: An idx file of images and one of labels (``.gz`` or not), or CIFAR ``.bin`` files
            in the order of the split, or one ``.npz`` archive, whose test part is taken unless
            ``:train`` follows its name.
        inputs: Shape ``(N, *)``, uint8 or float32.
        labels: Classes, int64, or real targets, float32.
        indices: Rows of the split, in file order.

    Returns:
        What was compared, and the mismatches.

    Raises:
        UnreadableError: a file cannot be read, or holds no inputs and labels.
    """
    images, classes = _load(files, labels.dtype)
    mismatches = []
    if indices.min() < 0 or indices.max() >= len(images):
        mismatches.append(f"samples: an index is not among the {len(images)} rows of the data")
    elif _shape(images) != inputs.shape[1:]:
        mismatches.append(
            f"samples: expected inputs of shape {_shape(images)} as in the data, got "
            f"{inputs.shape[1:]}"
        )
    else:
        rows = images[indices].reshape(inputs.shape)
        same = (rows == inputs) if rows.dtype == inputs.dtype else (unit(rows) == unit(inputs))
        mismatches += [
            f"samples: input {position} is not row {indices[position]} of the data"
            for position in np.flatnonzero(~same.reshape(len(rows), -1).all(axis=1))[:5]
        ]
        mismatches += [
            f"samples: label {position} is not that of row {indices[position]} of the data"
            for position in np.flatnonzero(classes[indices] != labels)[:5]
        ]
    return f"{len(indices)} of the {len(images)} rows of the given files, with labels", mismatches


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
        shape: Shape of one input.

    Raises:
        UnreadableError: a file cannot be read, or a row is not what the digest stands for.
    """
    images, _ = _load(files, None)
    if indices.min() < 0 or indices.max() >= len(images):
        raise UnreadableError(f"--data: an index is not among the {len(images)} rows")
    if _shape(images) != shape:
        raise UnreadableError(f"--data: expected rows of shape {shape}, got {_shape(images)}")
    rows = np.ascontiguousarray(images[indices])
    rows = rows if rows.dtype == np.uint8 else unit(rows)
    for position, row in enumerate(rows):
        if hashlib.sha256(row.tobytes()).digest() != digests[position].tobytes():
            raise UnreadableError(
                f"--data: row {indices[position]} is not the input {position} of the digest"
            )
    return rows.reshape(-1, *shape)


def unit(values: Array) -> NDArray[np.float32]:
    """Inputs of a network: for a byte p the float32 nearest to p / 255, for a float the nearest."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _load(files: Sequence[str | Path], kind: Any) -> tuple[Array, Array]:
    # Inputs of bytes or floats, and the label of each, or the target where these are of a float.
    for name in map(str, files):
        path, archive, _ = name.partition(".npz:")
        if not Path(path + archive.removesuffix(":")).is_file():
            raise UnreadableError(f"--data: {show(name)}: no such file; {_EXPECTED}")
    try:
        images, labels = _read([str(name) for name in files])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableError(f"--data: {show(str(error))}") from None
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UnreadableError(
            f"--data: expected inputs of uint8 or floating point, got {images.dtype}"
        )
    if images.ndim < 2 or len(images) < 1:
        raise UnreadableError(f"--data: expected inputs of shape (N, *), got {images.shape}")
    if kind == np.float32 and labels.dtype.kind == "f" and labels.shape == images.shape[:1]:
        return images, unit(labels)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UnreadableError(
            f"--data: expected integer labels of shape ({len(images)},), one for each input, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise UnreadableError(
            f"--data: expected labels from 0 to {MAX_CLASSES - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )
    return images, labels.astype(np.int64)


def _shape(images: Array) -> tuple[int, ...]:
    # Shape of one input. Grey images may come without the dimension of channels.
    shape = images.shape[1:]
    return (1, *shape) if len(shape) == 2 else shape


def _read(names: list[str]) -> tuple[Array, Array]:
    path, _, split = names[0].partition(".npz:")
    if names[0].endswith(".npz") or split:
        part = split or "test"
        with np.load(f"{path}.npz" if split else path, allow_pickle=False) as archive:
            return archive[f"x_{part}"], archive[f"y_{part}"]
    if all(name.endswith(".bin") for name in names):
        records = np.concatenate([_records(_content(name)) for name in names])
        return records[:, -IMAGE:].reshape(-1, *SIDES), records[:, -IMAGE - 1]
    if len(names) != 2:
        raise ValueError(_EXPECTED)
    first, second = (_idx(_content(name)) for name in names)
    return (second, first) if first.ndim == 1 else (first, second)


def _content(name: str) -> bytes:
    with Path(name).open("rb") as file:
        content = file.read(MAX_DATA_BYTES)
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            content = packed.read(MAX_DATA_BYTES)
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
