"""The samples of a certificate: their inputs, their rows in radii.csv, and the summary of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check import dataset
from robustcert.check.fixed_point import Floats
from robustcert.check.network.operation import Operation
from robustcert.check.reader import (
    Array,
    Row,
    UnreadableError,
    fail,
    hex_float,
    items,
    keys,
    parse_safetensors,
    show,
    whole,
)
from robustcert.check.report import Report


@dataclass(frozen=True)
class Samples:
    """The samples of the folder, as real numbers."""

    inputs: Array
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def values(self, rows: slice | NDArray[np.int64]) -> Floats:
        """Inputs as float64; a byte p stands for the float32 nearest to p / 255."""
        return real_numbers(self.inputs[rows])


def real_numbers(inputs: Array) -> Floats:
    """Inputs as float64; a byte p stands for the float32 nearest to p / 255."""
    if inputs.dtype == np.uint8:
        return (inputs.astype(np.float32) / np.float32(255)).astype(np.float64)
    return inputs.astype(np.float64)


def count_inputs(inputs: Array, shape: tuple[int, ...]) -> int:
    """The number of inputs, which are bytes or float32 of a shape."""
    count = inputs.shape[0] if inputs.ndim else 0
    if inputs.shape != (count, *shape) or count < 1 or inputs.dtype not in (np.uint8, np.float32):
        raise UnreadableError(
            f"samples.safetensors: expected uint8 or float32 inputs (N, {shape}), N at least 1, "
            f"got {inputs.dtype} {inputs.shape}"
        )
    return count


def read_samples(
    content: bytes,
    operations: tuple[Operation, ...],
    data: Sequence[str | Path],
    kind: str = "images",
) -> Samples:
    """Inputs, ``images`` or ``columns``, labels and indices of the certified samples."""
    tensors = parse_safetensors(content, "samples.safetensors")
    if "digests" in tensors:
        tensors["inputs"] = _look_up(tensors, operations[0].input_shape, data)
        del tensors["digests"]
    keys(tensors, "samples.safetensors", {"inputs", "labels", "indices"}, set())
    inputs, labels, indices = (tensors[key] for key in ("inputs", "labels", "indices"))
    count = count_inputs(inputs, operations[0].input_shape)
    for key, array in (("labels", labels), ("indices", indices)):
        if array.shape != (count,) or array.dtype != np.int64:
            raise UnreadableError(
                f"samples.safetensors: expected int64 {key} ({count},), got {array.dtype} "
                f"{array.shape}"
            )
    if kind == "columns":
        if inputs.dtype != np.float32 or not np.isfinite(inputs).all():
            raise UnreadableError("samples.safetensors: expected finite float32 columns")
    elif inputs.dtype != np.uint8 and not ((inputs >= 0) & (inputs <= 1)).all():
        raise UnreadableError("samples.safetensors: an input is not in [0, 1]")
    return Samples(inputs, labels, indices)


def _look_up(
    tensors: dict[str, Array], shape: tuple[int, ...], data: Sequence[str | Path]
) -> Array:
    # Inputs that are too many or too large to be copied are in the folder as digests only.
    digests, indices = tensors["digests"], tensors.get("indices", np.empty(0))
    count = len(indices)
    if digests.shape != (count, 32) or digests.dtype != np.uint8 or indices.dtype != np.int64:
        raise UnreadableError("samples.safetensors: expected 32 bytes of digest for each index")
    if not data or not count:
        raise UnreadableError(
            "samples.safetensors: it holds digests of the inputs, which --data FILE... must give"
        )
    return dataset.by_digest(data, digests, indices, shape)


def check_table(rows: list[Row], samples: Samples, classes: int, report: Report) -> None:
    """Check the rows of a table against the samples."""
    for name, column in (("index", samples.indices), ("label", samples.labels)):
        listed = np.array([getattr(row, name) for row in rows], np.int64)
        wrong = np.flatnonzero(listed != column)
        for position in wrong[:5]:
            report.expect(
                False,
                f"radii.csv line {position + 2}: {name} {listed[position]} is not the sample's",
            )
    report.expect(len(np.unique(samples.indices)) == len(rows), "samples: an index appears twice")
    inside = (samples.labels >= 0) & (samples.labels < classes)
    report.expect(bool(inside.all()), f"samples: a label is not among 0 to {classes - 1}")
    report.expect(bool((samples.indices >= 0).all()), "samples: a negative index")
    for line, row in enumerate(rows, 2):
        where = f"radii.csv line {line}"
        report.expect(row.prediction < classes, f"{where}: prediction {row.prediction} is no class")
        report.expect(row.right or not row.correct, f"{where}: correct is {int(row.correct)}")
        report.expect(
            row.certified == (row.radius > 0), f"{where}: status does not fit radius {row.radius!r}"
        )
        report.expect(
            row.decimal == _decimal(row.radius), f"{where}: {show(row.decimal)} for {row.radius!r}"
        )


def _decimal(radius: float) -> str:
    # Six decimals, rounded down.
    if math.isinf(radius):
        return "inf"
    millionths = math.floor(Fraction(radius) * 10**6)
    return f"{millionths // 10**6}.{millionths % 10**6:06d}"


def check_summary(summary: Any, rows: list[Row], report: Report) -> None:
    """Check the counts of a claim against its table."""
    keys(summary, "summary", {"samples", "correct", "undecided", "certified"}, set())
    counts = {
        "samples": len(rows),
        "correct": sum(row.correct for row in rows),
        # Rows whose label is predicted, but that are not called correct.
        "undecided": sum(row.label == row.prediction and not row.correct for row in rows),
    }
    for key, count in counts.items():
        report.expect(
            whole(summary[key], f"summary {key}") == count, f"summary {key}: it is {count}"
        )
    beyond = np.sort(np.array([row.radius for row in rows if row.correct]))
    entries = items(summary["certified"], "summary certified")
    for entry in entries:
        where = "summary certified"
        keys(entry, where, {"radius", "decimal", "count"}, set())
        radius = hex_float(entry["radius"], where)
        if type(entry["decimal"]) not in (int, float):
            raise fail(f"{where} decimal", "a number", entry["decimal"])
        claimed = whole(entry["count"], f"{where} count")
        count = len(beyond) - int(np.searchsorted(beyond, radius, side="right"))
        report.expect(entry["decimal"] == radius, f"{where}: the decimal is not {radius!r}")
        report.expect(claimed == count, f"{where}: beyond {radius!r} it is {count}, not {claimed}")
    report.note("summary", f"accuracy and {len(entries)} counts recounted from radii.csv")
