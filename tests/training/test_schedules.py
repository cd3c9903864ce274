"""Learning rates over training, by our schedules and by torch's."""

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
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


def test_a_plateau_is_of_a_metric_in_its_direction() -> None:
    with pytest.raises(ValueError, match=r"set lr_schedule\.monitor=val/loss"):
        rates(TorchSchedule(ReduceLROnPlateau), 1)
    with pytest.raises(ValueError, match=r"set lr_schedule\.scheduler\.mode=max"):
        rates(TorchSchedule(ReduceLROnPlateau, monitor="val/vra"), 1)


@pytest.mark.slow
def test_the_rate_falls_on_a_plateau_and_a_resumed_run_is_the_straight_one(tmp_path: Path) -> None:
    # No epoch is better by so much, so that the rate falls after the second one and each one then.
    plateau = (
        *("lr_schedule=plateau", "lr_schedule.scheduler.mode=max", "lr_schedule.monitor=val/vra"),
        *("lr_schedule.scheduler.patience=0", "+lr_schedule.scheduler.threshold=9.0"),
        *("trainer.max_epochs=4", "certify=false", "optimizer.lr=0.01"),
    )
    run(tmp_path / "straight", *plateau)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *plateau, callbacks=[Kill(2)])
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    last = torch.load(tmp_path / "straight" / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = last["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.3**3)


@pytest.mark.slow
def test_a_metric_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metric 'val/los'; there are .*val/loss, val/rejecti"):
        run(tmp_path, "lr_schedule=plateau", "lr_schedule.monitor=val/los")
