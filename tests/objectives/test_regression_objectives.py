"""Every objective of conf/objective for real targets: the worst loss within the radius."""

import pytest
import torch
from helpers.configs import build, names
from torch import Tensor

from robustcert.objectives import Huber, Quantile, Squared

OBJECTIVES = [
    name
    for name in names("objective")
    if getattr(build("objective", name), "task", None) == "regression"
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def case() -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, targets and a constant, in float64; two residuals are 0."""
    outputs = torch.randn(12, 1, dtype=torch.float64)
    target = torch.randn(12, dtype=torch.float64)
    target[:2] = outputs[:2, 0]
    return outputs.requires_grad_(), target, torch.tensor(2.5).double().requires_grad_()


def test_there_are_some() -> None:
    assert {"squared", "huber", "quantile"} <= {*OBJECTIVES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_output_within_the_radius_costs_more(name: str) -> None:
    objective = build("objective", name)
    outputs, target, constant = case()
    bound = objective(outputs, target, constant, 0.3)
    losses = []
    for share in torch.linspace(-1, 1, 41):
        # Whatever output a network of this constant may have within the radius.
        moved = outputs[:, 0] + share * 0.3 * constant
        losses.append(objective.loss(moved - target))
    worst = torch.stack(losses).amax(0)
    assert bound.item() == pytest.approx(worst.mean().item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_larger_radius_costs_more_and_gradients_are_finite(name: str) -> None:
    objective = build("objective", name)
    outputs, target, constant = case()
    losses = [objective(outputs, target, constant, epsilon) for epsilon in (0.0, 0.1, 1.0, 10.0)]
    assert sorted(losses) == losses
    assert losses[0] < losses[-1]
    for loss in losses:
        gradients = torch.autograd.grad(loss, [outputs, constant], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_a_mean(name: str) -> None:
    objective = build("objective", name)
    outputs, target, constant = case()
    singles = [objective(outputs[[i]], target[[i]], constant, 0.2).item() for i in range(12)]
    assert objective(outputs, target, constant, 0.2).item() == pytest.approx(sum(singles) / 12)


def test_without_a_radius_they_are_the_losses_of_their_papers() -> None:
    residual = torch.tensor([-3.0, -0.5, 0.0, 2.0]).double()
    outputs, target, zero = residual[:, None], torch.zeros(4).double(), torch.zeros(()).double()
    squared = (9 + 0.25 + 0 + 4) / 4
    huber = ((3 - 0.5) + 0.125 + 0 + (2 - 0.5)) / 4
    quantile = (0.8 * 3 + 0.8 * 0.5 + 0 + 0.2 * 2) / 4
    for objective, value in (
        (Squared(), squared),
        (Huber(1.0), huber),
        (Quantile(0.8), quantile),
    ):
        assert objective(outputs, target, zero, 0.5).item() == pytest.approx(value)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.delta"):
        Huber(0.0)
    with pytest.raises(ValueError, match=r"objective\.level"):
        Quantile(1.0)
