"""Verification of every row of radii.csv: in float64 and, where that is not enough, in integers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT32, Arithmetic
from robustcert.check.cost import exact_seconds, float_seconds
from robustcert.check.effort import Effort, Pace
from robustcert.check.fixed_point import Floats
from robustcert.check.forward.batches import FLOAT_BYTES, batches, exact_bytes, float_bytes
from robustcert.check.forward.torus import ON_TORUS
from robustcert.check.network.operation import Operation, walk
from robustcert.check.reader import Row
from robustcert.check.report import Report
from robustcert.check.share import (
    Batch,
    Values,
    asked_share,
    check_in_turn,
    drawn_seed,
    in_turns,
    note_share,
)


@dataclass(frozen=True)
class Errors:
    """Bounds on the errors of logits, for A arithmetics and N samples.

    Attributes:
        centre: Bounds at the samples, ``(A, N)``.
        growth: What they gain per unit of distance from the sample, ``(A,)``.
    """

    centre: Floats
    growth: Floats


@dataclass(frozen=True)
class Comparison:
    """What float64 proves of N rows, as arrays ``(N,)``.

    Attributes:
        finite: Whether logits and bounds on their errors are finite.
        proved: Whether the radius is proved.
        refuted: Whether the radius is proved to be more than the margin allows.
        largest: Whether the logit of the prediction is the largest, up to rounding.
        decided: Whether the real logit of the prediction is proved to be the unique largest.
        reach: Distance within which nothing overflows.
        least: Least margin over other classes.
        tolerance: Difference from ``least`` that is allowed to the margin in the table.
        slack: Relative distance between the radius and what is proved.
    """

    finite: NDArray[np.bool_]
    proved: NDArray[np.bool_]
    refuted: NDArray[np.bool_]
    largest: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    reach: Floats
    least: Floats
    tolerance: Floats
    slack: Floats


class Proving(Protocol):
    """A network together with what proves its radii."""

    @property
    def operations(self) -> Sequence[Operation]:
        """Operations, applied in turn."""

    @property
    def deployed(self) -> Sequence[Arithmetic]:
        """Arithmetics of the deployed networks that the claim is about."""

    @property
    def smooth(self) -> bool:
        """Whether radii may rest on gradients."""

    def compare(self, rows: list[Row], samples: Floats) -> tuple[Comparison, Errors]:
        """What float64 proves of rows, and bounds on the errors of their logits."""

    def check_exactly(
        self,
        rows: list[Row],
        positions: NDArray[np.int64],
        samples: Floats,
        errors: Errors,
        report: Report,
    ) -> None:
        """Check the rows at given positions in integers; ``errors`` are those of all rows."""


def verify_radii(
    rows: list[Row],
    values: Values,
    network: Proving,
    exact: int | None,
    seed: int | None,
    effort: Effort,
    report: Report,
) -> None:
    """Verify every row of radii.csv, in float64 and, where that is not enough, in integers.

    Radii of rows that are certified and predictions of rows that are correct must be proved.
    Predictions of other rows are compared up to rounding.

    Args:
        rows: The rows.
        values: Inputs of a selection of rows.
        network: The network.
        exact: Number of rows that are checked in integers even if float64 proves them; None for as
            many as time allows.
        seed: Seed of the choice of these rows; from the operating system by default.
        effort: When no further rows are begun, which are then noted as not tried.
        report: Where to note the outcome.
    """
    errors, slack, undecided = _verify_in_float64(rows, values, network, effort, report)
    if report.mismatches or not len(slack):
        return
    rows, seed = rows[: len(slack)], drawn_seed(seed)
    doubtful = np.flatnonzero(np.isnan(slack)).tolist()
    meaning = [position for position, row in enumerate(rows) if not row.void]
    most, least = asked_share(exact, len(meaning))
    chosen = in_turns(slack, meaning, most, seed)
    order = list(dict.fromkeys([*doubtful, *chosen]))
    done = _verify_in_integers(rows, order, values, network, errors, effort, report)
    _note(rows, network, undecided, report)
    note_share(order[:done], chosen, least, doubtful, seed, "radii.csv", report)


def _verify_in_float64(
    rows: list[Row], values: Values, network: Proving, effort: Effort, report: Report
) -> tuple[Errors, Floats, int]:
    # What `_check_in_float64` returns, for all rows that there is time for.
    each = float_bytes(network.operations, every=network.smooth)
    pace, parts = Pace(float_seconds(network.operations), effort), []
    for part in batches(len(rows), each, FLOAT_BYTES):
        if not pace.begins(len(rows[part])):
            left = len(rows) - part.start
            report.untried.append(f"{left} rows, from {where_of(part.start)} on")
            break
        parts.append(_check_in_float64(rows, part, values(part), network, report))
    if not parts:
        return Errors(np.empty((0, 0)), np.empty(0)), np.empty(0), 0
    centre = np.concatenate([found.centre for found, _, _ in parts], axis=1)
    slack = np.concatenate([slack for _, slack, _ in parts])
    return Errors(centre, parts[0][0].growth), slack, sum(count for _, _, count in parts)


def _verify_in_integers(
    rows: list[Row],
    order: list[int],
    values: Values,
    network: Proving,
    errors: Errors,
    effort: Effort,
    report: Report,
) -> int:
    check = partial(_check_in_integers, rows, network, errors)
    each = exact_bytes(network.operations, every=network.smooth)
    seconds = exact_seconds(network.operations)
    if any(op.kind in ON_TORUS for op in walk(network.operations)):
        # Every process would compute, and keep, the matrices that this one has.
        effort = replace(effort, processes=1)
    return check_in_turn(order, values, each, seconds, effort, check, report)


def _check_in_integers(rows: list[Row], network: Proving, errors: Errors, batch: Batch) -> Report:
    report = Report()
    network.check_exactly(rows, *batch, errors, report)
    return report


def _note(rows: list[Row], network: Proving, undecided: int, report: Report) -> None:
    # What was proved of the rows, and what is taken as said.
    names = ["R", *("F32" if a is FLOAT32 else "F64" for a in network.deployed)]
    certified = sum(row.certified for row in rows)
    correct = sum(row.correct for row in rows)
    report.note("radii", f"{certified} of {len(rows)} samples, functions {', '.join(names)}")
    report.note("correct", f"{correct} of {len(rows)} samples: the label is the largest logit of R")
    if undecided:
        report.note(
            "undecided",
            f"{undecided} predictions, neither correct nor certified: rounding leaves them open",
        )
    others = sum(not (row.certified or row.correct or row.void) for row in rows)
    report.said.append(
        f"the predictions of the {others} samples that are neither correct nor certified, and all "
        "margins: compared with those found here up to the rounding of every function claimed"
    )
    void = sum(row.void for row in rows)
    if void:
        report.note("void", f"{void} samples without finite logits, neither correct nor certified")


def where_of(position: int) -> str:
    """The name of a row in messages."""
    return f"radii.csv line {position + 2}"


def _check_in_float64(
    rows: list[Row], part: slice, samples: Floats, network: Proving, report: Report
) -> tuple[Errors, Floats, int]:
    # Errors; relative slack, NaN where a row is neither proved nor refuted; number of undecided
    # predictions about which the table claims nothing.
    chosen = rows[part]
    known, errors = network.compare(chosen, samples)
    slack, undecided = known.slack.copy(), 0
    for k, row in enumerate(chosen):
        where = where_of(part.start + k)
        if row.void:
            slack[k] = math.inf
            continue
        if not report.expect(bool(known.finite[k]), f"{where}: logits or errors are not finite"):
            continue
        written = abs(row.margin - known.least[k]) <= known.tolerance[k]
        report.expect(bool(written), f"{where}: the margin is not {row.margin!r}")
        if not row.certified:
            largest = bool(known.largest[k])
            report.expect(largest, f"{where}: {row.prediction} is not the largest logit")
            undecided += not (row.correct or known.decided[k])
            slack[k] = math.nan if row.correct and not known.decided[k] else math.inf
        elif known.refuted[k]:
            report.expect(False, f"{where}: radius {row.radius!r} exceeds what the margin proves")
        elif not row.radius <= known.reach[k]:
            report.expect(False, f"{where}: a value may overflow within radius {row.radius!r}")
        elif not known.proved[k]:
            slack[k] = math.nan
    return errors, slack, undecided
