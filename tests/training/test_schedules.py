"""Learning rates over training, by our schedules and by torch's."""

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from robustcert.training.schedules import CosineSchedule, TorchSchedule


def rates(schedule: CosineSchedule | TorchSchedule, steps: int) -> tuple[list[float], str]:
    """The rates of every step, and when the schedule is stepped."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    found = schedule.scheduler_of(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        found["scheduler"].step()
    return seen, found["interval"]


def test_the_cosine_is_stepped_with_every_batch() -> None:
    schedule = CosineSchedule(warmup=0.25, final=0.1)
    seen, interval = rates(schedule, 8)
    assert interval == "step"
    assert seen == pytest.approx([schedule(step / 8) for step in range(8)])


def test_one_cycle_gets_the_steps_of_the_run() -> None:
    schedule = TorchSchedule(partial(OneCycleLR, max_lr=1.0, pct_start=0.5), interval="step")
    seen, interval = rates(schedule, 10)
    assert interval == "step"
    assert seen.index(max(seen)) == 4
    assert seen[-1] < 1e-3
    # Steps that are given are kept.
    given = TorchSchedule(partial(OneCycleLR, max_lr=1.0, total_steps=40), interval="step")
    assert rates(given, 10)[0][-1] > 0.8


def test_steps_are_epochs_by_default() -> None:
    seen, interval = rates(TorchSchedule(partial(StepLR, step_size=2, gamma=0.1)), 5)
    assert interval == "epoch"
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_a_scheduler_that_waits_for_a_plateau_is_refused() -> None:
    with pytest.raises(ValueError, match="when a run is resumed: set lr_schedule=step"):
        rates(TorchSchedule(ReduceLROnPlateau), 1)
