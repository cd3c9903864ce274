"""The newer objectives by their definitions; test_objectives.py has what all must keep."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.margins import certified_radius, row_distances
from robustcert.objectives import HKR, LMT, CertificateRegularization, LogitAnnealing


def case(classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, classes, dtype=torch.float64, generator=generator)
    rows = torch.randn(classes, 3, dtype=torch.float64, generator=generator)
    return logits, torch.arange(6) % classes, row_distances(rows)


def log_probability(values: list[float], index: int) -> float:
    return values[index] - math.log(sum(math.exp(v) for v in values))


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_lmt_raises_every_rival(epsilon: float, temperature: float) -> None:
    logits, target, pairwise = case()
    expected = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        raised = [(v + epsilon * pairwise[y, j].item()) / temperature for j, v in enumerate(f)]
        expected.append(-log_probability(raised, y))
    found = LMT(temperature)(logits, target, pairwise, epsilon).item()
    assert found == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize(("offset", "anneal", "temperature"), [(2.0, 5.0, 0.75), (1.0, 0.5, 2.0)])
def test_logit_annealing_by_its_definition(
    epsilon: float, offset: float, anneal: float, temperature: float
) -> None:
    logits, target, pairwise = case()
    expected = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        constant = sum(pairwise[y].tolist()) / 3
        shifted = [v / temperature for v in f]
        shifted[y] -= offset * epsilon * constant / temperature
        log_p = log_probability(shifted, y)
        expected.append(-temperature * (1 - math.exp(log_p)) ** anneal * log_p)
    found = LogitAnnealing(offset, anneal, temperature)(logits, target, pairwise, epsilon).item()
    assert found == pytest.approx(sum(expected) / len(expected))


def test_logit_annealing_without_annealing_is_cross_entropy() -> None:
    logits, target, pairwise = case()
    found = LogitAnnealing(offset=0, anneal=0, temperature=1)(logits, target, pairwise, 0.3)
    torch.testing.assert_close(found, F.cross_entropy(logits, target))


def test_logit_annealing_lets_go_of_large_margins() -> None:
    _, target, pairwise = case()
    gradients = []
    for margin in (0.0, 2.0, 8.0):
        logits = (margin * F.one_hot(target, 4).double()).requires_grad_()
        loss = LogitAnnealing(temperature=1.0)(logits, target, pairwise, 0.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        plain = torch.autograd.grad(F.cross_entropy(logits, target), logits)[0]
        gradients.append((gradient.norm() / plain.norm()).item())
    assert gradients[0] > 50 * gradients[1] > 2500 * gradients[2] > 0


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_hkr_by_its_definition(epsilon: float) -> None:
    logits, target, pairwise = case()
    expected = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        for j, v in enumerate(f):
            if j != y:
                wanted = 1.5 * epsilon * pairwise[y, j].item()
                expected.append(4 * max(0.0, wanted - (f[y] - v)) - (f[y] - v))
    found = HKR(alpha=4, offset=1.5, temperature=2)(logits, target, pairwise, epsilon).item()
    assert found == pytest.approx(sum(expected) / len(expected) / 2)


@pytest.mark.parametrize("cap", [None, 0.2])
def test_certificate_regularization_rewards_the_certified_radius(cap: float | None) -> None:
    logits, target, pairwise = case()
    target = torch.cat([logits.argmax(1)[:4], logits.argmin(1)[4:]])
    radius = certified_radius(logits, target, pairwise).clamp(min=0)
    assert 0 < (radius > 0).sum() < 6
    earned = [min(r, cap or math.inf) for r in radius.tolist()]
    expected = F.cross_entropy(logits / 0.5, target).item() - 0.7 * sum(earned) / 6
    objective = CertificateRegularization(0.7, cap, temperature=0.5)
    assert objective(logits, target, pairwise, 0.1).item() == pytest.approx(expected)


def test_certificate_regularization_rewards_no_infinite_radius_and_no_tie() -> None:
    pairwise = torch.zeros(3, 3)
    pairwise[2, :2] = pairwise[:2, 2] = 2.0
    # Classes 0 and 1 never move apart; class 2 does.
    for logits, radius in (
        ([3.0, 1.0, 1.0], 1.0),
        ([3.0, 3.0, 1.0], 0.0),
        ([3.0, 4.0, 1.0], 0.0),
    ):
        row, target = torch.tensor([logits]), torch.tensor([0])
        loss = CertificateRegularization(1.0)(row, target, pairwise, 0.0)
        torch.testing.assert_close(loss, F.cross_entropy(row, target) - radius)
    nothing = CertificateRegularization(1.0)(row, target, torch.zeros(3, 3), 0.0)
    torch.testing.assert_close(nothing, F.cross_entropy(row, target))


@pytest.mark.parametrize("value", [-0.1, math.nan])
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (CertificateRegularization, "gamma"),
        (lambda v: CertificateRegularization(cap=v), "cap"),
        (lambda v: HKR(alpha=v), "alpha"),
        (lambda v: HKR(offset=v), "offset"),
        (lambda v: LogitAnnealing(offset=v), "offset"),
        (partial(LogitAnnealing, 1.0), "anneal"),
    ],
)
def test_options_are_checked(make: Any, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"set objective\.{key}"):
        make(value)
