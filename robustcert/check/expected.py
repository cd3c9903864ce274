"""What a check of a folder will take, from the shapes of its network; see ``cost.py``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcert.check.cost import exact_seconds, float_seconds
from robustcert.check.effort import SECONDS, WORKING_SHARE
from robustcert.check.folder import open_folder, read_claim, read_operations
from robustcert.check.network.operation import Operation
from robustcert.check.norms.cost import proof_seconds
from robustcert.check.norms.operation import work
from robustcert.check.reader import keys, whole
from robustcert.check.report import Report
from robustcert.check.share import MAX_EXACT, MIN_EXACT

# Seconds below which a check is told to take a few.
MIN_TOLD = 10.0


@dataclass(frozen=True)
class Expected:
    """Seconds of one core that the parts of a check take.

    Attributes:
        norms: The norms of all operations.
        sample: A sample in float64.
        exact: A sample in integers.
        samples: Number of samples.
        outside: Labels of the operations whose norms are beyond the limits.
    """

    norms: float
    sample: float
    exact: float
    samples: int
    outside: tuple[str, ...] = ()

    @staticmethod
    def of(operations: Sequence[Operation], samples: int) -> "Expected":
        """What the check of a network and so many samples takes."""
        spent = [(op, times * work(op)) for op, times in _proofs(operations)]
        return Expected(
            proof_seconds(sum(products for _, products in spent if math.isfinite(products))),
            float_seconds(operations),
            exact_seconds(operations),
            samples,
            tuple(op.label for op, products in spent if math.isinf(products)),
        )

    @property
    def rows(self) -> float:
        """The least that samples take: all in float64, and a few in integers."""
        return self.samples * self.sample + min(MIN_EXACT, self.samples) * self.exact

    @property
    def total(self) -> float:
        """The least that a check takes after which the folder is verified."""
        return self.norms + self.rows

    @property
    def short(self) -> bool:
        """Whether nobody needs to know it in advance."""
        return self.total + MAX_EXACT * self.exact < MIN_TOLD and not self.outside

    def __str__(self) -> str:
        if self.short:
            return "a few seconds"
        least, most = (min(number, self.samples) for number in (MIN_EXACT, MAX_EXACT))
        left = max(0.0, WORKING_SHARE * SECONDS - self.norms - self.samples * self.sample)
        most = max(least, min(most, int(left / self.exact)) if self.exact else most)
        count = str(least) if least == most else f"{least} to {most}"
        text = (
            f"about {_duration(self.total)} on one core: {_duration(self.norms)} for norms, "
            f"{_duration(self.samples * self.sample)} for samples, and {_duration(self.exact)} for "
            f"each of {count} in exact arithmetic"
        )
        if self.outside:
            return f"{text}; beyond its limits: {', '.join(self.outside[:3])}"
        if self.total > WORKING_SHARE * SECONDS:
            enough = math.ceil(1.5 * self.total / WORKING_SHARE)
            return f"{text}: more than its default, use --seconds {enough}"
        return text


def expected_time(folder: str | Path) -> Expected:
    """What the check of a folder takes; nothing of the folder is proved.

    Raises:
        UnreadableError: the folder is malformed.
    """
    content, claim, _, _ = read_claim(
        open_folder(folder), ("certificate.json", "network.safetensors")
    )
    operations, _ = read_operations(claim, content, Report())
    keys(claim["summary"], "summary", {"samples"})
    return Expected.of(operations, whole(claim["summary"]["samples"], "summary samples"))


def _proofs(operations: Sequence[Operation], times: int = 1) -> Iterator[tuple[Operation, int]]:
    # Every operation whose norm is proved, and how often: norms in branches are searched first.
    for operation in operations:
        yield operation, times
        for branch in operation.branches:
            yield from _proofs(branch, 2)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
