"""Time series of one length in the .ts format of the UCR and UEA archives."""

import importlib.util
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from robustcert.data.dataset import Dataset, DatasetError, Examples, Split, check_split, to_columns
from robustcert.data.files import digest


class TimeSeries(Dataset):
    """Signals ``(C, T)`` with the archive's own train and test split.

    The package aeon ships the files. It is read where it is installed and never imported, as it
    asks for another numpy than others do.

    Args:
        root: Folder with the files ``<problem>_TRAIN.ts`` and ``<problem>_TEST.ts``; by default
            that of the installed package aeon.
    """

    domain = "columns"
    columns: tuple[str, ...]
    class_names: tuple[str, ...]
    problem: ClassVar[str]

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = None if root is None else Path(root).expanduser()
        self._records: dict[str, dict[str, Any]] = {}

    def read(self, split: Split) -> Examples:
        """All series of the split, float32."""
        check_split(split)
        path = self._path(split)
        inputs, labels = read_ts(path, self.class_names)
        if inputs.shape[1:] != self.input_shape:
            raise DatasetError(
                f"{path}: expected series of {self.input_shape[0]} channels and "
                f"{self.input_shape[1]} steps, but got {inputs.shape[1:]}"
            )
        self._records[path.name] = {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": digest(path),
            "official": "unknown",
        }
        return Examples(
            to_columns(torch.from_numpy(inputs), self.columns, str(path)), torch.from_numpy(labels)
        )

    def provenance(self) -> dict[str, Any]:
        """Record of the files that have been read."""
        return {"name": self.name, "files": [dict(r) for r in self._records.values()]}

    def _path(self, split: Split) -> Path:
        root = self.root
        if root is None:
            spec = importlib.util.find_spec("aeon")
            places = [] if spec is None else list(spec.submodule_search_locations or [])
            folder = self.problem.removesuffix("_eq")
            root = Path(places[0], "datasets", "data", folder) if places else None
        name = f"{self.problem}_{split.upper()}.ts"
        if root is None or not (root / name).is_file():
            raise DatasetError(
                f"dataset={self.name} needs the file {name}: set dataset.root to the folder that "
                "holds it, or install the package that ships it: pip install --no-deps aeon"
            )
        return root / name


def read_ts(path: Path, class_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Series of one length, float64 of shape ``(N, C, T)``, and labels, int64.

    A line holds the channels of a series, each a list of numbers with commas between them, and its
    class, with colons between all. A missing value, ``?``, is NaN.

    Raises:
        DatasetError: the file has another form; the line is named.
    """
    series, labels, begun = [], [], False
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: expected a .ts file, which is text, but got: {error}"
        ) from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if begun and line and not line.startswith("#"):
            *channels, label = line.split(":")
            if label not in class_names:
                raise DatasetError(
                    f"{path}, line {number}: expected a class of {', '.join(class_names)} at the "
                    f"end, but got {label[:40]!r}"
                )
            series.append(_series(channels, path, number))
            labels.append(class_names.index(label))
        begun = begun or line.lower() == "@data"
    shapes = {part.shape for part in series}
    if len(shapes) != 1:
        raise DatasetError(
            f"{path}: expected series of one length after @data, but got "
            f"{f'the shapes {sorted(shapes)}' if shapes else 'none'}"
        )
    return np.stack(series), np.array(labels, dtype=np.int64)


def _series(channels: list[str], path: Path, number: int) -> np.ndarray:
    try:
        rows = [[float(v.replace("?", "nan")) for v in channel.split(",")] for channel in channels]
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise DatasetError(
            f"{path}, line {number}: expected channels of equally many numbers, but got: {error}"
        ) from error


class GunPoint(TimeSeries):
    """A hand that draws a gun or points a finger: 150 positions of it, 50 + 150 series.

    Every series was brought to mean 0 and standard deviation 1 before it was published.

    Reference: Ratanamahatana and Keogh, *Everything you know about dynamic time warping is wrong*,
    2004.
    """

    name = "gun_point"
    problem = "GunPoint"
    input_shape = (1, 150)
    num_classes = 2
    class_names = ("1", "2")
    columns = ("position",)


class ItalyPowerDemand(TimeSeries):
    """Days of electrical demand, October to March or April to September: 24 hours, 67 + 1,029 days.

    Every series was brought to mean 0 and standard deviation 1 before it was published.

    Reference: Keogh et al., *Intelligent icons: integrating lite-weight data mining and
    visualization into GUI operating systems*, ICDM 2006.
    """

    name = "italy_power_demand"
    problem = "ItalyPowerDemand"
    input_shape = (1, 24)
    num_classes = 2
    class_names = ("1", "2")
    columns = ("demand",)


class JapaneseVowels(TimeSeries):
    """Nine speakers, two vowels: 12 coefficients at 25 steps, 270 + 370 utterances.

    The coefficients are of linear prediction. The utterances, of 7 to 29 steps, were brought to 25
    before the files were published.

    Reference: Kudo, Toyama and Shimbo, *Multidimensional curve classification using
    passing-through regions*, 1999.
    """

    name = "japanese_vowels"
    problem = "JapaneseVowels_eq"
    input_shape = (12, 25)
    num_classes = 9
    class_names = tuple("123456789")
    columns = tuple(f"coefficient {number}" for number in range(1, 13))
