"""Runs the verified checker, a program whose proof Coq has read, on the claims of a folder.

The program proves every bound, every constant of two logits, and every row's claim, of function R:
see ``check_sound`` in proofs/CheckerProof.v. It reads nothing but the text of ``verified_text.py``.
"""

import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation
from robustcert.check.radii import where_of
from robustcert.check.reader import Row, UnreadableError
from robustcert.check.report import Report
from robustcert.check.samples import Samples
from robustcert.check.verified_text import changes_nothing, check_covered, write_problem

# The program, which this command builds in a checkout.
PROGRAM = Path(__file__).resolve().parents[2] / "proofs" / "verified-checker"
BUILD = "make verified-checker"


def require_program() -> Path:
    """The program.

    Raises:
        UnreadableError: it is not built, naming the command that builds it.
    """
    if not PROGRAM.is_file():
        raise UnreadableError(
            f"the verified checker is not built: run '{BUILD}' in a checkout of robustcert, and "
            "robustcert-check from there"
        )
    return PROGRAM


def prove_verified(
    operations: Sequence[Operation],
    bounds: Sequence[float],
    pairwise: Floats,
    samples: Samples,
    rows: Sequence[Row],
    coarse: bool,
    deadline: float,
    report: Report,
) -> None:
    """Have the program prove bounds, constants and rows, and report what it says.

    Args:
        operations: Operations of the network.
        bounds: Their claimed bounds.
        pairwise: Claimed constants of logit i minus logit j.
        samples: The samples.
        rows: Their rows; those that claim nothing are left out.
        coarse: Whether a coarse grid is tried first.
        deadline: Time, by ``time.monotonic``, after which the program is ended.
        report: Where the outcome is recorded.

    Raises:
        UnreadableError: the program does not know the network, or gave no answer.
    """
    check_covered(operations, len(rows))
    program = require_program()
    for operation, bound in zip(operations, bounds, strict=True):
        # The program does not see these.
        proved = bound >= 1 or not changes_nothing(operation)
        report.expect(proved, f"bound of {operation.label}: {bound!r} is below 1")
    report.expect(not pairwise.diagonal().any(), "pairwise: a constant on the diagonal")
    kept = [i for i, row in enumerate(rows) if row.certified or row.correct]
    if any(rows[i].radius == math.inf for i in kept):
        raise UnreadableError(
            "radii.csv: an infinite radius is not known to the verified checker; run it without "
            "--verified"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.txt"
        with path.open("w", encoding="ascii") as file:
            chosen = samples.values(np.array(kept, np.int64))
            listed = [rows[i] for i in kept]
            write_problem(file, operations, bounds, pairwise, chosen, listed, coarse=coarse)
        status, said = _run(program, path, deadline)
    if status == 0 and said == [f"verified {len(kept)}"]:
        report.note("program", f"{len(bounds)} bounds, {pairwise.size} constants of pairs")
        report.note("", f"{len(kept)} rows: radii and correct predictions, of function R")
    elif status == 1 and said[-1:] == ["refused"]:
        _explain([line for line in said[:-1] if line], kept, rows, report)
    else:
        raise UnreadableError(f"the verified checker ended without an answer, status {status}")


def _run(program: Path, path: Path, deadline: float) -> tuple[int, list[str]]:
    try:
        done = subprocess.run(
            [program, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=max(0.0, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnreadableError("the verified checker took too long: raise --seconds") from None
    except OSError as error:
        raise UnreadableError(f"the verified checker could not be started: {error}") from None
    return done.returncode, done.stdout.decode("ascii", "backslashreplace").splitlines()


def _explain(lines: list[str], kept: list[int], rows: Sequence[Row], report: Report) -> None:
    for line in lines:
        name, _, number = line.partition(" ")
        if name != "row":
            report.expect(False, "a bound or a constant of two logits is not proved")
            continue
        position = kept[int(number)]
        where, row = where_of(position), rows[position]
        if row.certified:
            report.expect(False, f"{where}: radius {row.radius!r} is not proved")
        else:
            report.expect(False, f"{where}: it is called correct, which is not proved")
    if not lines:
        report.expect(False, "the verified checker refuses the folder")
