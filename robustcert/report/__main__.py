"""``python -m robustcert.report DIR...``: status 0 written, 2 nothing to report."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from robustcert.certificate.places import certificate_of
from robustcert.errors import ReportError, typed
from robustcert.report.runs import is_run
from robustcert.runs.permission import admit_working_folder, as_flags, packages
from robustcert.training.stage import loading


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reports and print their paths; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=typed("report"),
        description="One run or certificate folder: a page on what its certificate is worth. "
        "Several runs, or a sweep: a table, pictures and a page that compares them.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or a certificate"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write (default: beside the certificate; DIR/report for a sweep; report "
        "for several folders)",
    )
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[],
        choices=("pdf", "svg"),
        help="write every picture as a file for papers as well",
    )
    parser.add_argument(
        "--allow-targets",
        type=packages,
        default=[],
        metavar="[PACKAGE,...]",
        help="packages of yours whose classes the network and the dataset may have",
    )
    options = parser.parse_args(as_flags(sys.argv[1:] if arguments is None else arguments))
    admit_working_folder(options.allow_targets)
    # What it is doing, beside the paths on stdout.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("robustcert").setLevel(logging.INFO)
    try:
        written = _write(options.folders, options.out, options.figures, options.allow_targets)
    except (ValueError, OSError) as error:
        sys.stderr.write("error: " + " ".join(str(error).split()) + "\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0


def _write(
    folders: Sequence[Path], out: Path | None, formats: Sequence[str], allowed: Sequence[str]
) -> list[Path]:
    if len(folders) == 1:
        folder = Path(certificate_of(str(folders[0])))
        if (folder / "certificate.json").exists():
            with loading("loading torch"):
                from robustcert.report.regression import write_regression_page
                from robustcert.report.run_page import write_run_page
                from robustcert.runs.own_classes import task_of

            pages = {"classification": write_run_page, "regression": write_regression_page}
            page = pages.get(task_of(folder), write_run_page)
            return page(folder, out, formats, allow_targets=allowed)
        if is_run(folder):
            raise ReportError(f"{folder}: no epoch of this run has finished: nothing to report")
    from robustcert.report.sweep_page import write_sweep_page

    default = folders[0] / "report" if len(folders) == 1 else Path("report")
    return write_sweep_page(folders, out or default, formats)


if __name__ == "__main__":
    sys.exit(main())
