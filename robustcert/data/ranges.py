"""Ranges of columns that a dataset states: values that can occur, to which attacks clip."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from robustcert.data.dataset import DatasetError, column_name

# A least and a greatest value for each column or channel, or for those that are named.
Given = Sequence[Sequence[float]] | Mapping[str, Sequence[float]] | None
Ranges = tuple[tuple[float, float], ...]


def column_ranges(given: Given, columns: Sequence[str] | None, count: int) -> Ranges | None:
    """A least and a greatest value of every column, infinite where none is stated.

    Args:
        given: As a user states them.
        columns: Names of the columns or channels.
        count: Number of them.

    Raises:
        DatasetError: a name is not known, a range is empty or no pair, or their number is another.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in (columns or ())]
        if unknown:
            known = ", ".join(columns or ()) or "none: set dataset.columns"
            raise DatasetError(f"dataset.ranges: no column {unknown[0]!r}; the names are {known}")
        pairs = [given.get(name, (-math.inf, math.inf)) for name in columns or ()]
    else:
        pairs = list(given)
    if len(pairs) != count:
        raise DatasetError(
            f"dataset.ranges: expected {count} ranges, one for each column or channel, got "
            f"{len(pairs)}"
        )
    for place, pair in enumerate(pairs):
        typed = all(isinstance(value, int | float) for value in pair)
        if not typed or len(pair) != 2 or not pair[0] < pair[1]:
            raise DatasetError(
                f"dataset.ranges: expected a least and a greatest value of "
                f"{column_name(columns, place)}, got {list(pair)}"
            )
    return tuple((float(low), float(high)) for low, high in pairs)


def check_ranges(
    inputs: Tensor, ranges: Ranges | None, columns: Sequence[str] | None, source: str
) -> None:
    """Raise unless all values lie in the ranges of their columns."""
    for place, (low, high) in enumerate(ranges or ()):
        values = inputs[:, place].double()
        outside = (values < low) | (values > high)
        if outside.any():
            raise DatasetError(
                f"{source}: {column_name(columns, place)} has {float(values[outside][0]):g}, "
                f"outside of [{low:g}, {high:g}]: change dataset.ranges"
            )
