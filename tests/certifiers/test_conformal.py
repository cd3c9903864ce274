"""Conformal prediction sets: the coverage that was asked for, also where samples are moved."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from helpers.configs import build_model
from torch import Tensor

from robustcert.attacks import ascend
from robustcert.certifiers.conformal import (
    IntervalSets,
    LabelSets,
    PredictionSets,
    quantile_index,
    threshold,
)
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork

COVERAGE, CALIBRATION, TEST, RADIUS = 0.9, 59, 60, 0.15


def network(classes: int) -> PlainNetwork:
    torch.manual_seed(0)
    sizes = {"input_shape": (4,), "num_classes": classes, "mean": [0.5], "std": [0.3]}
    return fold_network(build_model("mlp", "cholesky", "maxmin", **sizes), (4,))


def real_targets(net: PlainNetwork, x: Tensor) -> Tensor:
    """The output with noise that grows with an input: no interval of one width fits all."""
    with torch.no_grad():
        return net(x)[:, 0] + x[:, 0] * torch.randn(len(x))


def labels(net: PlainNetwork, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.distributions.Categorical(logits=6 * net(x)).sample()


KINDS: dict[str, tuple[type[PredictionSets], int, Callable[[PlainNetwork, Tensor], Tensor]]] = {
    "intervals": (IntervalSets, 1, real_targets),
    "labels": (LabelSets, 4, labels),
}


def coverages(kind: str, seeds: int) -> tuple[list[float], list[float], list[float]]:
    """Coverage of many draws: without a perturbation, under attack, and of what is not inflated."""
    sets_of, outputs, draw = KINDS[kind]
    net = network(outputs)
    clean, attacked, plain = [], [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        x = torch.rand(CALIBRATION + TEST, 4)
        y = draw(net, x)
        sets = sets_of(net, COVERAGE)
        sets.calibrate([(x[:CALIBRATION], y[:CALIBRATION])])
        test, target = x[CALIBRATION:].double(), y[CALIBRATION:]
        moved = ascend(sets.misfit(target, RADIUS), test, RADIUS, steps=8)
        clean.append(sets.contain(test, target, 0.0).double().mean().item())
        attacked.append(sets.contain(moved, target, RADIUS).double().mean().item())
        plain.append(sets.contain(moved, target, 0.0).double().mean().item())
        # Not on average alone: what held its target keeps it at every point of the ball.
        kept = sets.scores(test, target) <= sets.threshold
        assert sets.contain(moved, target, RADIUS)[kept].all()
    return clean, attacked, plain


def mean_and_error(values: list[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(len(values))


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_is_what_was_asked_for_and_attacks_do_not_lower_it(kind: str) -> None:
    clean, attacked, plain = (mean_and_error(v) for v in coverages(kind, 6))
    expected = quantile_index(CALIBRATION, COVERAGE) / (CALIBRATION + 1)
    # Scores of real targets have no ties: their coverage is exact on average.
    assert clean[0] >= expected - 3 * clean[1]
    assert attacked[0] >= COVERAGE - 3 * attacked[1]
    if kind == "intervals":
        assert clean[0] <= expected + 3 * clean[1]
    # Sets without the allowance are broken by the same attack.
    assert plain[0] < COVERAGE - 3 * plain[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_coverage_over_many_draws(kind: str) -> None:
    clean, attacked, _ = (mean_and_error(v) for v in coverages(kind, 100))
    assert min(clean[0], attacked[0]) >= COVERAGE - 2 * clean[1]


def test_the_rank_is_exact() -> None:
    # 0.9 as a float is more than nine tenths: ten times it must not be rounded up to 10.
    assert quantile_index(9, 0.9) == 9
    assert quantile_index(10, 0.9) == 10
    for count in range(1, 200):
        for coverage in (0.8, 0.9, 0.95, 0.99):
            k, wanted = quantile_index(count, coverage), Fraction(str(coverage))
            assert Fraction(k, count + 1) >= wanted > Fraction(k - 1, count + 1)


def test_the_threshold_is_an_order_statistic() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 8.0, 7.0, 6.0])
    assert threshold(scores, 0.9) == 9.0
    assert threshold(scores, 0.5) == 5.0
    # Too few samples, or scores that are no numbers, make sets of everything.
    assert threshold(scores[:8], 0.9) == math.inf
    scores[0] = math.nan
    assert threshold(scores, 0.9) == math.inf


def test_wider_radii_and_more_coverage_make_larger_sets() -> None:
    for sets_of, outputs, draw in KINDS.values():
        net = network(outputs)
        torch.manual_seed(1)
        x = torch.rand(200, 4)
        y = draw(net, x)
        found = []
        for coverage, radius in ((0.8, 0.0), (0.9, 0.0), (0.9, 0.2)):
            sets = sets_of(net, coverage)
            sets.calibrate([(x[:50], y[:50]), (x[50:100], y[50:100])])
            assert sets.count == 100
            found.append(sets.sizes(x[100:], radius).mean().item())
        assert found[0] < found[1] < found[2]


def test_a_coverage_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="coverage"):
        IntervalSets(network(1), 1.0)
