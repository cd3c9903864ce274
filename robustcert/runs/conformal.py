"""Conformal prediction sets of a certification: calibrated, counted and attacked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustcert.attacks import BrokenCertificate, Budget, ascend
from robustcert.attacks.gradient import gradient_dtype
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
    sets = kind(prepared.network, coverage, subject.certifier)
    found = describe_sets(
        calibrated(sets, parts, options.batch_size, options.device),
        as_numbers(result.inputs[:], subject.network.space.kind),
        result.target,
        subject.radii(options.radii),
        options.attack,
        options.batch_size,
        options.device,
        options.budget,
    )
    return replace(prepared, record={**prepared.record, "conformal": found})


def calibrated(
    sets: PredictionSets, parts: Parts, batch_size: int, device: torch.device
) -> PredictionSets:
    """The sets with the threshold of the calibration part."""
    count = len(parts.stored("calibration"))
    batches = parts.in_order("calibration", batch_size, 0, count)
    sets.calibrate(
        (as_numbers(x.to(device), parts.dataset.domain), y.to(device)) for x, y in batches
    )
    return sets


def describe_sets(
    sets: PredictionSets,
    x: Tensor,
    target: Tensor,
    radii: Sequence[float],
    attack: Attack,
    batch_size: int,
    device: torch.device,
    budget: Budget,
) -> dict[str, Any]:
    """Coverage and size of the sets on samples, without a perturbation and at every radius.

    Args:
        sets: Calibrated sets.
        x: Samples, shape ``(N, *input_shape)``, float32 or float64.
        target: Their targets, shape ``(N,)``.
        radii: In input units.
        attack: Number of samples attacked, and steps.
        batch_size: Samples evaluated at once.
        device: Where the sets' network is.
        budget: Time that the attacks may take.

    Raises:
        BrokenCertificate: a set that holds a target at the sample loses it within its radius.
    """
    rows = attacked_rows(len(target), attack.samples)
    batches = [(x[p].to(device), target[p].to(device)) for p in _parts(len(target), batch_size)]
    attacked = _under_attack(
        sets, x[rows].double().to(device), target[rows].to(device), radii, attack.steps, budget
    )
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
                **_held(sets, batches, radius),
                "attacked": under,
            }
            for radius, under in zip((0.0, *radii), attacked, strict=True)
        ],
    }


def _held(
    sets: PredictionSets, batches: Sequence[tuple[Tensor, Tensor]], radius: float
) -> dict[str, Any]:
    held, size, count = 0, 0.0, 0
    for x, target in batches:
        held += int(sets.contain(x, target, radius).sum())
        size += float(sets.sizes(x, radius).sum())
        count += len(x)
    mean = size / count
    return {"coverage": held / count, "size": mean if mean < float("inf") else "inf"}


def _under_attack(
    sets: PredictionSets,
    x: Tensor,
    target: Tensor,
    radii: Sequence[float],
    steps: int,
    budget: Budget,
) -> list[dict[str, Any]]:
    """Shares of targets that the sets hold where an attack moved samples: at 0 and every radius."""

    def gradient(rows: Tensor) -> object:
        return _moved(sets, x[rows], target[rows], max(radii), 0)[0].sum().item()

    held = []
    every = torch.arange(len(x), dtype=torch.int64, device=x.device)
    for rows in budget.parts(every, gradient, (steps + 1) * len(radii)):
        own, labels = x[rows], target[rows]
        # Scores are rounded up: a set that rounding alone has made to hold its target may lose it.
        kept = sets.scores(own, labels) <= sets.threshold
        found = []
        for radius in (0.0, *radii):
            points = _moved(sets, own, labels, radius, steps)
            found.append(sets.contain(points, labels, radius))
            if bool((kept & ~found[-1]).any()):
                raise BrokenCertificate(
                    f"a prediction set that holds its target at a sample loses it within {radius:g}"
                )
        held.append(torch.stack(found).double())
    if not held:
        return [{"samples": 0, "coverage": None}] * (1 + len(radii))
    every_held = torch.cat(held, dim=1)
    return [{"samples": row.shape[0], "coverage": float(row.mean())} for row in every_held.unbind()]


def _moved(sets: PredictionSets, x: Tensor, target: Tensor, radius: float, steps: int) -> Tensor:
    """Samples moved within a radius so that their targets fit less well, float64."""
    if radius == 0:
        return x
    dtype = gradient_dtype(sets.network, radius)
    misfit = sets.misfit(target, radius)
    point, centre = sets.network.balls(x)
    search, _ = sets.network.balls(x.to(dtype))
    return point(ascend(lambda u: misfit(search(u)), centre, radius, steps=steps, dtype=dtype))


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
