"""Certified outputs of a regression: samples with an interval for each radius, and their files."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcert.certifiers import Outputs

INTERVALS = "intervals.csv"
SAMPLES = "samples.safetensors"


@dataclass(frozen=True, eq=False)
class CertifiedOutputs:
    """Outputs at the samples of a split, with what bounds them on balls.

    Attributes:
        inputs: Shape ``(N, *input_shape)``, uint8 or float32 as the dataset holds them.
        target: Real targets, float32, shape ``(N,)``.
        indices: Position of every sample in the official split.
        outputs: What the certifier said.
    """

    inputs: Tensor
    target: Tensor
    indices: Tensor
    outputs: Outputs
    # Files that hold the samples and what is said of them.
    files: ClassVar[tuple[str, ...]] = (SAMPLES, INTERVALS)

    def write(self, folder: Path, radii: Sequence[float]) -> None:
        """Write samples and table: a row for each sample, with two ends for each radius.

        Numbers are the shortest decimals that stand for their float64.
        """
        tensors = {"inputs": self.inputs, "targets": self.target, "indices": self.indices}
        save_file({key: t.cpu().contiguous() for key, t in tensors.items()}, folder / SAMPLES)
        ends = [f"{end} {float(radius)!r}" for radius in radii for end in ("lower", "upper")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "target", "prediction", *ends])
        columns = [self.indices, self.target.double(), self.outputs.prediction]
        columns += [end for radius in radii for end in self.outputs.interval(radius)]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            writer.writerow([repr(cell) for cell in row])
        (folder / INTERVALS).write_text(text.getvalue())

    def mean_absolute_error(self, radius: float | None = None) -> float:
        """Mean distance of prediction and target, rounded up; in the worst case within a radius.

        Args:
            radius: Of the ball around every sample; without one it is that of the predictions.
        """
        lower, upper = self._ends(radius)
        target = self.target.tolist()
        return mean_up(
            [_farthest(*row) for row in zip(target, lower.tolist(), upper.tolist(), strict=True)]
        )

    def width(self, radius: float) -> float:
        """Mean width of the intervals, rounded up."""
        lower, upper = self._ends(radius)
        ends = zip(lower.tolist(), upper.tolist(), strict=True)
        return mean_up([_difference(*row) for row in ends])

    def summary(self, radii: Sequence[float]) -> dict[str, Any]:
        """Means over the samples, certified at each radius; "inf" where an interval is infinite."""
        return {
            "samples": len(self.target),
            "mean_absolute_error": _in_json(self.mean_absolute_error()),
            "certified": [
                {
                    "radius": float(r).hex(),
                    "decimal": float(r),
                    "mean_absolute_error": _in_json(self.mean_absolute_error(r)),
                    "width": _in_json(self.width(r)),
                }
                for r in radii
            ],
        }

    def _ends(self, radius: float | None) -> tuple[Tensor, Tensor]:
        prediction = self.outputs.prediction
        return (prediction, prediction) if radius is None else self.outputs.interval(radius)


def mean_up(values: Sequence[Fraction | None]) -> float:
    """The least float64 not below the mean of numbers, infinite if one of them is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return math.inf
    mean = sum(known, Fraction(0)) / len(values)
    try:
        found = float(mean)
    except OverflowError:
        return math.inf
    return found if Fraction(found) >= mean else math.nextafter(found, math.inf)


def _difference(lower: float, upper: float) -> Fraction | None:
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return None
    return Fraction(upper) - Fraction(lower)


def _farthest(target: float, lower: float, upper: float) -> Fraction | None:
    below, above = _difference(lower, target), _difference(target, upper)
    return None if below is None or above is None else max(below, above)


def _in_json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of batches of one network, one after the other, on the CPU."""
    names = ("prediction", "error", "reach", "moved")
    found = {name: torch.cat([getattr(part, name).cpu() for part in parts]) for name in names}
    return Outputs(growth=parts[0].growth, lipschitz=parts[0].lipschitz, **found)
