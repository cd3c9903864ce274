"""Annealed temperatures: sharp at the end, part of the state, refused where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run

from robustcert.activations.positive import Positive
from robustcert.errors import ConfigError
from robustcert.training.callbacks import TemperatureAnnealing

ANNEAL = (
    "+trainer.callbacks=[{_target_: robustcert.training.callbacks.TemperatureAnnealing, "
    "start: 1.0, end: 0.01}]"
)
FIXED = ("activation=smooth", "model.activation.learnable=false", "certify=false")


def temperature_of(checkpoint: Path) -> torch.Tensor:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return torch.stack([v for k, v in state.items() if k.endswith("temperature.log")]).exp()


def test_the_last_epoch_is_trained_at_the_last_temperature(tmp_path: Path) -> None:
    run(tmp_path / "run", *FIXED, ANNEAL)
    found = temperature_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(found, torch.full_like(found, 0.01))


def test_the_way_there_is_geometric() -> None:
    part = torch.nn.ModuleDict({"temperature": Positive("A", "temperature", 0.05, False)})
    trainer: Any = type("Trainer", (), {"max_epochs": 5, "current_epoch": 0})()
    module: Any = part
    found = []
    for trainer.current_epoch in range(5):
        TemperatureAnnealing(1.0, 0.01).on_train_epoch_start(trainer, module)
        found.append(float(part["temperature"]()))
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01])


@pytest.mark.slow
def test_a_run_that_anneals_resumes_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "straight", *FIXED, ANNEAL, "trainer.max_epochs=3")
    with pytest.raises(Killed):
        run(tmp_path / "killed", *FIXED, ANNEAL, "trainer.max_epochs=3", callbacks=[Kill(1)])
    resume(tmp_path / "killed")
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("activation", ["maxmin", "smooth"])
def test_a_network_without_fixed_temperatures_is_refused(activation: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.activation\.learnable=false"):
        run(tmp_path / "run", f"activation={activation}", ANNEAL)


@pytest.mark.parametrize("options", [{"start": 0.0, "end": 1.0}, {"start": 1.0, "end": -1.0}])
def test_temperatures_that_are_not_positive_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected (start|end) between"):
        TemperatureAnnealing(**options)
