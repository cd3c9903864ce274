"""What runs are compared by: classes by verified accuracy, regressions by certified errors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from robustcert.report.runs import Run


@dataclass(frozen=True)
class Scores:
    """The metrics of one kind of run, named as in ``results.json`` after the split.

    Attributes:
        clean: Without a perturbation.
        certified: Within a radius, ``<certified>_<radius>``; configurations are chosen by it.
        names: Of both of them, as the heads of a table.
        about: What the second one counts, as a sentence.
        share: Whether both are shares, told in percent and drawn between 0 and 1.
        larger: Whether more of them is better.
        beside: Further metrics ``<metric>_<radius>``: their heads, and whether they are shares.
    """

    clean: str
    certified: str
    names: tuple[str, str]
    about: str
    share: bool
    larger: bool
    beside: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    def radii(self, runs: Sequence[Run], split: str) -> dict[float, str]:
        """Certified metrics by radius, in increasing order."""
        return _by_radius(runs, f"{split}/{self.certified}")

    def columns(self, runs: Sequence[Run], split: str) -> list[tuple[str, str, bool]]:
        """Heads, metrics, and whether they are shares: what a table shows of these runs."""
        clean, certified = self.names
        found = [(clean, f"{split}/{self.clean}", self.share)]
        kinds = {self.certified: (certified, self.share), **self.beside}
        for metric, (head, share) in kinds.items():
            for radius, key in _by_radius(runs, f"{split}/{metric}").items():
                found.append((f"{head} at {radius:g}", key, share))
        return [(f"{head} (%)" if share else head, key, share) for head, key, share in found]


CLASSES = Scores(
    "accuracy",
    "vra",
    ("accuracy", "verified"),
    "Verified accuracy counts correct predictions certified beyond the radius.",
    share=True,
    larger=True,
)
REGRESSION = Scores(
    "mae",
    "certified_mae",
    ("mean absolute error", "certified error"),
    "The certified error is the mean absolute error that no input within the radius exceeds, in "
    "units of the target; the width is that of intervals of the output.",
    share=False,
    larger=False,
    beside={"width": ("width", False), "coverage": ("coverage", True)},
)


def scores_of(runs: Sequence[Run]) -> Scores:
    """The first that some run has, and those of classes of runs that have none."""
    known = {key for run in runs for key in run.metrics}
    found = (s for s in (REGRESSION, CLASSES) if {f"test/{s.clean}", f"val/{s.clean}"} & known)
    return next(found, CLASSES)


def split_of(runs: Sequence[Run], scores: Scores) -> str:
    """``test``, or ``val`` where nothing is certified."""
    return "test" if any(f"test/{scores.clean}" in run.metrics for run in runs) else "val"


def _by_radius(runs: Sequence[Run], name: str) -> dict[float, str]:
    pattern = re.compile(rf"{re.escape(name)}_([0-9.e+-]+)")
    found = {
        float(match[1]): match[0]
        for run in runs
        for key in run.metrics
        if (match := pattern.fullmatch(key))
    }
    return dict(sorted(found.items()))
