"""Conformal prediction sets of a certification: calibrated, counted and attacked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robustcert.attacks import BrokenCertificate, ascend
from robustcert.certifiers.conformal import PredictionSets, quantile_index
from robustcert.data import Parts, as_numbers
from robustcert.errors import ConfigError
from robustcert.runs.attack import Attack, attacked_rows

if TYPE_CHECKING:
    from robustcert.certificate.outputs import CertifiedOutputs
    from robustcert.certificate.samples import CertifiedSplit
    from robustcert.runs.certify import _Options, _Prepared
    from robustcert.runs.subject import Subject

# Coverage where a checkpoint names none.
DEFAULT_COVERAGE = 0.9

STATEMENT = (
    "Not proved for single samples: if calibration and test samples are exchangeable, the set at "
    "every input at l2 distance of at most r from a test sample holds the sample's target with a "
    "probability of at least the coverage, over the draw of both."
)


def check_coverage(coverage: float | None) -> None:
    """Raise unless a coverage is a share, or is left open.

    Raises:
        ConfigError: it is not.
    """
    if coverage is not None and not 0 < coverage < 1:
        raise ConfigError(f"coverage: expected a share between 0 and 1, got {coverage}")


def with_sets(
    subject: "Subject",
    options: "_Options",
    prepared: "_Prepared",
    result: "CertifiedSplit | CertifiedOutputs",
    kind: Callable[..., PredictionSets],
) -> "_Prepared":
    """What is claimed, with prediction sets where training kept a part to calibrate them.

    Of the test split alone: training has seen the others.
    """
    parts = subject.parts
    if not parts.calibration or options.split != "test":
        return prepared
    coverage = options.coverage or float(subject.config.get("coverage", DEFAULT_COVERAGE))
    found = describe_sets(
        calibrated(kind(subject.network, coverage, subject.certifier), parts, options.batch_size),
        as_numbers(result.inputs[:], subject.network.space.kind),
        result.target,
        subject.radii(options.radii),
        options.attack,
        options.batch_size,
    )
    return replace(prepared, record={**prepared.record, "conformal": found})


def calibrated(sets: PredictionSets, parts: Parts, batch_size: int) -> PredictionSets:
    """The sets with the threshold of the calibration part."""
    count = len(parts.stored("calibration"))
    batches = parts.in_order("calibration", batch_size, 0, count)
    sets.calibrate((as_numbers(x, parts.dataset.domain), y) for x, y in batches)
    return sets


def describe_sets(
    sets: PredictionSets,
    x: Tensor,
    target: Tensor,
    radii: Sequence[float],
    attack: Attack,
    batch_size: int,
) -> dict[str, Any]:
    """Coverage and size of the sets on samples, without a perturbation and at every radius.

    Args:
        sets: Calibrated sets.
        x: Samples, shape ``(N, *input_shape)``, float32 or float64.
        target: Their targets, shape ``(N,)``.
        radii: In input units.
        attack: Number of samples attacked, and steps.
        batch_size: Samples evaluated at once.

    Raises:
        BrokenCertificate: a set that holds a target at the sample loses it within its radius.
    """
    rows = attacked_rows(len(target), attack.samples)
    k = quantile_index(sets.count, sets.coverage)
    return {
        "statement": STATEMENT,
        "coverage": sets.coverage,
        "calibration": {"samples": sets.count, "index": k},
        "threshold": sets.threshold.hex(),
        "unit": sets.unit,
        "radii": [
            {
                "radius": radius,
                **_held(sets, x, target, radius, batch_size),
                "attacked": _under_attack(sets, x[rows].double(), target[rows], radius, attack),
            }
            for radius in (0.0, *radii)
        ],
    }


def _held(
    sets: PredictionSets, x: Tensor, target: Tensor, radius: float, batch_size: int
) -> dict[str, Any]:
    held, size = 0, 0.0
    for part in _parts(len(target), batch_size):
        held += int(sets.contain(x[part], target[part], radius).sum())
        size += float(sets.sizes(x[part], radius).sum())
    mean = size / len(target)
    return {"coverage": held / len(target), "size": mean if mean < float("inf") else "inf"}


def _under_attack(
    sets: PredictionSets, x: Tensor, target: Tensor, radius: float, attack: Attack
) -> dict[str, Any]:
    """Share of targets that the sets hold where an attack has moved the sample."""
    if not len(x):
        return {"samples": 0, "coverage": None}
    points = x
    if radius > 0:
        misfit = sets.misfit(target, radius)
        point, centre = sets.network.balls(x)
        points = point(ascend(lambda u: misfit(point(u)), centre, radius, steps=attack.steps))
    held = sets.contain(points, target, radius)
    # Scores are rounded up: a set that rounding alone has made to hold its target may lose it.
    kept = sets.scores(x, target) <= sets.threshold
    if bool((kept & ~held).any()):
        raise BrokenCertificate(
            f"a prediction set that holds its target at a sample loses it within {radius:g}"
        )
    return {"samples": len(x), "coverage": float(held.double().mean())}


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
