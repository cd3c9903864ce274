"""The checker's command line: reads arguments, prints the verdict, returns an exit status."""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

from robustcert.check.report import Report

# Maximum number of mismatches that are printed.
MAX_LINES = 40
# Time after which a check is ended, by default.
SECONDS = 3600.0


def parser() -> argparse.ArgumentParser:
    """Parser of the command's arguments."""
    found = argparse.ArgumentParser(
        prog="robustcert check" if sys.argv[0] == "robustcert check" else "robustcert-check",
        description="Prove every claim of a certificate folder from its own files, or refuse it. "
        "Status 0: verified; 1: refused or unproved; 2: unreadable, nothing was checked.",
    )
    found.add_argument("folder", help="the folder that certify.py wrote")
    found.add_argument(
        "--exact",
        type=_count,
        default=200,
        metavar="N",
        help="samples to evaluate in exact arithmetic in any case (default: 200)",
    )
    found.add_argument("--seed", type=int, help="of their choice (default: drawn)")
    found.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help=f"time after which the check is ended, with nothing verified (default: {SECONDS:g})",
    )
    found.add_argument(
        "--verified",
        action="store_true",
        help="have the program prove norms, constants and rows of which Coq has read the proof "
        "(make verified-checker): of function R, and of dense networks; --exact and --seed do not "
        "apply",
    )
    found.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="compare the samples with the dataset: idx images and labels, CIFAR-10 .bin files, "
        "or a .npz archive (ARCHIVE.npz:train for its train part)",
    )
    return found


def _count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder in this process and print the verdict; returns the exit status.

    The process that started this one enforces ``--seconds``.
    """
    options = parser().parse_args(arguments)
    # Before the process that started this one ends it, so that the program is not left behind.
    until = time.monotonic() + 0.95 * options.seconds if options.verified else None
    try:
        # Imported here, because it imports NumPy.
        from robustcert.check.verdict import check

        report = check(options.folder, options.exact, options.seed, options.data, until)
    except MemoryError:
        _write("UNREADABLE, nothing is verified: the memory of this process does not suffice")
        return 2
    except Exception as error:
        # Whatever error a folder causes, the folder is not verified.
        if not isinstance(error, ImportError) and type(error).__name__ != "UnreadableError":
            traceback.print_exc()
            error = Exception(type(error).__name__)
        _write(f"UNREADABLE, nothing is verified: {error}")
        return 2
    _print(report)
    return 0 if report.verified else 1


def _print(report: Report) -> None:
    _section("proved or recomputed here", [f"{topic:<12}{what}" for topic, what in report.checked])
    _section("compared with the given data", [f"{t:<12}{what}" for t, what in report.compared])
    _section("taken from the folder as said, not checked", report.said)
    for line in report.mismatches[:MAX_LINES]:
        _write(f"MISMATCH    {line}")
    more = len(report.mismatches) + report.more - MAX_LINES
    if more > 0:
        _write(f"MISMATCH    and {more} more")
    for what in report.uncovered:
        _write(f"not covered: {what}")
    _write(verdict(report))


def verdict(report: Report) -> str:
    """The last line: the outcome of the check."""
    if report.mismatches:
        return f"REFUSED: {len(report.mismatches) + report.more} claims do not follow"
    if report.uncovered:
        return "UNPROVED: what is not covered was not proved here"
    of = "which are those of the given data" if report.compared else "which are taken as said"
    if report.program:
        return (
            "VERIFIED: every norm, constant, radius and correct prediction of function R was "
            f"proved by the verified checker, for the samples of the folder, {of}; nothing else was"
        )
    return (
        "VERIFIED: every norm, constant, radius and correct prediction was proved here, for the "
        f"samples of the folder, {of}; nothing else was"
    )


def _section(title: str, lines: Sequence[str]) -> None:
    if lines:
        _write(f"{title}:")
    for line in lines:
        _write(f"  {line}")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
