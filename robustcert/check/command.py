"""The checker's command line: reads arguments, prints the verdict, returns an exit status."""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

from robustcert.check.effort import SECONDS, effort_of
from robustcert.check.processes import cores
from robustcert.check.report import Report

# Maximum number of mismatches that are printed.
MAX_LINES = 40


def parser() -> argparse.ArgumentParser:
    """Parser of the command's arguments."""
    found = argparse.ArgumentParser(
        prog="robustcert check" if sys.argv[0] == "robustcert check" else "robustcert-check",
        description="Prove every claim of a certificate folder from its own files, or refuse it. "
        "Status 0: verified; 1: refused or unproved; 2: unreadable, nothing was checked; 3: partly "
        "checked, the rest was not tried for want of time.",
    )
    found.add_argument("folder", help="the folder that certify.py wrote")
    found.add_argument(
        "--exact",
        type=_count,
        metavar="N",
        help="samples to evaluate in exact arithmetic in any case, half of them at random, the "
        "others of least slack (default: up to 200, as many as time allows, and at least 8)",
    )
    found.add_argument("--seed", type=int, help="of their choice (default: drawn)")
    found.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="time of the check: norms, samples and exact samples that do not fit are not tried, "
        f"and the folder is only partly checked (default: {SECONDS:g})",
    )
    found.add_argument(
        "--processes",
        type=_processes,
        default=cores(),
        metavar="P",
        help="processes that prove norms of large convolutions and evaluate exact samples of large "
        "networks (default: as many as cores)",
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


def _processes(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder in this process and print the verdict; returns the exit status.

    The process that started this one ends it after ``--seconds``.
    """
    options = parser().parse_args(arguments)
    effort = effort_of(options.seconds, options.processes)
    # Before the process that started this one ends it, so that the program is not left behind.
    until = time.monotonic() + 0.95 * options.seconds if options.verified else None
    try:
        # Imported here, because it imports NumPy.
        from robustcert.check.verdict import check

        report = check(options.folder, options.exact, options.seed, options.data, until, effort)
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
    return outcome(report)[0]


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
    for what in report.untried[:MAX_LINES]:
        _write(f"not tried:   {what}")
    if len(report.untried) > MAX_LINES:
        _write(f"not tried:   and {len(report.untried) - MAX_LINES} more")
    _write(outcome(report)[1])


def outcome(report: Report) -> tuple[int, str]:
    """The exit status of a check, and its last line."""
    if report.mismatches:
        return 1, f"REFUSED: {len(report.mismatches) + report.more} claims do not follow"
    if report.uncovered:
        return 1, "UNPROVED: what is not covered was not proved here"
    if report.untried:
        return 3, (
            "PARTLY CHECKED: nothing was refuted, and what was not tried is not proved: raise "
            "--seconds or --processes"
        )
    return 0, _verified(report)


def _verified(report: Report) -> str:
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
