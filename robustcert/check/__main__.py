"""``python -m robustcert.check DIR``: status 0 verified, 1 refuted or unproved, 2 unreadable."""

import argparse
import sys
import traceback
from collections.abc import Sequence

from robustcert.check import Report, UnreadableError, check

MOST_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder and print the verdict; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m robustcert.check",
        description="Prove every claim of a certificate folder from its own files, or refuse it.",
    )
    parser.add_argument("folder", help="the folder that certify.py wrote")
    parser.add_argument(
        "--exact",
        type=int,
        default=200,
        metavar="N",
        help="samples to evaluate in exact arithmetic in any case (default: 200)",
    )
    parser.add_argument("--seed", type=int, help="of their choice (default: drawn)")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="compare the samples with the dataset: idx images and labels, CIFAR-10 .bin files, "
        "or a .npz archive (ARCHIVE.npz:train for its train part)",
    )
    options = parser.parse_args(arguments)
    if options.exact < 0:
        parser.error("--exact must not be negative")
    try:
        report = check(options.folder, options.exact, options.seed, options.data)
    except (UnreadableError, ImportError) as error:
        _write(f"UNREADABLE, nothing is verified: {error}")
        return 2
    except Exception as error:
        # Whatever a folder provokes, it is not verified.
        traceback.print_exc()
        _write(f"UNREADABLE, nothing is verified: {type(error).__name__}")
        return 2
    _print(report)
    return 0 if report.verified else 1


def _print(report: Report) -> None:
    for topic, what in report.checked:
        _write(f"{topic:<12}{what}")
    for what in report.unchecked:
        _write(f"not checked {what}")
    for line in report.mismatches[:MOST_LINES]:
        _write(f"MISMATCH    {line}")
    more = len(report.mismatches) + report.more - MOST_LINES
    if more > 0:
        _write(f"MISMATCH    and {more} more")
    for what in report.uncovered:
        _write(f"not covered: {what}")
    if report.verified:
        _write("VERIFIED: every claim follows from what was proved here")
    elif report.mismatches:
        _write(f"REFUSED: {len(report.mismatches) + report.more} claims do not follow")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
