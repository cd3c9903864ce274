"""Epochs that are validated, and what becomes of those that are not."""

import csv
import random
from pathlib import Path

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume, rows
from helpers.runs import run

from robustcert import models
from robustcert.activations import GroupSort
from robustcert.layers import AOLConv2d, CholeskyLinear
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.training import cadence, nominal
from robustcert.training.cadence import epochs_between
from robustcert.training.checkpoint import read_checkpoint
from robustcert.training.nominal import proof_seconds, radii_seconds, training_seconds

SELDOM = ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=5", "optimizer.lr=0.02")


def mlp(width: int, depth: int = 2) -> PlainNetwork:
    family = models.LayerFamily(CholeskyLinear, AOLConv2d)
    model = models.MLP((1, 8, 8), 10, width=width, depth=depth, layer=family, activation=GroupSort)
    return fold_network(model, (1, 8, 8))


@pytest.mark.parametrize("seed", range(50))
def test_bounds_take_at_most_their_share(seed: int) -> None:
    random.seed(seed)
    proof, training = 5.0 + random.expovariate(0.01), random.expovariate(0.1)
    epochs = random.randint(1, 200)
    every = epochs_between(proof, training, epochs)
    assert 1 <= every <= epochs
    share = proof / (every * training)
    assert share <= cadence.MAX_SHARE or every == epochs
    # No more seldom than twice what that takes, and then so that the last epoch is validated.
    assert every == 1 or proof / ((every - 1) * training) > cadence.MAX_SHARE / 2.01
    assert epochs % every == 0 or share > cadence.MAX_SHARE / 1.5 or every * 2 > epochs
    assert epochs_between(cadence.MIN_SECONDS, training, epochs) == 1


def test_work_grows_with_the_network() -> None:
    # Three times the factorisations, twice the side.
    small, large = (proof_seconds(mlp(width), accelerated=False) for width in (128, 256))
    assert 4 < large / small <= 8
    assert large > 10 * proof_seconds(mlp(256), accelerated=True)
    network = mlp(256)
    once = training_seconds(network, 1000, 10**6, accelerated=False)
    assert once == pytest.approx(training_seconds(network, 500, 2 * 10**6, accelerated=False))
    assert once > training_seconds(network, 1000, 10**6, accelerated=True)
    # A step takes its time, however small the network is.
    assert training_seconds(network, 100, 1, accelerated=True) == 100 * nominal.LEAST_STEP


def test_radii_take_a_third_of_a_step_forwards_and_backwards() -> None:
    network, batch = mlp(256), 10**6
    step = training_seconds(network, 1, batch, accelerated=False)
    share = nominal.CPU_RATE / nominal.PROOF_RATE / 3
    assert radii_seconds(network, batch, accelerated=False) == pytest.approx(share * step)
    assert radii_seconds(network, batch, accelerated=True) < share * step


def validated_epochs(folder: Path) -> list[int]:
    lines = csv.DictReader(rows(folder).splitlines())
    return [int(row["epoch"]) + 1 for row in lines if row.get("val/vra")]


def test_epochs_without_a_bound_do_not_compete(tmp_path: Path) -> None:
    run(tmp_path, *SELDOM, "certify=false")
    assert validated_epochs(tmp_path) == [2, 4]
    best, last = (read_checkpoint(tmp_path / "checkpoints" / f"{n}.ckpt") for n in ("best", "last"))
    assert best.epoch in (2, 4)
    assert last.epoch == 5
    # The score of epoch 4 is none of epoch 5.
    assert not last.metrics
    assert last.training


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_resuming_between_two_validations_continues_bit_for_bit(
    killed: int, tmp_path: Path
) -> None:
    for name, callbacks in (("straight", []), ("resumed", [Kill(killed)])):
        try:
            run(tmp_path / name, *SELDOM, "certify=false", callbacks=callbacks)
        except Killed:
            resume(tmp_path / name)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_patience_and_plateaus_count_validations(tmp_path: Path) -> None:
    # Nothing is verified at so large a radius, so that no validation is better than the first.
    run(
        *(tmp_path, "epsilon=7", "certify=false", "trainer.max_epochs=9"),
        *("trainer.check_val_every_n_epoch=2", "callbacks=early_stopping"),
        *("callbacks.early_stopping.patience=2", "lr_schedule=plateau"),
        *("lr_schedule.monitor=val/vra", "lr_schedule.scheduler.mode=max"),
        "lr_schedule.scheduler.patience=1",
    )
    assert validated_epochs(tmp_path) == [2, 4, 6]
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["last_epoch"] == 3


def test_dear_bounds_are_proved_in_the_last_epoch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(nominal, "PROOF_RATE", 1.0)
    run(tmp_path, "certify=false", "trainer.max_epochs=3")
    assert "validating every 3 epochs: bounds take about" in caplog.text
    assert validated_epochs(tmp_path) == [3]
    # The line of an epoch without a bound has no score, that of the others its cost.
    lines = [line for line in caplog.messages if line.startswith("epoch ") and "train/loss" in line]
    assert ["val/vra" in line for line in lines] == [False, False, True]
    assert ["bounds" in line for line in lines] == [False, False, True]
