"""A training run: what it leaves behind, and what stops it."""

import csv
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import TINY, WANDB, compose, run
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from robustcert.errors import ConfigError, DivergedError
from robustcert.runs.train import train
from robustcert.training.checkpoint import read_checkpoint


def rows(folder: Path) -> list[dict[str, str]]:
    """The non-empty values of every row of the metrics."""
    with (folder / "metrics" / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_run_leaves_checkpoints_metrics_certificate_and_results(tiny_run: Path) -> None:
    names = {str(p.relative_to(tiny_run)) for p in tiny_run.rglob("*") if p.is_file()}
    assert names == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics/metrics.csv",
        "metrics/hparams.yaml",
        "results.json",
        *(
            f"certificate/{name}"
            for name in (
                "certificate.json",
                "network.safetensors",
                "radii.csv",
                "samples.safetensors",
                "vra.png",
            )
        ),
    }


def test_results_tell_the_choices_the_seconds_and_the_metrics(tiny_run: Path) -> None:
    results = json.loads((tiny_run / "results.json").read_text())
    claim = json.loads((tiny_run / "certificate" / "certificate.json").read_text())
    assert results["config"]["model"]["width"] == 64
    assert results["parameters"] == sum(
        t.numel()
        for name, t in read_checkpoint(tiny_run / "checkpoints" / "best.ckpt").model_state.items()
        if "scale" not in name and "shift" not in name
    )
    assert results["epochs"] == 2
    assert set(results["seconds"]) == {"train", "train_processor", "certify", "attack"}
    assert min(results["seconds"].values()) > 0
    for row in claim["summary"]["certified"]:
        share = row["count"] / claim["summary"]["samples"]
        assert results["metrics"][f"test/vra_{row['decimal']:.4g}"] == share


def test_every_epoch_has_its_metrics_and_the_certified_ones_come_last(tiny_run: Path) -> None:
    logged = rows(tiny_run)
    assert [row.get("epoch") for row in logged] == ["0", "0", "1", "1", None]
    for validated in logged[0:4:2]:
        assert validated["val/vra"] == validated["val/vra_0.5"]
        assert float(validated["val/vra"]) <= float(validated["val/accuracy"])
    for trained in logged[1:4:2]:
        assert {"train/loss", "train/accuracy", "train/vra_estimate"} <= trained.keys()
    assert {"test/accuracy", "test/vra_0.5"} <= logged[-1].keys()


def test_best_is_the_highest_vra_and_last_the_last_epoch(tmp_path: Path) -> None:
    # The learning rate is so high that the network gets worse.
    score = run(tmp_path, "trainer.max_epochs=4", "optimizer.lr=0.3", "certify=false")
    scores = [float(row["val/vra"]) for row in rows(tmp_path) if "val/vra" in row]
    best, last = (read_checkpoint(tmp_path / "checkpoints" / f"{n}.ckpt") for n in ("best", "last"))
    assert score == best.metrics["val/vra"] == max(scores)
    assert best.epoch == max(i for i in range(4) if scores[i] == max(scores)) + 1
    assert last.epoch == 4
    assert last.metrics["val/vra"] == scores[-1]
    assert not (tmp_path / "certificate").exists()


def test_of_equal_epochs_the_last_one_validated_is_best(tmp_path: Path) -> None:
    run(tmp_path / "one", "epsilon=7", "trainer.max_epochs=3", "certify=false")
    assert read_checkpoint(tmp_path / "one" / "checkpoints" / "best.ckpt").epoch == 3
    seldom = "trainer.check_val_every_n_epoch=2"
    run(tmp_path / "two", "epsilon=7", "trainer.max_epochs=3", "certify=false", seldom)
    assert read_checkpoint(tmp_path / "two" / "checkpoints" / "best.ckpt").epoch == 2


def test_the_validation_loss_is_the_mean_over_samples(tmp_path: Path) -> None:
    losses = []
    # 145 samples: 73 and 72, or all at once.
    for size in ("100", "1024"):
        batches = f"loader.eval_batch_size={size}"
        run(tmp_path / size, "certify=false", "loader.validation=0.1008", batches)
        last = read_checkpoint(tmp_path / size / "checkpoints" / "last.ckpt")
        losses.append(last.metrics["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(
    tmp_path: Path, tiny_run: Path
) -> None:
    run(tmp_path / "same", "certify=false")
    run(tmp_path / "other", "certify=false", "seed=1")
    states = [
        read_checkpoint(folder / "checkpoints" / "last.ckpt").model_state
        for folder in (tiny_run, tmp_path / "same", tmp_path / "other")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.raw"], states[2]["head.raw"])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []

    class Spy(Callback):
        def on_before_zero_grad(
            self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
        ) -> None:
            gradients = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            norms.extend([torch.stack(gradients).norm()] if gradients else [])

    run(tmp_path, "trainer.gradient_clip_val=0.01", "certify=false", callbacks=[Spy()])
    assert len(norms) > 5
    assert max(norms) <= 0.01 * (1 + 1e-5)


def test_a_reduced_precision_trains_and_never_reaches_the_certificate(tmp_path: Path) -> None:
    run(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    claim = json.loads((tmp_path / "certificate" / "certificate.json").read_text())
    assert claim["arithmetic"]["dtype"] == "torch.float64"
    state = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt").model_state
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}


def test_weights_that_become_nan_stop_the_run_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged in epoch 1: .*optimizer\.lr"):
        run(tmp_path / "free", "optimizer.lr=1e30", "layer=unconstrained")
    with pytest.raises(DivergedError, match=r"diverged in epoch 1"):
        run(tmp_path / "orthogonal", "optimizer.lr=1e30")
    assert not list(tmp_path.glob("*/certificate"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=abc", "model.width: expected int, got 'abc'"),
        ("model.width=-3", "set model.width"),
        ("model.width=63", "set model.width to a multiple of 2"),
        ("radii=[0]", "radii above 0"),
        ("coverage=90", "a share between 0 and 1"),
        ("norm=training", "norm"),
        ("radii=[]", "radii above 0"),
        ("radii=3", r"radii: expected list\[float\], got 3"),
        ("epsilon=-1", "epsilon: expected a radius above 0"),
        ("epsilon=nan", "epsilon: expected a radius above 0"),
        ("epsilon=128", "more than any two inputs are apart in l2, 8: .* divided by 255"),
        ("epsilon=36/255", "epsilon: expected float, got '36/255': write 0.141176 for 36/255"),
        ("radii=[0.5,36/255]", "radii: expected .*: write 0.141176 for 36/255"),
        ("seed=-1", "seed: expected a number from 0"),
        ("trainer.max_epochs=x", "trainer.max_epochs: expected int or null"),
        ("trainer.max_epochs=0", "trainer.max_epochs: expected a number above 0"),
        ("trainer.precision=bf16-true", "choose 32-true"),
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches"),
        ("trainer.check_val_every_n_epoch=3", "trainer.check_val_every_n_epoch: 3 leaves"),
        ("+trainer.logger=true", "trainer.logger: is set by the program"),
        ("+model.foo=1", "MLP takes no 'foo'"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("objective.temperature=0", "set objective.temperature"),
        ("loader.batch_size=0", "loader.batch_size"),
        ("certifier.arithmetic=float16", "expected float64 or float32"),
        ("attack.steps=0", "steps of at least 1"),
        ("+attack.foo=0", "it takes samples, steps"),
        ("allow_targets=mylab", r"allow_targets: expected list\[str\]"),
        ("dataset=npz", "dataset.root: a value is needed"),
        ("logger._target_=robustcert.data.Digits", "logger: expected a Logger, got Digits"),
        ("dataset._target_=torch.nn.ReLU", "dataset: expected a Dataset, got ReLU"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_done(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_a_run_too_short_for_a_validation_says_how_many_steps_it_needs(tmp_path: Path) -> None:
    one_step = ("+trainer.max_steps=1", "certify=false")
    with pytest.raises(ConfigError, match=r"after 1 steps, before the validation .* at least \d+"):
        run(tmp_path / "short", *one_step)
    run(tmp_path / "early", *one_step, "+trainer.val_check_interval=1")
    assert (tmp_path / "early" / "checkpoints" / "best.ckpt").is_file()


class Fails(Callback):
    """Fails when the second batch begins, or the first."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, *arguments: Any) -> None:
        if arguments[-1] == self.batch:
            raise ValueError("beetles")


@pytest.mark.parametrize("logger", [(), ("~logger",)])
def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
    tmp_path: Path, logger: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    for batch in (0, 1):
        # As Hydra leaves it before the run begins.
        (folder / ".hydra").mkdir(parents=True)
        (folder / "train.log").touch()
        with pytest.raises(ValueError, match="beetles"):
            run(folder, *logger, callbacks=[Fails(batch)])
        assert folder.exists() == (batch > 0)


def test_what_was_logged_before_a_run_began_is_no_reason_to_keep_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.log").write_text("loading torch and Lightning: 1 s")
    for new in (False, True):
        with pytest.raises(ValueError, match="multiple of 2"):
            train(compose(*TINY, "model.width=63"), folder, new=new)
        assert folder.exists() != new


def test_what_was_in_a_folder_before_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("run", "empty"):
        with pytest.raises(ValueError, match="multiple of 2"):
            run(tmp_path / name, "model.width=63")
        assert (tmp_path / name).exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz, but there is none"):
        run(tmp_path, "dataset=mnist", "dataset.root=/nonexistent", "dataset.download=false")


def test_a_folder_with_a_run_is_not_trained_in_again(tiny_run: Path) -> None:
    before = (tiny_run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"holds a run already: continue it with resume="):
        run(tiny_run)
    assert (tiny_run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_full_disk_keeps_the_checkpoint_of_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:  # last.ckpt of the second epoch
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, "trainer.max_epochs=3")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").epoch == 1
    assert not (tmp_path / "certificate").exists()


def test_an_interrupted_run_says_how_to_continue(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit, match=r"interrupted: continue with resume=.*last\.ckpt"):
        run(tmp_path, callbacks=[Interrupt()])
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").epoch == 1
    assert not (tmp_path / "certificate").exists()


def test_a_sweep_refuses_ranks_that_would_run_it_again(tmp_path: Path) -> None:
    config = compose("trainer=ddp", "trainer.accelerator=cpu", "capacity=tiny")
    with pytest.raises(ConfigError, match=r"trainer.devices=2: .*whole sweep again"):
        train(config, tmp_path, multirun=True)


def test_forked_ranks_and_weights_and_biases_are_refused(tmp_path: Path) -> None:
    forked = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork")
    with pytest.raises(ConfigError, match=r"logger=wandb does not follow .* trainer.strategy=ddp"):
        run(tmp_path, *forked, *WANDB)


def test_spawned_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use ddp, or ddp_fork on CPU"):
        run(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", "trainer.strategy=ddp_spawn")


def test_fewer_processes_than_devices_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What srun --ntasks=1 makes of devices=2.
    for key, value in {"NTASKS": 1, "JOB_ID": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29517")
    try:
        with pytest.raises(ConfigError, match=r"needs 2 processes, and 1 started"):
            run(tmp_path, "trainer=ddp", "trainer.accelerator=cpu")
    finally:
        # The one process has formed its group, which forked ranks would take for theirs.
        torch.distributed.destroy_process_group()


def test_a_fast_development_run_leaves_nothing(tmp_path: Path) -> None:
    assert math.isnan(run(tmp_path, "+trainer.fast_dev_run=true"))
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "certificate").exists()


def test_a_terminal_gets_a_bar_with_the_verified_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    run(tmp_path, "trainer.enable_progress_bar=true", "certify=false")
    output = capsys.readouterr().out
    assert "epoch 2/2 " in output
    assert "val/vra: 0.0" in output
    # What its bounds took, as in a log file's lines.
    assert re.search(r"bounds: [\d.e-]+ s", output)
    assert "v_num" not in output


def test_no_logger_is_a_choice(tmp_path: Path) -> None:
    run(tmp_path, "~logger", "trainer.max_epochs=1")
    assert not (tmp_path / "metrics").exists()
    assert (tmp_path / "results.json").exists()


def test_a_users_callback_is_added_to_ours(tmp_path: Path) -> None:
    stopping = (
        "+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.EarlyStopping, "
        "monitor: val/loss, patience: 1, min_delta: 100}]"
    )
    run(tmp_path, stopping, "trainer.max_epochs=9", "certify=false")
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").epoch == 2
