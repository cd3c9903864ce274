"""What the board says of classes: accuracies, and shares that are right within radii."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcert.board.numbers import MAX_RADII, number
from robustcert.check import UnreadableError, parse_radii, read_bytes


def counted(folder: Path, record: Mapping[str, Any], radii: Sequence[float]) -> dict[str, Any]:
    """What is counted in the table of a folder that was verified."""
    content = read_bytes(folder, "radii.csv")
    rows = parse_radii(content, content.count(b"\n") - 1)
    right = [row.radius for row in rows if row.correct]
    pairwise = [float.fromhex(k) for line in record["pairwise"] for k in line]
    return {
        "samples": len(rows),
        "accuracy": len(right) / len(rows),
        "verified": {
            r: sum(radius > r for radius in right) / len(rows)
            for r in sorted(set(radii))[:MAX_RADII]
        },
        "constant": max(pairwise) / math.sqrt(2) if pairwise else None,
    }


def summarised(summary: Any) -> dict[str, Any]:
    """What the summary of a folder says.

    Raises:
        UnreadableError: it is malformed.
    """
    try:
        count = number(summary["samples"], 2.0**53)
        rows = [(row["decimal"], row["count"] / count) for row in summary["certified"]]
        accuracy = number(summary["correct"] / count, 1.0)
    except (KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UnreadableError("summary: expected samples, correct and certified") from error
    return {"accuracy": accuracy, "verified": _by_radius(rows)}


def said(report: Mapping[str, Any]) -> dict[str, Any]:
    """What authors say beside their folder.

    Raises:
        UnreadableError: it is malformed.
    """
    verified = report.get("verified", {})
    if not isinstance(verified, dict):
        raise UnreadableError("reported.json: expected accuracy, verified by radius and source")
    accuracy = number(report.get("accuracy"), 1.0)
    return {"accuracy": accuracy, "verified": _by_radius(list(verified.items()))}


def _by_radius(rows: Sequence[tuple[Any, Any]]) -> dict[float, float]:
    found = {}
    for radius, share in rows[:MAX_RADII]:
        try:
            found[number(float(radius))] = number(share, 1.0)
        except (ValueError, TypeError, OverflowError) as error:
            raise UnreadableError("reported: expected shares by radius") from error
    return found
