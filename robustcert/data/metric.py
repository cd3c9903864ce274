"""The metric on a dataset's inputs, from scales and frozen features as a user names them."""

import math
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcert.data.dataset import Dataset
from robustcert.network.input_space import InputSpace, Metric, factor, scaling

Scale = float | Sequence[float] | Mapping[str, float] | str | None


def input_space(
    dataset: Dataset, scale: Scale = None, frozen: Sequence[str | int] = ()
) -> InputSpace:
    r"""What the inputs of a dataset are, and S of the balls :math:`\{x + S u : |u| < r\}`.

    Args:
        dataset: Gives the shape of its inputs and the names of their columns.
        scale: The diagonal of S: one number, one for each column or channel, or one by the name of
            each that is not frozen; or a ``.npy`` file with the diagonal or with S as a matrix
            ``(D, k)``. With 1 and nothing frozen, S is the identity, and so is None.
        frozen: Columns or channels that cannot change, by name or position: rows of S that are 0.

    Raises:
        ValueError: a name or a position is not known, a scale is no number above 0, or there are
            too many or too few.
    """
    names, shape = dataset.columns, tuple(dataset.input_shape)
    if scale in (None, 1) and not frozen:
        return InputSpace(dataset.domain, names, ranges=dataset.ranges)
    features = _Features(names, shape)
    still = {features.position(entry) for entry in frozen}
    if len(still) == features.count:
        raise ValueError(f"norm.frozen: all {features.count} {features.what}s are frozen")
    values = _values(scale, features, still)
    rows = values.view(len(values), -1)
    rows[sorted(still)] = 0.0
    metric: Metric = factor(values) if values.dim() == 2 else scaling(values)
    return InputSpace(dataset.domain, names, metric, dataset.ranges)


class _Features:
    """The columns or channels that scales are of."""

    def __init__(self, names: Sequence[str] | None, shape: tuple[int, ...]) -> None:
        self.names, self.shape, self.count = list(names or ()), shape, shape[0]
        self.what = "column" if len(shape) == 1 else "channel"

    def label(self, position: int) -> str:
        """What messages call one of them."""
        return self.names[position] if self.names else f"{self.what} {position}"

    def position(self, entry: str | int) -> int:
        """The position of one that is named in ``norm.frozen``."""
        if isinstance(entry, str):
            if entry not in self.names:
                known = (
                    ", ".join(self.names) or f"none: set dataset.columns, or say {self._range()}"
                )
                known = f"{_near(entry, self.names)}the names are {known}"
                raise ValueError(f"norm.frozen: no {self.what} {entry!r}; {known}")
            return self.names.index(entry)
        if not 0 <= entry < self.count:
            pixels = (
                ": single pixels cannot be frozen, a channel can" if len(self.shape) > 1 else ""
            )
            raise ValueError(
                f"norm.frozen: expected {self.what}s {self._range()}, got {entry}{pixels}"
            )
        return entry

    def _range(self) -> str:
        return f"0 to {self.count - 1}"


def _near(word: str, names: Sequence[str]) -> str:
    close = get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _values(scale: Scale, features: _Features, still: set[int]) -> Tensor:
    """S before rows of frozen features are 0: the diagonal, or a matrix; float64."""
    if isinstance(scale, str):
        return _read(Path(scale).expanduser(), features, still)
    if isinstance(scale, Mapping):
        unknown = [name for name in scale if name not in features.names]
        if unknown:
            known = ", ".join(features.names) or "none: set dataset.columns"
            known = f"{_near(unknown[0], features.names)}the names are {known}"
            raise ValueError(f"norm.scale: no column {unknown[0]!r}; {known}")
        missing = [n for i, n in enumerate(features.names) if n not in scale and i not in still]
        if missing:
            raise ValueError(
                f"norm.scale: no scale for {missing[0]}: set norm.scale.{missing[0]}, or add it to "
                "norm.frozen"
            )
        wrong = [
            f"{n}: expected a finite number above 0, got {v!r}"
            for n, v in scale.items()
            if not isinstance(v, int | float)
        ]
        if wrong:
            raise ValueError(f"norm.scale: {wrong[0]}")
        numbers = [float(scale.get(name, 1.0)) for name in features.names]
    elif isinstance(scale, Sequence):
        numbers = [float(value) for value in scale]
    else:
        numbers = [1.0 if scale is None else float(scale)] * features.count
    if len(numbers) != features.count:
        raise ValueError(
            f"norm.scale: expected {features.count} numbers, one for each {features.what}, got "
            f"{len(numbers)}"
        )
    _check_scales(numbers, features, still)
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _check_scales(numbers: Sequence[float], features: _Features, still: set[int]) -> None:
    for i, value in enumerate(numbers):
        if i not in still and not 0 < value < math.inf:
            raise ValueError(
                f"norm.scale: {features.label(i)}: expected a finite number above 0, got "
                f"{value:g}: what cannot change belongs in norm.frozen"
            )


def _read(path: Path, features: _Features, still: set[int]) -> Tensor:
    """The diagonal or the matrix of a ``.npy`` file."""
    if not os.path.isfile(path):
        raise ValueError(
            f"norm.scale: expected a number, a list, training or a .npy file, got {str(path)!r}, "
            "and there is no such file"
        )
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"norm.scale: {path} is no .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"norm.scale: {path}: expected one array of numbers, as numpy.save writes")
    values = torch.from_numpy(array.astype(np.float64))
    if values.dim() == 1 and len(values) == features.count:
        _check_scales(values.tolist(), features, still)
        return values
    if len(features.shape) > 1:
        raise ValueError(
            f"norm.scale: {path}: expected {features.count} numbers, one for each channel, got "
            f"{tuple(array.shape)}: pixels have no scales of their own, whole channels have"
        )
    if values.dim() != 2 or len(values) != features.count or not values.shape[1]:
        raise ValueError(
            f"norm.scale: {path}: expected {features.count} numbers or a matrix of "
            f"{features.count} rows, one for each column, got {tuple(array.shape)}"
        )
    for i, row in enumerate(values):
        if not torch.isfinite(row).all():
            raise ValueError(f"norm.scale: {path}: the row of {features.label(i)} is not finite")
        if i not in still and not row.any():
            raise ValueError(
                f"norm.scale: {path}: the row of {features.label(i)} is 0: what cannot change "
                "belongs in norm.frozen"
            )
    return values
