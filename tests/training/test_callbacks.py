"""Callbacks of the group: averages are what is validated and certified, and every run resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import names
from helpers.interrupted import Kill, Killed, assert_same_run, resume, rows
from helpers.runs import run
from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.errors import ConfigError
from robustcert.network.fold import fold_network
from robustcert.runs.module import restore_module
from robustcert.training.callbacks import EarlyStopping, WeightAveraging
from robustcert.training.checkpoint import read_checkpoint

# What some options need beside themselves.
COMPANIONS = {"annealing": ("activation=smooth", "model.activation.learnable=false")}


class KeepWeights(Callback):
    """The free parameters after every step."""

    def __init__(self) -> None:
        self.steps: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        model: Any = pl_module.model
        self.steps.append([p.detach().clone() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [f"callbacks={name}" for name in names("callbacks")]
    + ["callbacks=[early_stopping,gradients,weight_averaging]"]
    + [f"lr_schedule={name}" for name in names("lr_schedule")]
    + ["~lr_schedule", "optimizer=muon", "optimizer=adam"],
)
def test_a_resumed_run_is_the_straight_one(override: str, tmp_path: Path) -> None:
    companions = COMPANIONS.get(override.partition("=")[2], ())
    typed = (override, *companions, "trainer.max_epochs=3", "certify=false")
    run(tmp_path / "straight", *typed)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *typed, callbacks=[Kill(2)])
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_the_average_of_free_parameters_is_validated_and_certified(tmp_path: Path) -> None:
    kept = KeepWeights()
    averaging = ("callbacks=weight_averaging", "callbacks.weight_averaging.decay=null")
    typed = (*averaging, "callbacks.weight_averaging.start=0.5", "optimizer.lr=0.02")
    score = run(tmp_path, *typed, "attack.samples=0", callbacks=[kept])
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    config = last.config
    model = restore_module(last, config, ("robustcert", "torch.nn"))
    half = len(kept.steps) // 2
    # The last step before the start is the first of the average.
    counted = kept.steps[half - 1 :]
    expected = [torch.stack(values).mean(0) for values in zip(*counted, strict=True)]
    for value, mean in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(value.detach(), mean, rtol=1e-4, atol=1e-6)
    # The constraint is applied to the average, whose weights are as orthogonal as those of a step.
    network = fold_network(model, last.input_shape)
    weight = next(op for op in network.operations if op.kind == "dense").tensors()["weight"]
    values = torch.linalg.svdvals(weight.double())
    assert 0.99 < values.min() <= values.max() < 1 + 1e-5
    # What was validated is the checkpoint's network: certification finds it again.
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best.metrics["val/vra"] == score
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    current = content["current_model_state"]
    for (name, _), value in zip(model.named_parameters(), kept.steps[-1], strict=True):
        assert torch.equal(current[f"model.{name}"], value)


@pytest.mark.slow
def test_before_its_start_the_average_is_the_weights(tmp_path: Path) -> None:
    run(tmp_path / "averaged", "callbacks=weight_averaging", "certify=false")
    run(tmp_path / "plain", "certify=false")
    first, second = (rows(tmp_path / name).splitlines() for name in ("averaged", "plain"))
    # The header, and the rows of the first of two epochs; then half of training is over.
    assert first[:3] == second[:3]
    assert first[3:] != second[3:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (("layer=manifold", "model.width=64"), "steps on a manifold"),
        (("optimizer=schedule_free",), "averages weights itself"),
    ],
)
def test_what_has_no_average_is_refused(
    typed: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        run(tmp_path, "callbacks=weight_averaging", *typed)
    assert not (tmp_path / "checkpoints").exists()


def test_training_stops_where_the_verified_accuracy_does(tmp_path: Path) -> None:
    typed = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1")
    stopping = (*typed, "callbacks.early_stopping.min_delta=1.0", "trainer.max_epochs=9")
    run(tmp_path, *stopping, "certify=false")
    # The first epoch is the best one so far; the second is not better by a whole 1.
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").epoch == 2


def test_norms_of_gradients_are_those_before_clipping(tmp_path: Path) -> None:
    seen: list[float] = []

    class Keep(Callback):
        def on_before_optimizer_step(
            self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
        ) -> None:
            grads = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            seen.append(float(torch.cat(grads).norm()))

    limit = "trainer.gradient_clip_val=0.3"
    typed = ("callbacks=gradients", "trainer.max_epochs=1", "certify=false", limit)
    run(tmp_path, *typed, callbacks=[Keep()])
    header, *lines = rows(tmp_path).splitlines()
    row: dict[str, str] = {}
    for line in lines:
        row |= {k: v for k, v in zip(header.split(","), line.split(","), strict=True) if v}
    assert float(row["train/gradient_norm"]) == pytest.approx(sum(seen) / len(seen), rel=1e-5)
    assert float(row["train/gradient_norm_max"]) == pytest.approx(max(seen), rel=1e-5)
    share = sum(norm > 0.3 for norm in seen) / len(seen)
    assert float(row["train/gradient_clipped"]) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: WeightAveraging(decay=1.0), "callbacks.weight_averaging.decay"),
        (lambda: WeightAveraging(start=-0.1), "callbacks.weight_averaging.start"),
        (lambda: EarlyStopping(patience=0), "callbacks.early_stopping.patience"),
    ],
)
def test_an_option_out_of_range_is_named(make: Any, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()


def test_a_group_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks.mine: needs a _target_"):
        run(tmp_path, "+callbacks.mine={patience: 1}")
