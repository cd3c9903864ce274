"""Every objective of conf/ for classes: finite, with a gradient, and what its paper writes."""

import math
from typing import Any

import pytest
import torch
from helpers.configs import build, names, read
from torch import Tensor
from torch.nn import functional as F

from robustcert.margins import certified_radius, row_distances
from robustcert.objectives import (
    EMMA,
    CrossEntropy,
    GloRo,
    OffsetCrossEntropy,
    TradesGloRo,
    bottom_logit,
)
from robustcert.training.schedules import CosineSchedule, EpsilonSchedule

OBJECTIVES = [name for name in names("objective") if not hasattr(build("objective", name), "task")]
# Those that a larger constant makes worse.
PAYING = {"emma", "global_robustness", "gloro", "hkr", "lmt", "logit_annealing", "trades_gloro"}
# Those that do so whatever the radius asked for.
REWARDING = {"certificate_regularization"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def case(kind: str, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and rows of a head, in float64."""
    logits = torch.randn(12, classes, dtype=torch.float64)
    rows = torch.randn(classes, 3, dtype=torch.float64)
    if kind == "ties":
        logits[:4] = 0
        logits[4:8, :2] = 3
    if kind == "equal_rows":
        rows[1] = rows[0]
        rows[3:] = 0
    if kind == "large":
        logits *= 1e4
        rows *= 1e4
    if kind == "small":
        rows *= 1e-20
    return logits.requires_grad_(), torch.arange(12) % classes, rows.requires_grad_()


KINDS = ["generic", "ties", "equal_rows", "large", "small"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.3, 100.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_finite(
    name: str, kind: str, epsilon: float, dtype: torch.dtype
) -> None:
    logits, target, rows = (
        t.detach().to(dtype) if t.is_floating_point() else t for t in case(kind)
    )
    logits.requires_grad_()
    rows.requires_grad_()
    loss = build("objective", name)(logits, target, row_distances(rows), epsilon)
    assert loss.shape == ()
    assert loss.isfinite()
    gradients = torch.autograd.grad(loss, [logits, rows], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    if kind == "generic":
        assert gradients[0].abs().max() > 0
        pays = gradients[1] is not None and gradients[1].abs().max() > 0
        assert pays == (name in REWARDING or (name in PAYING and epsilon > 0))


# EMMA holds a function of the logits constant: see below.
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "emma"])
def test_gradients_are_those_of_the_value(name: str) -> None:
    objective = build("objective", name)
    logits, target, rows = case("generic")
    pairwise = row_distances(rows).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, k: objective(f, target, k, 0.2), (logits, pairwise), atol=1e-6
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_larger_radius_never_costs_less(name: str) -> None:
    objective = build("objective", name)
    logits, target, rows = case("generic")
    losses = [
        objective(logits, target, row_distances(rows), epsilon).item()
        for epsilon in (0.0, 0.01, 0.1, 1.0, 10.0)
    ]
    assert losses == sorted(losses)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(name: str) -> None:
    objective = build("objective", name)
    logits, target, rows = case("ties")
    pairwise = row_distances(rows)
    singles = [objective(logits[[i]], target[[i]], pairwise, 0.2).item() for i in range(12)]
    assert objective(logits, target, pairwise, 0.2).item() == pytest.approx(sum(singles) / 12)


# What the papers write


def probabilities(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]


def bottom_by_definition(f: list[float], constants: list[list[float]], epsilon: float) -> float:
    j = f.index(max(f))
    return max(f[i] + epsilon * constants[j][i] for i in range(len(f)) if i != j)


@pytest.mark.parametrize("kind", ["generic", "ties", "equal_rows"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_gloro_and_trades_by_their_definitions(
    kind: str, epsilon: float, temperature: float
) -> None:
    logits, target, rows = case(kind)
    pairwise = row_distances(rows)
    gloro, trades = [], []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        bottom = bottom_by_definition(f, pairwise.tolist(), epsilon)
        without = [*probabilities([v / temperature for v in f]), 0.0]
        with_bottom = probabilities([v / temperature for v in [*f, bottom]])
        gloro.append(-math.log(with_bottom[y]))
        divergence = sum(
            p * math.log(p / q) for p, q in zip(without, with_bottom, strict=True) if p > 0
        )
        trades.append(-math.log(without[y]) + 1.5 * divergence)
    arguments = logits, target, pairwise, epsilon
    assert GloRo(temperature)(*arguments).item() == pytest.approx(sum(gloro) / 12)
    assert TradesGloRo(1.5, temperature)(*arguments).item() == pytest.approx(sum(trades) / 12)


@pytest.mark.parametrize("kind", ["generic", "ties", "equal_rows"])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5])
def test_the_bottom_logit_wins_where_the_prediction_is_not_certified(
    kind: str, epsilon: float
) -> None:
    logits, _, rows = case(kind)
    pairwise = row_distances(rows)
    bottom = bottom_logit(logits, pairwise, epsilon)[:, 0]
    certified = certified_radius(logits, logits.argmax(1), pairwise) > epsilon
    assert torch.equal(logits.amax(1) > bottom, certified)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_emma_by_its_definition(epsilon: float, temperature: float) -> None:
    logits, target, rows = case("generic")
    pairwise = row_distances(rows)
    losses = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        attacked = []
        for i, k in enumerate(pairwise[y].tolist()):
            radius = (f[y] - f[i]) / k if i != y else 0.0
            attacked.append(f[i] - f[y] + min(max(radius, epsilon / 100), epsilon) * k)
        losses.append(-math.log(probabilities([a / temperature for a in attacked])[y]))
    loss = EMMA(temperature)(logits, target, pairwise, epsilon)
    assert loss.item() == pytest.approx(sum(losses) / 12)


def test_emma_holds_the_clipped_radius_constant() -> None:
    logits, target, rows = case("generic")
    pairwise = row_distances(rows).detach().requires_grad_()
    epsilon = 0.5
    deficit = logits - logits.gather(1, target[:, None])
    constants = pairwise[target]
    radius = (-deficit / constants.clamp_min(1e-9)).detach().clamp(epsilon / 100, epsilon)
    radius = radius.scatter(1, target[:, None], 0.0)
    expected = F.cross_entropy(deficit + radius * constants, target)
    found = EMMA()(logits, target, pairwise, epsilon)
    gradients = [torch.autograd.grad(loss, [logits, pairwise]) for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_emma_attacks_no_further_than_a_tie() -> None:
    logits = torch.tensor([[1.0, 0.5, -1.0]])
    pairwise = torch.ones(3, 3).fill_diagonal_(0)
    for epsilon, attacked in ((1.0, [0.0, 0.0, -1.0]), (0.25, [0.0, -0.25, -1.75])):
        loss = EMMA()(logits, torch.tensor([0]), pairwise, epsilon)
        expected = F.cross_entropy(torch.tensor([attacked]), torch.tensor([0]))
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_at_radius_zero_emma_and_the_offset_are_cross_entropy(temperature: float) -> None:
    logits, target, rows = case("generic")
    arguments = logits, target, row_distances(rows), 0.0
    expected = F.cross_entropy(logits / temperature, target)
    torch.testing.assert_close(CrossEntropy(temperature)(*arguments), expected)
    torch.testing.assert_close(EMMA(temperature)(*arguments), expected)
    torch.testing.assert_close(
        OffsetCrossEntropy(temperature=temperature)(*arguments), temperature * expected
    )


def test_the_offset_is_taken_from_the_target_alone() -> None:
    logits, target, rows = case("generic")
    shifted = logits.detach().clone()
    for i, y in enumerate(target):
        shifted[i, y] -= math.sqrt(2) * 3 * 0.1
    expected = 0.5 * F.cross_entropy(shifted / 0.5, target)
    found = OffsetCrossEntropy(3.0, 0.5)(logits, target, row_distances(rows), 0.1)
    torch.testing.assert_close(found.detach(), expected)


# Options


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_temperature_is_checked(name: str, temperature: float) -> None:
    assert "temperature" in read("objective", name)
    with pytest.raises(ValueError, match=r"set objective\.temperature"):
        build("objective", name, temperature=temperature)


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_other_options_are_checked(value: float) -> None:
    with pytest.raises(ValueError, match=r"set objective\.offset"):
        OffsetCrossEntropy(offset=value)
    with pytest.raises(ValueError, match=r"set objective\.trade_off"):
        TradesGloRo(trade_off=value)


# Schedules


def test_the_training_radius_grows_linearly_and_stays() -> None:
    schedule = EpsilonSchedule(start=0.1, end=1.3, warmup=0.5)
    assert schedule(2.0, 0.0) == pytest.approx(0.2)
    assert schedule(2.0, 0.25) == pytest.approx(1.4)
    assert schedule(2.0, 0.5) == schedule(2.0, 1.0) == pytest.approx(2.6)
    assert EpsilonSchedule(1.0, 1.0, 0.0)(0.7, 0.0) == 0.7
    assert EpsilonSchedule(0.0, 1.0, 1.0)(1.0, 0.5) == 0.5


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = CosineSchedule(warmup=0.2, final=0.1)
    assert schedule(0.0) == 0
    assert schedule(0.1) == pytest.approx(0.5)
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(0.55)
    assert schedule(1.0) == schedule(1.5) == pytest.approx(0.1)
    assert CosineSchedule()(0.0) == 1


@pytest.mark.parametrize(
    ("schedule", "options", "key"),
    [
        (EpsilonSchedule, {"start": -1.0}, r"epsilon_schedule\.start"),
        (EpsilonSchedule, {"end": math.nan}, r"epsilon_schedule\.end"),
        (EpsilonSchedule, {"warmup": 1.5}, r"epsilon_schedule\.warmup"),
        (EpsilonSchedule, {"warmup": math.nan}, r"epsilon_schedule\.warmup"),
        (CosineSchedule, {"warmup": 1.0}, r"lr_schedule\.warmup"),
        (CosineSchedule, {"final": -0.5}, r"lr_schedule\.final"),
        (CosineSchedule, {"final": math.nan}, r"lr_schedule\.final"),
    ],
)
def test_schedules_are_checked(schedule: Any, options: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        schedule(**options)
