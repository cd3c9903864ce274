"""Any dataset in one NumPy archive."""

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcert.data.dataset import (
    Dataset,
    DatasetError,
    Examples,
    Split,
    check_split,
    column_name,
    to_columns,
    to_unit,
)
from robustcert.data.files import digest
from robustcert.data.ranges import Given, check_ranges, column_ranges
from robustcert.data.targets import Classes, Reals, Targets
from robustcert.network.input_space import Kind

# Names of the arrays in the file.
KEYS = ("x_train", "y_train", "x_test", "y_test")
# What the columns are called; it may be missing.
NAMES = "columns"


class NPZ(Dataset):
    """A dataset in one ``.npz`` file, as ``numpy.savez`` writes it.

    The file holds ``x_train``, ``y_train``, ``x_test`` and ``y_test``. Images are uint8 (divided
    by 255) or floating point in [0, 1], of shape ``(N, C, H, W)``, ``(N, H, W)`` (grey images) or
    ``(N, D)``. Columns are numbers in units of their own: rows of a table ``(N, D)``, or signals
    ``(N, C, T)`` of C channels and T steps. Targets have the shape ``(N,)``: integers are the
    labels of classes, from 0 without a gap over both splits; floating-point numbers are what a
    regression predicts.

    Args:
        root: The file.
        num_classes: Number of classes, where the file has no sample of some of them, or more
            classes than columns; by default the largest label plus one. None for a regression.
        domain: ``images`` or ``columns``.
        columns: Names of the D columns or C channels; those of the file's array ``columns`` by
            default.
        ranges: Least and greatest value of each column or channel, or by the name of some of them,
            to which attacks are clipped; for columns.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_classes: int | None = None,
        domain: Kind = "images",
        columns: Sequence[str] | None = None,
        ranges: Given = None,
    ) -> None:
        self.path = Path(root).expanduser()
        self.name = self.path.stem
        self.domain = domain
        arrays = _load(self.path)
        self.columns = _columns(arrays, columns, self.path)
        self._record = {
            "name": self.path.name,
            "bytes": self.path.stat().st_size,
            "sha256": digest(self.path),
            "official": "unknown",
        }
        self._splits: dict[str, Examples] = {}
        for split in ("train", "test"):
            source = f"{self.path} (x_{split})"
            array = arrays[f"x_{split}"]
            images = domain == "images"
            inputs = _images(array, source) if images else _numbers(array, self.columns, source)
            _check_names(self.columns, inputs.shape, source)
            found = _targets(arrays[f"y_{split}"], len(inputs), f"{self.path} (y_{split})")
            self._splits[split] = Examples(inputs, found)
        shapes = [tuple(examples.inputs.shape[1:]) for examples in self._splits.values()]
        if shapes[0] != shapes[1]:
            raise DatasetError(
                f"{self.path}: expected x_train and x_test to have examples of one shape, but got "
                f"{shapes[0]} and {shapes[1]}"
            )
        self.input_shape = shapes[0]
        if ranges is not None and domain == "images":
            raise DatasetError(
                "dataset.ranges is of columns, and images have values in [0, 1]: set it to null"
            )
        self.ranges = column_ranges(ranges, self.columns, shapes[0][0])
        for split, examples in self._splits.items():
            source = f"{self.path} (x_{split})"
            check_ranges(torch.as_tensor(examples.inputs), self.ranges, self.columns, source)
        self._targets = self._kind([e.labels for e in self._splits.values()], num_classes)
        self.num_classes = self._targets.outputs

    @property
    def targets(self) -> Targets:
        """Classes, or real numbers where the file's targets are floating-point numbers."""
        return self._targets

    def _kind(self, labels: Sequence[torch.Tensor], num_classes: int | None) -> Targets:
        kinds = {part.dtype for part in labels}
        if len(kinds) > 1:
            raise DatasetError(
                f"{self.path}: expected y_train and y_test to be both integer labels, of classes, "
                "or both floating point, which a regression predicts"
            )
        if kinds == {Reals.dtype}:
            if num_classes is not None:
                raise DatasetError(
                    f"{self.path}: dataset.num_classes={num_classes} goes with integer labels, but "
                    "y_train is floating point, which a regression predicts: set it to null"
                )
            return Reals()
        found = Classes(_num_classes(torch.cat(list(labels)).unique(), num_classes, self.path))
        if found.outputs < 2:
            raise DatasetError(f"{self.path}: expected at least two classes, but every label is 0")
        if self.domain == "columns" and num_classes is None:
            self._check_classes(found.outputs)
        return found

    def read(self, split: Split) -> Examples:
        """All examples of the split, images as uint8 if the file has them so."""
        check_split(split)
        return self._splits[split]

    def provenance(self) -> dict[str, Any]:
        """Record of the file as it was at construction."""
        return {"name": self.name, "files": [dict(self._record)]}

    def _check_classes(self, classes: int) -> None:
        """Refuse more classes than numbers in a row, which are usually a quantity."""
        numbers = math.prod(self.input_shape)
        if classes > numbers:
            raise DatasetError(
                f"{self.path}: expected no more classes than the {numbers} numbers of a row, but "
                f"y_train and y_test have {classes}: if they are classes, set "
                f"dataset.num_classes={classes}; if they are a quantity, write them as floating "
                "point, y.astype(numpy.float32), for a regression"
            )


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DatasetError(
            f"expected dataset.root to name an .npz file, but there is no file {path}"
        )
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DatasetError(
                    f"{path}: expected an .npz archive, but got a single array: write it with "
                    "numpy.savez"
                )
            missing = [key for key in KEYS if key not in archive.files]
            if missing:
                raise DatasetError(
                    f"{path}: expected the arrays {', '.join(KEYS)}, but got "
                    f"{', '.join(archive.files) or 'none'}"
                )
            return {key: archive[key] for key in (*KEYS, NAMES) if key in archive.files}
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        # What numpy says of pickled objects advises to execute them.
        said = "" if "pickle" in str(error) else f", but got: {error}"
        raise DatasetError(
            f"{path}: expected an .npz archive of plain arrays, as numpy.savez writes it (no "
            f"pickled objects, as which texts and missing values among numbers are saved){said}"
        ) from error


def _images(array: np.ndarray, source: str) -> torch.Tensor:
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise DatasetError(
            f"{source}: expected the shape (N, C, H, W), (N, H, W) or (N, D) without a zero, but "
            f"got {array.shape}"
        )
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        raise DatasetError(
            f"{source}: expected channels before rows, (N, C, H, W), but got {array.shape}, which "
            "looks like (N, H, W, C): write array.transpose(0, 3, 1, 2)"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DatasetError(f"{source}: expected uint8 or floating point, but got {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    return to_unit(torch.from_numpy(array.astype(np.float64)), source)


def _numbers(array: np.ndarray, columns: tuple[str, ...] | None, source: str) -> torch.Tensor:
    """Rows of a table or signals, in units of their own."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DatasetError(
            f"{source}: expected rows of a table, (N, D), or signals, (N, C, T), without a zero, "
            f"but got {array.shape}"
        )
    _check_names(columns, array.shape, source)
    if array.dtype.kind in "US":
        raise DatasetError(f"{source}: expected numbers, but {_text(array, columns)}")
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{source}: expected real numbers, but got {array.dtype}")
    return to_columns(torch.from_numpy(array.astype(np.float64)), columns, source)


def _text(array: np.ndarray, columns: tuple[str, ...] | None) -> str:
    """Which column of an array of texts is none of numbers, and what to do."""
    for place in range(array.shape[1]):
        for value in array[:, place].ravel().tolist():
            try:
                float(value)
            except ValueError:
                name = column_name(columns, place)
                if not value.strip():
                    return f"{name} has a missing value: leave its row out, or fill it in"
                return (
                    f"{name} holds texts such as {value!r}: make a column of 0 and 1 for each of "
                    "its values, or leave it out"
                )
    return "got texts of numbers: write x.astype(float)"


def _columns(
    arrays: dict[str, np.ndarray], given: Sequence[str] | None, path: Path
) -> tuple[str, ...] | None:
    """Names of the columns, all different, or None where there are none."""
    if given is None and NAMES not in arrays:
        return None
    array = arrays[NAMES] if given is None else np.array(list(given))
    names = tuple(str(name) for name in array.ravel())
    wrong = array.dtype.kind != "U" or array.ndim != 1 or not all(names)
    if wrong or len({*names}) < len(names):
        where = f"{path} ({NAMES})" if given is None else "dataset.columns"
        raise DatasetError(
            f"{where}: expected the names of the columns, all different, as texts of shape (D,), "
            f"but got {array.dtype} of shape {array.shape}"
        )
    return names


def _check_names(columns: Sequence[str] | None, shape: Sequence[int], source: str) -> None:
    """Raise unless every column or channel has a name, or none has."""
    if columns is not None and len(columns) != shape[1]:
        raise DatasetError(
            f"{source}: expected {len(columns)} columns or channels, as dataset.columns or the "
            f"file's array {NAMES} names them, but got the shape {tuple(shape)}"
        )


def _num_classes(labels: torch.Tensor, given: int | None, path: Path) -> int:
    """How many classes there are, from the different labels in ascending order."""
    found = int(labels[-1]) + 1
    if given is not None:
        if found > given:
            raise DatasetError(
                f"{path}: expected labels below dataset.num_classes={given}, but got {found - 1}"
            )
        return given
    if found > len(labels):
        # Every class is an output of the network: one that no sample has would be for nothing.
        shown = ", ".join(map(str, labels[:4].tolist()))
        raise DatasetError(
            f"{path}: expected labels from 0 without a gap, but got {len(labels)} different ones "
            f"({shown}{', ...' if len(labels) > 4 else ''}) up to {found - 1}: number them by y = "
            f"numpy.unique(y, return_inverse=True)[1], or set dataset.num_classes={found} if the "
            "others are classes, too"
        )
    return found


def _targets(array: np.ndarray, count: int, source: str) -> torch.Tensor:
    if array.dtype.kind not in "iuf" or array.shape != (count,):
        raise DatasetError(
            f"{source}: expected integer labels or floating-point targets of shape ({count},), one "
            f"for each input, but got {array.dtype} of shape {array.shape}"
            + (": y = numpy.unique(y, return_inverse=True)[1]" if array.dtype.kind in "US" else "")
        )
    if array.dtype.kind == "f":
        targets = torch.from_numpy(array.astype(np.float32))
        Reals().check(targets, source)
        return targets
    if array.min() < 0:
        raise DatasetError(f"{source}: expected labels from 0, but got {array.min()}")
    return torch.from_numpy(array.astype(np.int64))
