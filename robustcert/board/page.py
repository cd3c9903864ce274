"""The board as a page, Markdown or HTML, and as JSON; names from folders are escaped."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustcert import __version__
from robustcert.atomic import complete_file
from robustcert.board.entry import Entry, Proved, Reported

MAX_SHOWN = 100
# What stands where a table has no value.
DASH = "\N{EN DASH}"
HEAD = (
    "Every folder was copied and proved again by the independent checker. *Verified accuracy* is "
    "counted in the radii that it proved; *reported* is what the authors say. A folder that is not "
    "verified has no numbers of its own; where *partly* stands, nothing was refuted, and the rest "
    "not tried for want of time. Radii are l2, in input units: inputs have values in [0, 1]. The "
    "*constant* is the largest proved one of a difference of two logits, divided by the root of 2, "
    "beside the one that the authors assume. *Data* and split are as the folder says, unless files "
    "are named that its samples were compared with. Of a *regression* the mean absolute error, in "
    "units of the target, stands for the accuracy; for the verified accuracy stands the error "
    "certified within the radius, with the mean width of intervals; the constant is the output's."
)
COLUMNS = (
    *("folder", "verified", "data", "network", "parameters", "constant", "accuracy", "radius"),
    *("verified accuracy", "reported"),
)


def write_board(path: Path, entries: Sequence[Entry], command: str) -> list[Path]:
    """Write the page, HTML if its name says so, and the JSON beside it.

    Args:
        path: The page, ``.md`` or ``.html``.
        entries: Its lines.
        command: What writes the page again.
    """
    beside = path.with_suffix(".json")
    html = path.suffix == ".html"
    text = in_html(entries, command) if html else in_markdown(entries, command)
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    said = {"format": 1, "robustcert": __version__, "entries": [_plain(e) for e in entries]}
    with complete_file(beside) as temporary:
        temporary.write_text(json.dumps(said, indent=1, allow_nan=False) + "\n")
    return [path, beside]


def in_markdown(entries: Sequence[Entry], command: str) -> str:
    """The page in Markdown."""
    lines = ["# Board", "", f"Written by `{_code(command)}`.", "", HEAD, ""]
    lines += [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(map(escaped, row)) for entry in entries for row in rows(entry)]
    lines += ["", "## Verdicts", ""]
    lines += [f"* {escaped(entry.folder)}: {escaped(entry.verdict, 400)}" for entry in entries]
    sources = [e for e in entries if e.reported is not None and e.reported.source]
    lines += ["", "## Where reported values are from", ""]
    lines += [f"* {escaped(e.folder)}: {escaped(e.reported.source, 400)}" for e in sources]  # type: ignore[union-attr]
    return "\n".join(lines) + "\n"


def in_html(entries: Sequence[Entry], command: str) -> str:
    """The page in HTML: one file, nothing fetched, no script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustcert.board"), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("board.html.j2")
    table = [[ascii_only(cell) for cell in row] for entry in entries for row in rows(entry)]
    verdicts = [(ascii_only(e.folder), ascii_only(e.verdict, 400)) for e in entries]
    return template.render(
        columns=COLUMNS, table=table, verdicts=verdicts, head=HEAD.replace("*", ""), command=command
    )


def rows(entry: Entry) -> list[tuple[str, ...]]:
    """Cells of an entry: one row for each radius, proved or reported."""
    proved, reported = entry.proved, entry.reported
    radii = {radius for side in (proved, reported) if side for radius in _radii(side)}
    constant = _joined(
        proved.constant if proved else None, reported.constant if reported else None, "{:.8g}"
    )
    data = proved.data if proved else DASH
    if proved and entry.compared:
        data += f" ({', '.join(entry.compared)})"
    first = (
        entry.folder,
        "yes" if entry.verified else "partly" if entry.partly else "NO",
        data,
        f"{proved.network[:12]}: {proved.operations}" if proved else DASH,
        str(proved.parameters) if proved else DASH,
        constant,
        _at_samples(proved, reported),
    )
    found: list[tuple[str, ...]] = []
    listed: list[float | None] = [*sorted(radii)]
    for radius in listed or [None]:
        shares = [_within(side, radius) for side in (proved, reported)]
        cells = first if not found else ("",) * len(first)
        found.append((*cells, DASH if radius is None else f"{radius:.6g}", *shares))
    return found


def _radii(side: Proved | Reported) -> Mapping[float, float]:
    return side.verified if side.errors is None else side.errors.certified


def _at_samples(proved: Proved | None, reported: Reported | None) -> str:
    """Accuracy, or the error of a regression."""
    if any(side is not None and side.errors is not None for side in (proved, reported)):
        first, second = (
            side.errors.mean_absolute_error if side is not None and side.errors else None
            for side in (proved, reported)
        )
        return f"error {_joined(first, second, '{:.5g}')}"
    return _joined(
        proved.accuracy if proved else None, reported.accuracy if reported else None, "{:.4f}"
    )


def _within(side: Proved | Reported | None, radius: float | None) -> str:
    """Verified accuracy at a radius, or what is certified of a regression."""
    if side is None or radius is None or radius not in _radii(side):
        return DASH
    if side.errors is None:
        return f"{side.verified[radius]:.4f}"
    return f"error {side.errors.certified[radius]:.5g}, width {side.errors.width[radius]:.5g}"


def _joined(proved: float | None, reported: float | None, form: str) -> str:
    """A proved number, and in brackets the reported one."""
    text = DASH if proved is None else form.format(proved)
    return text if reported is None else f"{text} ({form.format(reported)})"


def ascii_only(text: str, limit: int = MAX_SHOWN) -> str:
    """A text of a stranger in one line of visible ASCII, cut where it is long."""
    seen = text.replace(DASH, "-").encode("ascii", "backslashreplace").decode()
    line = re.sub(r"[^ -~]", "?", seen)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def escaped(text: str, limit: int = MAX_SHOWN) -> str:
    """The same, where neither Markdown nor HTML finds a mark in it."""
    line = ascii_only(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~])", r"\\\1", line).replace("://", ":&#47;&#47;")


def _code(text: str) -> str:
    return ascii_only(text, 400).replace("`", "'")


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it: radii as text, and "inf" for what is infinite."""
    found: dict[str, Any] = _in_json(asdict(entry))
    for side in ("proved", "reported"):
        # Of classes, nothing stands there.
        if found[side] is not None and found[side]["errors"] is None:
            del found[side]["errors"]
    return found


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else f"{k!r}": _in_json(v) for k, v in value.items()}
    return "inf" if value == math.inf else value
