"""Tightness, its two factors, and the certifiability gap."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import run
from torch import Tensor, nn

from robustcert.activations import GroupSort, NormPair, ReLU
from robustcert.attacks import ddn
from robustcert.certifiers import LipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.ground_truth.exact_distance import exact_distance
from robustcert.ground_truth.plane import linear_pieces
from robustcert.metrics.kinks import kinks_within
from robustcert.metrics.tightness import (
    CertifiabilityGap,
    Tightness,
    split_tightness,
    steepest_slopes,
    tightness,
)
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, Metric, scaling
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork
from robustcert.training.callbacks import LogTightness
from robustcert.training.checkpoint import read_checkpoint


def corner() -> PlainNetwork:
    """Logit 0 ahead by max(x, y): a right angle whose facets are the coordinate axes."""
    net = nn.Sequential(GroupSort(2), nn.Linear(2, 2, bias=False))
    net[1].weight.data = torch.tensor([[0.0, 0.5], [0.0, -0.5]])
    return fold_network(net, (2,))


def arc(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_worst_tightness_of_two_facets_round_a_right_angle_is_on_the_diagonal() -> None:
    network = corner()
    x = arc(torch.linspace(0, math.pi / 2, 91, dtype=torch.float64))
    radius = LipschitzCertifier().certify(network, x).radius
    t = tightness(radius, torch.ones(91))
    assert t.min().item() == pytest.approx(math.cos(math.pi / 4), abs=1e-9)
    assert t.max().item() == pytest.approx(1, abs=1e-9)
    metric = Tightness(quantile=0.0)
    metric.update(radius[:40], torch.ones(40))
    metric.update(radius[40:], torch.ones(51))
    assert metric.compute()["worst"] == t.min()
    assert metric.compute()["mean"].item() == pytest.approx(t.mean().item())


def test_attack_distances_agree_with_the_exact_ones() -> None:
    network = corner()
    x = arc(torch.linspace(0.05, 1.5, 20, dtype=torch.float64))
    distance, _ = ddn(network, x, network(x).argmax(1), steps=200, restarts=10)
    torch.testing.assert_close(distance, torch.ones(20, dtype=torch.float64), rtol=0.02, atol=0)
    assert (distance >= 1 - 1e-9).all()


def test_the_factors_multiply_to_the_tightness_and_stay_below_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    network = fold_network(net, (2,))
    x = torch.randn(30, 2, dtype=torch.float64)
    certifier = LipschitzCertifier()
    result = certifier.certify(network, x)
    bound = certifier.pairwise_bound(network)[0, 1].expand(30)
    distance, _ = ddn(network, x, result.prediction, steps=200, restarts=10)
    slope = steepest_slopes(network, x, steps=5)[0, 1].expand(30)
    assert (slope <= bound).all()
    t_bound, t_shape = split_tightness(result.margin, bound, slope, distance)
    known = distance.isfinite()
    assert known.any()
    assert (t_bound[known] <= 1).all()
    assert (t_shape[known] <= 1).all()
    product = (t_bound * t_shape)[known]
    torch.testing.assert_close(
        product, tightness(result.radius, distance)[known], rtol=1e-6, atol=0
    )


def test_a_shallow_slope_seen_does_not_take_a_factor_above_one() -> None:
    one = torch.ones(1, dtype=torch.float64)
    t_bound, t_shape = split_tightness(one, 4 * one, 0.5 * one, 0.5 * one)
    assert t_bound.item() == 0.5
    assert t_shape.item() == 1


def test_the_gap_is_the_area_between_the_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    radius = torch.rand(500, generator=generator)
    distance = radius * (1 + torch.rand(500, generator=generator))
    distance[0], radius[1] = math.inf, math.nan
    correct = torch.rand(500, generator=generator) < 0.8
    metric = CertifiabilityGap(largest=1.2)
    for part in (slice(0, 100), slice(100, 500)):
        metric.update(radius[part], distance[part], correct[part])
    grid = torch.linspace(0, 1.2, 20001)
    above = torch.stack([(correct & (distance > s)).float().mean() for s in grid])
    below = torch.stack([(correct & (radius > s)).float().mean() for s in grid])
    area = torch.trapezoid(above.double() - below.double(), grid.double())
    assert metric.compute().item() == pytest.approx(area.item(), abs=1e-4)


def test_samples_without_a_known_distance_are_left_out() -> None:
    metric = Tightness()
    metric.update(torch.tensor([0.5]), torch.tensor([math.nan]))
    assert metric.compute()["mean"].isnan()
    metric.update(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, math.inf, 1.0]))
    assert metric.compute()["mean"].item() == 0.25


def test_folds_are_counted_within_epsilon() -> None:
    x = torch.tensor([[1.0, 0.8], [1.0, -1.0], [0.3, 0.3]], dtype=torch.float64)
    share = kinks_within(corner(), x, epsilon=0.2)
    assert share.tolist() == [1, 0, 1]
    smooth = fold_network(nn.Sequential(NormPair(2), nn.Linear(1, 2)), (2,))
    assert kinks_within(smooth, x, 0.2).isnan().all()


@pytest.mark.slow
def test_in_a_metric_everything_is_of_u() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 6), ReLU(6), nn.Linear(6, 3))
    network = fold_network(net, (3,), InputSpace("columns", None, scaling(scale)))
    for x in torch.rand(6, 3, dtype=torch.float64):
        zeros = torch.zeros(3, dtype=torch.float64)
        around = PlainNetwork((Dense(scale.diag(), x), *network.operations), (3,))
        both = [(network, x), (around, zeros)]
        near, plain = (kinks_within(f, point[None], 0.3) for f, point in both)
        assert torch.equal(near, plain)
        slopes = [steepest_slopes(f, point[None]) for f, point in both]
        torch.testing.assert_close(*slopes)
        ours, exact = (exact_distance(f, point) for f, point in both)
        assert ours.upper == pytest.approx(exact.upper)
        radius = LipschitzCertifier().certify(network, x[None]).radius
        assert radius <= ours.upper
        if ours.point is not None:
            assert ours.point[1] == x[1]
            assert ((ours.point - x) / scale)[[0, 2]].norm() == pytest.approx(ours.upper)
    with pytest.raises(ValueError, match=r"norm\.scale=1"):
        linear_pieces(network)
    wide = fold_network(nn.Sequential(nn.Flatten(), net), (3, 1), network.space)
    with pytest.raises(UnsoundNetworkError, match="flat inputs"):
        exact_distance(wide, torch.zeros(3, 1))


@pytest.mark.slow
def test_the_callback_measures_in_the_metric() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), ReLU(6), nn.Linear(6, 3)), torch.rand(8, 3)

    def measured(metric: Metric | None, epsilon: float) -> dict[str, float]:
        found: dict[str, float] = {}
        space = InputSpace("columns", None, metric)
        module: Any = SimpleNamespace(
            **{"model": model, "input_shape": (3,), "space": space, "epsilon": epsilon},
            **{"radii": [1e3], "device": torch.device("cpu")},
            log=lambda key, value: found.update({key: float(value)}),
        )
        trainer: Any = SimpleNamespace(
            sanity_checking=False, current_epoch=0, global_rank=0, world_size=1
        )
        callback = LogTightness(samples=8, steps=20, restarts=2)
        callback.on_fit_start(trainer, module)
        batch = x, model(x).argmax(1)
        callback.on_validation_batch_end(trainer, module, None, batch, 0)
        callback.on_validation_epoch_end(trainer, module)
        return found

    plain, scaled = measured(None, 0.4), measured(scaling(torch.full((3,), 2.0)), 0.2)
    assert scaled["val/kinks"] == plain["val/kinks"]
    for key in ("tightness", "tightness_bound", "tightness_shape"):
        assert scaled[f"val/{key}"] == pytest.approx(plain[f"val/{key}"], rel=0.05)
    gap = plain["val/certifiability_gap"] / 2
    assert scaled["val/certifiability_gap"] == pytest.approx(gap, rel=0.05)


@pytest.mark.parametrize("quantile", [-0.1, 1.1])
def test_a_quantile_outside_the_unit_interval_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        Tightness(quantile)


CALLBACK = "robustcert.training.callbacks.LogTightness"


def logged(folder: Path, *overrides: str) -> dict[str, float]:
    """The last validation metrics of a run with the callback."""
    callback = f"+trainer.callbacks=[{{_target_: {CALLBACK}, samples: 6, steps: 20, restarts: 2}}]"
    run(folder, "certify=false", callback, *overrides)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt").metrics


@pytest.mark.parametrize("activation", ["maxmin", "smooth"])
def test_the_callback_logs_tightness_and_its_factors(tmp_path: Path, activation: str) -> None:
    # Batches of four: the budget of six samples ends within the second one.
    metrics = logged(tmp_path, f"activation={activation}", "loader.eval_batch_size=4")
    t, worst = metrics["val/tightness"], metrics["val/tightness_worst"]
    by_bound, by_shape = metrics["val/tightness_bound"], metrics["val/tightness_shape"]
    assert 0 < worst <= t < 1
    assert t <= min(by_bound, by_shape) + 1e-6
    assert max(by_bound, by_shape) <= 1
    assert metrics["val/certifiability_gap"] > 0
    if activation == "maxmin":
        assert 0 < metrics["val/kinks"] < 1
    else:
        assert math.isnan(metrics["val/kinks"])


def test_two_ranks_share_the_samples(tmp_path: Path) -> None:
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork")
    options = ("layer=unconstrained", "trainer.max_epochs=1", "loader.eval_batch_size=3")
    two = logged(tmp_path / "two", *ranks, *options)
    assert 0 < two["val/tightness_worst"] <= two["val/tightness"] < 1
    assert two["val/certifiability_gap"] > 0


@pytest.mark.parametrize("option", ["samples", "every", "steps", "restarts"])
def test_a_budget_of_nothing_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        LogTightness(**{option: 0})
