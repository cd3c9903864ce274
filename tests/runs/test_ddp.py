"""Two processes on the CPU: the same counts as one, and one certificate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, compose
from lightning.pytorch import Callback, LightningModule, Trainer

from robustcert.config.build import COMMAND_LINE_TARGETS, build_data, build_dataset, build_module
from robustcert.runs.train import train
from robustcert.training.checkpoint import Checkpoint, read_checkpoint

ROOT = Path(__file__).parents[2]
RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "layer=unconstrained", "optimizer.lr=0.02")
# 145 validation samples: 73 and 72.
ODD = ("loader.validation=0.1008",)


def validate_alone(checkpoint: Checkpoint) -> dict[str, float]:
    """The validation metrics of a checkpoint's weights, over one process."""
    config = checkpoint.config
    dataset = build_dataset(config, COMMAND_LINE_TARGETS)
    module = build_module(config, dataset, COMMAND_LINE_TARGETS)
    checkpoint.load_into(module.model)
    data = build_data(config, dataset, COMMAND_LINE_TARGETS)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", devices=1, **options)
    (metrics,) = trainer.validate(module, data, verbose=False)
    return dict(metrics)


class KeepVectors(Callback):
    """Writes down each rank's state of the power iterations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        buffers = dict(pl_module.named_buffers())
        vectors = {name: value for name, value in buffers.items() if name.endswith(".vector")}
        torch.save(vectors, self.folder / f"vectors{trainer.global_rank}.pt")


@pytest.mark.parametrize("batch_size", [1024, 1])
def test_validation_counts_every_sample_once(tmp_path: Path, batch_size: int) -> None:
    # With single samples the ranks have 73 and 72 batches: nothing may wait for the other rank.
    batches = f"loader.eval_batch_size={batch_size}"
    config = compose(*TINY, *RANKS, *ODD, "trainer.strategy=ddp_fork", "certify=false", batches)
    score = train(config, tmp_path, multirun=True, callbacks=[KeepVectors(tmp_path)])
    vectors = [torch.load(tmp_path / f"vectors{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(vectors[0]) == 2
    for name, vector in vectors[0].items():
        assert torch.equal(vector, vectors[1][name])
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    alone = validate_alone(last)
    exact = [key for key in alone if "vra" in key or key in ("val/accuracy", "val/rejection")]
    assert len(exact) == 6
    for key in exact:
        assert last.metrics[key] == alone[key]
        assert round(alone[key] * 145, 4).is_integer()
    assert last.metrics["val/acr"] == pytest.approx(alone["val/acr"], rel=1e-6)
    assert last.metrics["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-5)
    assert score == read_checkpoint(tmp_path / "checkpoints" / "best.ckpt").metrics["val/vra"] > 0


def test_forked_ranks_leave_one_certificate_and_all_metrics(tmp_path: Path) -> None:
    train(compose(*TINY, *RANKS, "trainer.strategy=ddp_fork"), tmp_path)
    check_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("further", [(), ("resume=run/checkpoints/last.ckpt",)])
def test_the_command_starts_its_ranks_and_certifies_once(
    tmp_path: Path, further: tuple[str, ...]
) -> None:
    def command(*typed: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *typed],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    output = command(*TINY, *RANKS, *ODD, "hydra.run.dir=run")
    assert output.count("certificate.json") == 1
    assert output.count("epoch 2/2") == 1
    check_run(tmp_path / "run")
    if further:
        output = command(*further, "trainer.max_epochs=3")
        assert output.count("certificate.json") == 1
        assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").epoch == 3


def check_run(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert results["ranks"] == 2
    assert results["metrics"]["test/accuracy"] > 0.5
    rows = (folder / "metrics" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [
        ["0", "2"],
        ["0", "2"],
        ["1", "5"],
        ["1", "5"],
        ["", "6"],
    ]
    assert sum("test/accuracy" in row for row in rows) == 1
