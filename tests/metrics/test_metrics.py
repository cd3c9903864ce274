"""Metrics over certified radii against a count in plain Python, over batches and processes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from robustcert.metrics import AverageCertifiedRadius, RejectionRate, VerifiedRobustAccuracy

RADII = [0.1, 0.3, 1.58]


def samples(count: int = 101, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Radii, some at a threshold, zero, negative, NaN or infinite, and whether they are correct."""
    generator = np.random.default_rng(seed)
    radius = generator.exponential(0.5, count)
    special = [0.1, 0.3, 1.58, 0.0, -1.0, math.nan, 0.3, math.inf]
    radius[: len(special)] = special
    correct = generator.random(count) < 0.7
    correct[[5, 7]] = [True, False]
    return torch.from_numpy(radius), torch.from_numpy(correct)


def reference(radius: Tensor, correct: Tensor) -> dict[str, Any]:
    """The definitions, one sample at a time."""
    rows = list(zip(radius.tolist(), correct.tolist(), strict=True))
    return {
        "vra": [sum(1 for r, c in rows if c and r > e) / len(rows) for e in RADII],
        "acr": sum(r for r, c in rows if c and r > 0) / len(rows),
        "rejection": 1 - sum(1 for r, _ in rows if r > 0.3) / len(rows),
    }


class Metrics(nn.Module):
    """All metrics, fed alike."""

    def __init__(self) -> None:
        super().__init__()
        self.vra = VerifiedRobustAccuracy(RADII)
        self.acr = AverageCertifiedRadius()
        self.rejection = RejectionRate(0.3)

    def update(self, radius: Tensor, correct: Tensor) -> None:
        self.vra.update(radius, correct)
        self.acr.update(radius, correct)
        self.rejection.update(radius)

    def compute(self) -> dict[str, Any]:
        return {
            "vra": self.vra.compute().tolist(),
            "acr": self.acr.compute().item(),
            "rejection": self.rejection.compute().item(),
        }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize("sizes", [[101], [50, 51], [1, 99, 1], [40, 0, 61]])
def test_metrics_are_their_definitions_in_any_batches(sizes: list[int]) -> None:
    radius, correct = samples()
    metrics = Metrics()
    for r, c in zip(radius.split(sizes), correct.split(sizes), strict=True):
        metrics.update(r, c)
    assert_equal(metrics.compute(), reference(radius, correct))
    for metric in metrics.children():
        metric.reset()
    metrics.update(radius[:20], correct[:20])
    assert_equal(metrics.compute(), reference(radius[:20], correct[:20]))


def test_metrics_of_shards_add_up() -> None:
    radius, correct = samples()
    shards = Metrics(), Metrics()
    for metrics, r, c in zip(shards, radius.split([70, 31]), correct.split([70, 31]), strict=True):
        metrics.update(r, c)
    for first, second in zip(*(metrics.children() for metrics in shards), strict=True):
        first.merge_state(second)
    assert_equal(shards[0].compute(), reference(radius, correct))


def run_rank(rank: int, folder: str) -> None:
    """One of two processes, with shards of different sizes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    metrics = Metrics()
    radius, correct = (t.split([70, 31])[rank] for t in samples())
    metrics.update(radius, correct)
    torch.save(metrics.compute(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_metrics_add_up_over_processes(tmp_path: Path) -> None:
    spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert_equal(torch.load(tmp_path / f"{rank}.pt"), reference(*samples()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radius_at_the_threshold_is_not_beyond_it(dtype: torch.dtype) -> None:
    thresholds = [0.1, 0.3, 0.7, 1.58]
    for threshold in thresholds:
        radius = torch.tensor([threshold], dtype=dtype)
        # The nearest float32 may lie on either side: what counts is the number as given.
        beyond = float(radius) > threshold
        vra, rejection = VerifiedRobustAccuracy([threshold]), RejectionRate(threshold)
        vra.update(radius, torch.tensor([True]))
        rejection.update(radius)
        assert vra.compute() == float(beyond)
        assert rejection.compute() == float(not beyond)
        if dtype == torch.float64:
            assert not beyond


def test_the_smallest_excess_over_a_threshold_counts() -> None:
    vra, rejection = VerifiedRobustAccuracy([0.3]), RejectionRate(0.3)
    radius = torch.tensor([math.nextafter(0.3, 1), math.nextafter(0.3, 0)], dtype=torch.float64)
    vra.update(radius, torch.tensor([True, True]))
    rejection.update(radius)
    assert vra.compute() == rejection.compute() == 0.5


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.0, -0.0, -1.0])
def test_what_is_not_a_positive_radius_is_never_certified(value: float) -> None:
    radius, correct = torch.full((3,), value), torch.ones(3, dtype=torch.bool)
    metrics = Metrics()
    metrics.update(radius, correct)
    assert_equal(metrics.compute(), {"vra": [0, 0, 0], "acr": 0, "rejection": 1})


def test_a_wrong_sample_counts_nothing_however_large_its_radius() -> None:
    metrics = Metrics()
    metrics.update(torch.tensor([math.inf, 5.0]), torch.zeros(2, dtype=torch.bool))
    assert_equal(metrics.compute(), {"vra": [0, 0, 0], "acr": 0, "rejection": 0})


def test_thresholds_are_neither_rounded_nor_saved() -> None:
    metrics = Metrics().half().to(torch.bfloat16)
    assert metrics.state_dict() == {}
    radius, correct = samples()
    metrics.update(radius, correct)
    assert metrics.compute()["vra"] == pytest.approx(reference(radius, correct)["vra"])


@pytest.mark.parametrize("radii", [[], [0.0], [-1.0], [0.3, math.nan], [math.inf]])
def test_radii_are_checked(radii: list[float]) -> None:
    with pytest.raises(ValueError, match="set radii and epsilon"):
        VerifiedRobustAccuracy(radii)
    if radii:
        with pytest.raises(ValueError, match="set radii and epsilon"):
            RejectionRate(radii[-1])
