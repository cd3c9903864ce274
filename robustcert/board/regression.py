"""What the board says of a regression: mean absolute errors and widths of intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcert.check import UnreadableError, means, parse_intervals, read_bytes

TABLE = "intervals.csv"


@dataclass(frozen=True)
class Errors:
    """Means over the samples, in units of the target.

    Attributes:
        mean_absolute_error: Of the predictions.
        certified: Mean of the worst error within each radius.
        width: Mean width of the intervals at each radius.
    """

    mean_absolute_error: float
    certified: dict[float, float]
    width: dict[float, float]


def counted(folder: Path, radii: Sequence[float]) -> tuple[Errors, int]:
    """The means of the table of a folder that was verified, and its number of rows."""
    content = read_bytes(folder, TABLE)
    rows = parse_intervals(content, content.count(b"\n") - 1, radii)
    found = means(rows, len(radii))
    certified, width = (dict(zip(radii, v, strict=True)) for v in (found.worst, found.widths))
    return Errors(found.error, certified, width), len(rows)


def said_of(summary: Any, limit: int) -> Errors:
    """What a summary says, of up to ``limit`` radii.

    Raises:
        UnreadableError: it is malformed.
    """
    try:
        rows = {_finite(entry["decimal"]): entry for entry in summary["certified"][:limit]}
        columns = [
            {radius: _mean(entry[key]) for radius, entry in rows.items()}
            for key in ("mean_absolute_error", "width")
        ]
        return Errors(_mean(summary["mean_absolute_error"]), *columns)
    except (KeyError, TypeError) as error:
        raise UnreadableError(
            "reported: expected mean_absolute_error, and certified with decimal, "
            "mean_absolute_error and width of each radius"
        ) from error


def is_regression(record: Mapping[str, Any]) -> bool:
    """Whether a claim says that it is of a regression."""
    claim = record.get("claim")
    return isinstance(claim, dict) and claim.get("task") == "regression"


def _mean(value: Any) -> float:
    return math.inf if value == "inf" else _finite(value)


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise UnreadableError("reported: expected a number of at least 0")
    return float(value)
