"""What the board says of a regression: mean absolute errors and widths of intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcert.board.numbers import MAX_RADII, number
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


def counted(folder: Path, record: Mapping[str, Any], radii: Sequence[float]) -> dict[str, Any]:
    """The means of the table of a folder that was verified."""
    content = read_bytes(folder, TABLE)
    rows = parse_intervals(content, content.count(b"\n") - 1, radii)
    found = means(rows, len(radii))
    certified, width = (dict(zip(radii, v, strict=True)) for v in (found.worst, found.widths))
    return {
        "samples": len(rows),
        "constant": max(float.fromhex(k) for k in record["lipschitz"]),
        "errors": Errors(found.error, certified, width),
    }


def summarised(summary: Any) -> dict[str, Any]:
    """What the summary of a folder says.

    Raises:
        UnreadableError: it is malformed.
    """
    try:
        rows = {number(entry["decimal"]): entry for entry in summary["certified"][:MAX_RADII]}
        columns = [
            {radius: _mean(entry[key]) for radius, entry in rows.items()}
            for key in ("mean_absolute_error", "width")
        ]
        return {"errors": Errors(_mean(summary["mean_absolute_error"]), *columns)}
    except (KeyError, TypeError) as error:
        raise UnreadableError(
            "reported: expected mean_absolute_error, and certified with decimal, "
            "mean_absolute_error and width of each radius"
        ) from error


# Authors write what they say beside their folder as its summary does.
said = summarised


def _mean(value: Any) -> float:
    return math.inf if value == "inf" else number(value)
