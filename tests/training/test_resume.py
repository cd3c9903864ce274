"""A run that was interrupted and resumed equals the one that was not, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume, rows
from helpers.runs import TINY, compose, run
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from robustcert.errors import ConfigError
from robustcert.runs.commands import resumed
from robustcert.training.checkpoint import CheckpointError, read_checkpoint

# Power iterations keep buffers, the activation learns, the images are augmented.
OVERRIDES = (
    "trainer.max_epochs=4",
    "layer=unconstrained",
    "activation=smooth",
    "optimizer.lr=0.02",
    "loader.augmentation=[{_target_: robustcert.data.RandomAffine, degrees: 15.0}]",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run(folder, *OVERRIDES)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Killed):
        run(folder, *OVERRIDES, callbacks=[Kill(2)])
    return folder


def test_resuming_continues_bit_for_bit(straight: Path, interrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "run")  # so it is also a run that has moved
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").epoch == 2
    assert (
        resume(folder) == read_checkpoint(straight / "checkpoints" / "best.ckpt").metrics["val/vra"]
    )
    assert_same_run(straight, folder)
    assert (folder / "certificate").is_dir()


@pytest.mark.slow
def test_resuming_twice_continues_bit_for_bit(
    straight: Path, interrupted: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "run")
    with pytest.raises(SystemExit, match="continue with resume="):
        resume(folder, callbacks=[Kill(3, KeyboardInterrupt)])
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").epoch == 3
    resume(folder)
    assert_same_run(straight, folder)


@pytest.mark.slow
def test_seconds_add_up_over_a_resumed_run(interrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "run")
    before = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    resume(folder, "certify=false")
    after = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert after.seconds > before.seconds
    assert after.processor_seconds > before.processor_seconds > 0


def test_a_finished_run_is_certified_again_and_nothing_else(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(folder / "certificate")
    resume(folder)
    assert "all 2 epochs are done, so that nothing is trained: train further with" in caplog.text
    assert_same_run(tiny_run, folder)
    assert (folder / "certificate" / "radii.csv").read_bytes() == (
        tiny_run / "certificate" / "radii.csv"
    ).read_bytes()


def test_fewer_epochs_than_are_done_are_refused(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_epochs: 1, but 2 epochs of this run are done"):
        resume(tiny_run, "trainer.max_epochs=1")


def test_a_finished_run_can_be_trained_further(tiny_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    resume(folder, "trainer.max_epochs=3", "certify=false")
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").epoch == 3
    epochs = [line.split(",")[0] for line in rows(folder).splitlines()[1:]]
    assert epochs == ["0", "0", "1", "1", "2", "2"]


def test_a_best_checkpoint_is_only_replaced_by_a_better_one(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                pl_module.get_parameter("model.head.bias")[0] = 1e3

    assert run(tmp_path, "certify=false", "optimizer.lr=0.02") > 0.2
    best = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    resume(tmp_path, "trainer.max_epochs=3", "certify=false", callbacks=[Spoil()])
    assert (tmp_path / "checkpoints" / "best.ckpt").read_bytes() == best
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").metrics["val/vra"] < 0.1


def test_a_network_that_draws_random_numbers_resumes_as_well(tmp_path: Path) -> None:
    class Noise(Callback):
        """Draws from the global generator in every step, as a dropout would."""

        def on_before_optimizer_step(
            self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
        ) -> None:
            with torch.no_grad():
                bias = pl_module.model.head.bias
                bias += 0.01 * torch.randn_like(bias)

    for name, callbacks in (("straight", [Noise()]), ("resumed", [Noise(), Kill(1)])):
        try:
            run(tmp_path / name, "certify=false", callbacks=callbacks)
        except Killed:
            resume(tmp_path / name, callbacks=[Noise()])
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize(
    "override",
    ["activation=relu", "~logger", "model.width=32", "optimizer.lr=0.1", "seed=2", "model=convnet"],
)
def test_a_resumed_run_stays_the_same_run(tiny_run: Path, override: str) -> None:
    # The optimizer's state would silently win over another learning rate, for one.
    with pytest.raises(ValueError, match=f"{override}: a resumed run .* only .*trainer"):
        resume(tiny_run, override)


def test_weights_of_another_architecture_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["robustcert"]["config"]["model"]["width"] = 32
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="do not fit the configured architecture"):
        resume(folder)


def test_a_checkpoint_cannot_admit_its_own_classes(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    content = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    content["robustcert"]["config"]["allow_targets"] = ["subprocess"]
    content["robustcert"]["config"]["optimizer"] = {
        "_target_": "subprocess.Popen",
        "args": ["touch", str(tmp_path / "executed")],
    }
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"'subprocess.Popen' is not allowed"):
        resume(folder)
    content["robustcert"]["config"]["optimizer"] = {
        "_target_": "lightning.pytorch.cli.LightningCLI"
    }
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"LightningCLI' is not allowed"):
        resume(folder)
    assert not (tmp_path / "executed").exists()


def test_values_of_the_command_line_come_on_top(tiny_run: Path) -> None:
    typed = ["resume=x", "trainer.max_epochs=7", "+trainer.max_time=00:01:00:00"]
    values = compose(*TINY) | {"resume": str(tiny_run / "checkpoints" / "last.ckpt")}
    config = resumed(values, typed)
    assert config["trainer"]["max_epochs"] == 7
    assert config["trainer"]["max_time"] == "00:01:00:00"
    assert config["model"]["width"] == 64
