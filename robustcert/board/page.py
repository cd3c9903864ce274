"""The board as a page, Markdown or HTML, and as JSON; names from folders are escaped."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustcert import __version__
from robustcert.atomic import complete_file
from robustcert.board.entry import Entry

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
    "are named that its samples were compared with."
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
    radii = {*(proved.verified if proved else ()), *(reported.verified if reported else ())}
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
        _joined(
            proved.accuracy if proved else None, reported.accuracy if reported else None, "{:.4f}"
        ),
    )
    found: list[tuple[str, ...]] = []
    for radius in sorted(radii) or [None]:
        shares = [
            DASH if side is None or radius not in side.verified else f"{side.verified[radius]:.4f}"
            for side in (proved, reported)
        ]
        cells = first if not found else ("",) * len(first)
        found.append((*cells, DASH if radius is None else f"{radius:.6g}", *shares))
    return found


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
    """An entry as JSON has it: radii as text."""
    found = asdict(entry)
    for side in ("proved", "reported"):
        if found[side] is not None:
            shares = found[side]["verified"].items()
            found[side]["verified"] = {f"{radius!r}": share for radius, share in shares}
    return found
