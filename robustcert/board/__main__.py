"""``python -m robustcert.board DIR...``: status 0 all verified, 1 some not, 2 nothing written."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from robustcert.board.entry import Entry, judge
from robustcert.board.folders import find_folders
from robustcert.board.page import write_board
from robustcert.errors import ReportError, typed

# Time of one check, by default.
SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every folder, write the page and the JSON; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog=typed("board"),
        description="Prove certificate folders from anybody again, and write one page and one JSON "
        "with what was proved beside what their authors report. Status 0: all are verified; 1: "
        "some are not; 2: nothing was written.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="certificate folders, or folders of"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("ROBUSTCERT_DATA"),
        metavar="DIR",
        help="folder of datasets, with whose files samples are compared (default: "
        "$ROBUSTCERT_DATA)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="time of the check of a folder: what does not fit is not tried, and the folder not "
        f"verified (default: {SECONDS:g})",
    )
    parser.add_argument(
        "--exact",
        type=int,
        metavar="N",
        help="samples of a folder to evaluate in exact arithmetic in any case (default: up to 200, "
        "as many as time allows, and at least 8)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("board.md"),
        metavar="FILE",
        help="page to write, .md or .html, with a .json beside it (default: board.md)",
    )
    options = parser.parse_args(given)
    if options.out.suffix not in (".md", ".html") or not 0 < options.seconds < 1e9:
        parser.error("--out must end in .md or .html, and --seconds be above 0")
    try:
        entries = []
        for folder in find_folders(options.folders):
            entries.append(judge(folder, options.data, options.seconds, options.exact))
            sys.stdout.write(f"{ascii(folder.name)[1:-1]}: {_said(entries[-1])}\n")
        written = write_board(
            options.out, entries, f"python -m robustcert.board {shlex.join(given)}"
        )
    except (ReportError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0 if all(entry.verified for entry in entries) else 1


def _said(entry: Entry) -> str:
    said = "verified" if entry.verified else "NOT VERIFIED"
    return f"partly checked, {said}" if entry.partly else said


if __name__ == "__main__":
    sys.exit(main())
