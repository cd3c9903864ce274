"""Runs that are killed and resumed."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from helpers.runs import compose
from robustcert.runs.commands import resumed
from robustcert.runs.train import train


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Kill(Callback):
    """Ends the process, so to speak, in the middle of an epoch."""

    def __init__(self, epoch: int, error: type[BaseException] = Killed) -> None:
        self.epoch = epoch
        self.error = error

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise self.error


def resume(folder: Path, *overrides: str, **options: Any) -> float:
    """``python train.py resume=<folder>/checkpoints/last.ckpt`` with values on top."""
    typed = [f"resume={folder / 'checkpoints' / 'last.ckpt'}", *overrides]
    return train(resumed(compose(*typed), typed), folder, **options)


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("best", "last"):
        path = Path("checkpoints") / f"{name}.ckpt"
        states = [torch.load(f / path, weights_only=True) for f in (one, other)]
        for state in states:
            # What is no state: when, where, and how long.
            for clock in ("seconds", "processor_seconds"):
                state["robustcert"].pop(clock)
            for callback in state["callbacks"].values():
                for key in ("dirpath", "best_model_path", "best_k_models", "kth_best_model_path"):
                    callback.pop(key, None)
        assert_same(*states, name)
    assert rows(one) == rows(other)


def assert_same(one: Any, other: Any, path: str) -> None:
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def rows(folder: Path) -> str:
    return (folder / "metrics" / "metrics.csv").read_text()
