r"""Intervals of a regression, proved from the constant of the output and its value at the samples.

Let f be the real output, v its value found here within c of f(x), K the proved constant of f, and
:math:`D + \beta r` the error of a deployed network within r. Every input within r of the sample x
has a real output within :math:`K r + c` of v, and a deployed one within
:math:`K r + c + D + \beta r`. The comparison of an end with these is in rationals.
"""

import io
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT32, FLOAT64, Arithmetic
from robustcert.check.cost import exact_seconds, float_seconds
from robustcert.check.effort import Effort, Pace
from robustcert.check.fixed_point import Floats, InexactError
from robustcert.check.forward.batches import FLOAT_BYTES, batches, exact_bytes, float_bytes
from robustcert.check.forward.exact import evaluate_exactly
from robustcert.check.forward.floating import Evaluation, evaluate
from robustcert.check.network.operation import Operation
from robustcert.check.norms.metric import Metric
from robustcert.check.reader import (
    INTEGER,
    MAX_ROW,
    Array,
    UnreadableError,
    fail,
    hex_float,
    items,
    keys,
    parse_safetensors,
    whole,
)
from robustcert.check.report import Report
from robustcert.check.samples import count_inputs, real_numbers
from robustcert.check.share import (
    Batch,
    Values,
    asked_share,
    check_in_turn,
    drawn_seed,
    note_share,
)

# Files of a certificate of a regression.
INTERVAL_FILES = ("certificate.json", "network.safetensors", "samples.safetensors", "intervals.csv")
# Maximum number of radii of a table.
MAX_RADII = 64
# Form of a decimal, which has to be the shortest one of its float64.
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?|-?inf|nan")


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One line of intervals.csv: an interval for each radius."""

    index: int
    target: float
    prediction: float
    ends: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Targets:
    """The samples of the folder, as real numbers, with their targets."""

    inputs: Array
    targets: Floats
    indices: NDArray[np.int64]

    def values(self, rows: slice | NDArray[np.int64]) -> Floats:
        """Inputs as float64; a byte p stands for the float32 nearest to p / 255."""
        return real_numbers(self.inputs[rows])


def read_targets(content: bytes, operations: tuple[Operation, ...], kind: str) -> Targets:
    """Inputs, ``images`` or ``columns``, targets and indices of the certified samples."""
    where = "samples.safetensors"
    tensors = parse_safetensors(content, where)
    keys(tensors, where, {"inputs", "targets", "indices"}, set())
    inputs, targets, indices = (tensors[key] for key in ("inputs", "targets", "indices"))
    count = count_inputs(inputs, operations[0].input_shape)
    for key, array, dtype in (("targets", targets, np.float32), ("indices", indices, np.int64)):
        if array.shape != (count,) or array.dtype != dtype:
            raise UnreadableError(
                f"{where}: expected {np.dtype(dtype)} {key} ({count},), got {array.dtype} "
                f"{array.shape}"
            )
    if not np.isfinite(targets).all():
        raise UnreadableError(f"{where}: a target is not finite")
    if inputs.dtype == np.uint8 and kind == "columns":
        raise UnreadableError(f"{where}: expected float32 columns, got bytes")
    if inputs.dtype != np.uint8 and not np.isfinite(inputs).all():
        raise UnreadableError(f"{where}: an input is not finite")
    if inputs.dtype != np.uint8 and kind == "images" and ((inputs < 0) | (inputs > 1)).any():
        raise UnreadableError(f"{where}: an input is not in [0, 1]")
    return Targets(inputs, targets.astype(np.float64), indices)


def read_radii(summary: Any) -> list[float]:
    """The radii of a summary."""
    keys(summary, "summary", {"samples", "mean_absolute_error", "certified"}, set())
    entries = items(summary["certified"], "summary certified")
    if not 1 <= len(entries) <= MAX_RADII:
        raise fail("summary certified", f"1 to {MAX_RADII} radii", len(entries))
    known = {"radius", "decimal", "mean_absolute_error", "width"}
    for entry in entries:
        keys(entry, "summary certified", known, set())
    return [hex_float(entry["radius"], "summary certified radius") for entry in entries]


def parse_intervals(content: bytes, count: int, radii: Sequence[float]) -> list[IntervalRow]:
    """The ``count`` rows of intervals.csv, which has two columns for each radius."""
    lines = content.count(b"\n")
    if lines != count + 1 or not content.endswith(b"\n"):
        raise UnreadableError(f"intervals.csv: expected {count + 1} lines, got {lines}")
    if not content.isascii():
        raise UnreadableError("intervals.csv: not ASCII")
    file = io.BytesIO(content)
    ends = [f"{end} {radius!r}" for radius in radii for end in ("lower", "upper")]
    header = ",".join(["index", "target", "prediction", *ends])
    head = file.readline().decode().removesuffix("\n")
    if head != header:
        raise fail("intervals.csv line 1", f"the header {header}", head)
    return [
        _row(line.decode().removesuffix("\n"), f"intervals.csv line {number}", len(radii))
        for number, line in enumerate(file, 2)
    ]


def _row(line: str, where: str, radii: int) -> IntervalRow:
    cells = line.split(",") if len(line) <= MAX_ROW + 60 * radii else []
    if len(cells) != 3 + 2 * radii:
        raise fail(where, f"{3 + 2 * radii} columns", line)
    if not INTEGER.fullmatch(cells[0]):
        raise fail(where, "an integer", cells[0])
    target, prediction, *ends = (_number(cell, where) for cell in cells[1:])
    if any(math.isnan(end) for end in ends):
        raise fail(where, "ends that are no NaN", line)
    pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
    return IntervalRow(int(cells[0]), target, prediction, pairs)


def _number(cell: str, where: str) -> float:
    # Each float64 has one shortest decimal, as Python writes it.
    if len(cell) > 40 or not NUMBER.fullmatch(cell) or repr(float(cell)) != cell:
        raise fail(where, "a number as Python writes it", cell)
    return float(cell)


def check_table(rows: list[IntervalRow], samples: Targets, report: Report) -> None:
    """Check that the rows are about the samples."""
    for name, column in (("index", samples.indices), ("target", samples.targets)):
        listed = np.array([getattr(row, name) for row in rows], column.dtype)
        for position in np.flatnonzero(~(listed == column))[:5]:
            report.expect(
                False,
                f"intervals.csv line {position + 2}: {name} {listed[position]} is not the sample's",
            )
    report.expect(len(np.unique(samples.indices)) == len(rows), "samples: an index appears twice")
    report.expect(bool((samples.indices >= 0).all()), "samples: a negative index")
    for line, row in enumerate(rows, 2):
        if any(not lower <= upper for lower, upper in row.ends):
            report.expect(False, f"intervals.csv line {line}: a lower end is above its upper end")


def check_summary(
    summary: Any, rows: list[IntervalRow], radii: Sequence[float], report: Report
) -> None:
    """Check the means of a claim against its table; each is rounded up from the exact mean."""
    count = whole(summary["samples"], "summary samples")
    report.expect(count == len(rows), f"summary samples: it is {len(rows)}")
    found = means(rows, len(radii))
    said = summary["mean_absolute_error"]
    _expect_mean(said, found.error, "summary mean_absolute_error", report)
    for k, entry in enumerate(summary["certified"]):
        where = f"summary certified {radii[k]!r}"
        decimal = type(entry["decimal"]) in (int, float) and entry["decimal"] == radii[k]
        report.expect(decimal, f"{where}: the decimal is not {radii[k]!r}")
        worst = entry["mean_absolute_error"]
        _expect_mean(worst, found.worst[k], f"{where} mean_absolute_error", report)
        _expect_mean(entry["width"], found.widths[k], f"{where} width", report)
    report.note("summary", f"means at {len(radii)} radii found again from intervals.csv")


@dataclass(frozen=True)
class Means:
    """What a table says on average; each mean is rounded up, and infinite where an interval is.

    Attributes:
        error: Distance of target and prediction.
        worst: Distance of the target from the farther end, at each radius.
        widths: Width of the interval, at each radius.
    """

    error: float
    worst: tuple[float, ...]
    widths: tuple[float, ...]


def means(rows: Sequence[IntervalRow], radii: int) -> Means:
    """The means of the rows of a table of this many radii."""
    errors = [_farthest(row.target, row.prediction, row.prediction) for row in rows]
    worst = [[_farthest(row.target, *row.ends[k]) for row in rows] for k in range(radii)]
    widths = [[_difference(*row.ends[k]) for row in rows] for k in range(radii)]
    return Means(mean_up(errors), tuple(map(mean_up, worst)), tuple(map(mean_up, widths)))


def _expect_mean(said: Any, found: float, where: str, report: Report) -> None:
    if type(said) not in (int, float) and said != "inf":
        raise fail(where, "a number or inf", said)
    report.expect(float(said) == found, f"{where}: it is {found!r}")


def _difference(lower: float, upper: float) -> Fraction | None:
    # Exact; None where it is infinite or no number.
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return None
    return Fraction(upper) - Fraction(lower)


def _farthest(target: float, lower: float, upper: float) -> Fraction | None:
    below, above = _difference(lower, target), _difference(target, upper)
    return None if below is None or above is None else max(below, above)


def mean_up(values: Sequence[Fraction | None]) -> float:
    """The least float64 not below the mean; infinite if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return math.inf
    mean = sum(known, Fraction(0)) / len(values)
    try:
        found = float(mean)
    except OverflowError:
        return math.inf
    return found if Fraction(found) >= mean else math.nextafter(found, math.inf)


@dataclass(frozen=True)
class Bounded:
    """A network of one output with its proved constants.

    Attributes:
        operations: Operations, applied in turn.
        norms: Proved norms by path, as floats that are not below them.
        lipschitz: Proved constant of the output.
        deployed: Arithmetics of the deployed networks that the claim is about.
        radii: Radii of the table.
        metric: The metric of the radii; None for the l2 distance of inputs.
    """

    operations: tuple[Operation, ...]
    norms: dict[str, float]
    lipschitz: Fraction
    deployed: Sequence[Arithmetic]
    radii: Sequence[float]
    metric: Metric | None = None

    @property
    def arithmetics(self) -> list[Arithmetic]:
        """float64, in which the check computes, and the deployed ones."""
        return [FLOAT64, *(a for a in self.deployed if a != FLOAT64)]


def verify(
    rows: list[IntervalRow],
    values: Values,
    network: Bounded,
    exact: int | None,
    seed: int | None,
    effort: Effort,
    report: Report,
) -> None:
    """Prove every interval, in float64 and, where that is not enough, in integers.

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
    seed = drawn_seed(seed)
    errors, doubtful, done = _verify_in_float64(rows, values, network, effort, report)
    meaning = sorted(errors)
    most, least = asked_share(exact, len(meaning))
    # All of the share is drawn at random.
    chosen = random.Random(seed).sample(meaning, most)
    check = partial(_check_exactly, rows, errors, network)
    order, operations = list(dict.fromkeys([*doubtful, *chosen])), network.operations
    each, seconds = exact_bytes(operations), exact_seconds(operations)
    exactly = order[: check_in_turn(order, values, each, seconds, effort, check, report)]
    note_share(exactly, chosen, least, doubtful, seed, "intervals.csv", report)
    rows = rows[:done]
    void = len(rows) - len(errors)
    names = ["R", *("F32" if a is FLOAT32 else "F64" for a in network.deployed)]
    report.note(
        "intervals",
        f"{len(errors)} of {len(rows)} samples at {len(network.radii)} radii, functions "
        f"{', '.join(names)}",
    )
    if void:
        report.note("void", f"{void} samples whose intervals are infinite and claim nothing")
    report.said.append("predictions: compared with outputs found here, up to rounding")


def _verify_in_float64(
    rows: list[IntervalRow],
    values: Values,
    network: Bounded,
    effort: Effort,
    report: Report,
) -> tuple[dict[int, tuple[Fraction, Fraction, float]], list[int], int]:
    # Errors of the rows that are not void, rows that are not proved, and the number of rows that
    # there was time for.
    errors: dict[int, tuple[Fraction, Fraction, float]] = {}
    doubtful: list[int] = []
    known = None if network.metric is None else network.metric.constants
    pace = Pace(float_seconds(network.operations), effort)
    for part in batches(len(rows), float_bytes(network.operations), FLOAT_BYTES):
        if not pace.begins(len(rows[part])):
            left = len(rows) - part.start
            report.untried.append(f"{left} rows, from intervals.csv line {part.start + 2} on")
            return errors, doubtful, part.start
        found = evaluate(
            network.operations, values(part), network.norms, network.arithmetics, known
        )
        for k, row in enumerate(rows[part]):
            position = part.start + k
            if not _is_void(row):
                errors[position] = _deployed(found, k, network)
                if not _proved_in_float64(row, found, k, errors[position], network):
                    doubtful.append(position)
    return errors, doubtful, len(rows)


def _is_void(row: IntervalRow) -> bool:
    return not math.isfinite(row.prediction) and all(
        lower == -math.inf and upper == math.inf for lower, upper in row.ends
    )


def _deployed(found: Evaluation, k: int, network: Bounded) -> tuple[Fraction, Fraction, float]:
    # Error of the deployed networks at the sample, its growth, and where nothing overflows; with
    # errors that are not finite, nothing is proved.
    used = [network.arithmetics.index(a) for a in network.deployed]
    centre = float(found.centre[used, k].max(initial=0.0))
    growth = float(found.growth[used].max(initial=0.0))
    reach = float(found.reach[used, k].min(initial=math.inf))
    if not (math.isfinite(centre) and math.isfinite(growth)):
        return Fraction(0), Fraction(0), -math.inf
    return Fraction(centre), Fraction(growth), reach


def _proved_in_float64(
    row: IntervalRow,
    found: Evaluation,
    k: int,
    errors: tuple[Fraction, Fraction, float],
    network: Bounded,
) -> bool:
    value, centre = float(found.values[k, 0]), float(found.centre[0, k])
    if not (math.isfinite(value) and math.isfinite(centre)):
        return False
    near = _near(row, Fraction(value), Fraction(centre), errors)
    return near and _holds(row, Fraction(value), Fraction(centre), errors, network)


def _near(
    row: IntervalRow,
    value: Fraction,
    centre: Fraction,
    errors: tuple[Fraction, Fraction, float],
) -> bool:
    # Whether the prediction is the output up to the rounding of every function claimed.
    finite = math.isfinite(row.prediction)
    return finite and abs(Fraction(row.prediction) - value) <= 2 * (centre + errors[0])


def _holds(
    row: IntervalRow,
    value: Fraction,
    centre: Fraction,
    errors: tuple[Fraction, Fraction, float],
    network: Bounded,
) -> bool:
    # Whether every interval holds all outputs that real and deployed networks may have.
    own, growth, reach = errors
    for radius, (lower, upper) in zip(network.radii, row.ends, strict=True):
        half = (network.lipschitz + growth) * Fraction(radius) + centre + own
        finite = [end for end in (lower, upper) if math.isfinite(end)]
        if finite and not radius < reach:
            return False
        if lower == math.inf or (math.isfinite(lower) and value - half < Fraction(lower)):
            return False
        if upper == -math.inf or (math.isfinite(upper) and value + half > Fraction(upper)):
            return False
    return True


def _check_exactly(
    rows: list[IntervalRow],
    errors: dict[int, tuple[Fraction, Fraction, float]],
    network: Bounded,
    batch: Batch,
) -> Report:
    (positions, samples), report = batch, Report()
    where = f"intervals.csv line {int(positions[0]) + 2}"
    try:
        found = evaluate_exactly(network.operations, samples, network.norms)
    except InexactError as error:
        report.expect(False, f"{where}: no exact evaluation: {error}")
        return report
    for k, position in enumerate(positions.tolist()):
        where = f"intervals.csv line {position + 2}"
        if not math.isfinite(found.error[k]):
            report.expect(False, f"{where}: the error of its output is not finite")
            continue
        value = Fraction(int(found.values[k, 0]), 2**found.places)
        centre, own = Fraction(float(found.error[k])), errors[position]
        row = rows[position]
        near = _near(row, value, centre, own)
        report.expect(near, f"{where}: the output is not {row.prediction!r}")
        holds = _holds(row, value, centre, own, network)
        report.expect(holds, f"{where}: an interval is not proved to hold every output")
    return report
