"""Checkpoints are read as data, and refused for a stated reason."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcert.errors import ConfigError
from robustcert.runs.certify import certify
from robustcert.training.checkpoint import CheckpointError, read_checkpoint


class Malicious:
    """What unpickling executes."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def changed(tiny_run: Path, folder: Path, **record: Any) -> Path:
    """A copy of a checkpoint with another record, or another state."""
    content = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"].update(record.pop("state_dict", {}))
    content["robustcert"].update(record)
    path = folder / "changed.ckpt"
    torch.save(content, path)
    return path


def test_what_is_read_is_what_was_trained(tiny_run: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    assert checkpoint.input_shape == (1, 8, 8)
    assert checkpoint.num_classes == 10
    assert (checkpoint.epoch, checkpoint.step) == (2, 12)
    assert checkpoint.config["model"]["width"] == 64
    assert checkpoint.seconds > 0
    assert all(not name.startswith("model.") for name in checkpoint.model_state)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    content = {"robustcert": {"format": 1, "config": Malicious(marker)}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="holds code, of which none was executed"):
        certify(str(path))
    assert not marker.exists()
    # The file is as dangerous as it looks.
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert marker.exists()


def test_a_truncated_checkpoint_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    data = (tiny_run / "checkpoints" / "best.ckpt").read_bytes()
    path = tmp_path / "cut.ckpt"
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut.ckpt: not a readable checkpoint"):
            read_checkpoint(path)


def test_a_damaged_checkpoint_is_refused_or_harmless(tiny_run: Path, tmp_path: Path) -> None:
    data = (tiny_run / "checkpoints" / "best.ckpt").read_bytes()
    generator = random.Random(0)
    path = tmp_path / "damaged.ckpt"
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        # The pickle and the directory of the archive are at its ends, the weights between.
        place = generator.choice([generator.randrange(6000), -generator.randrange(1, 6000)])
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_files_that_are_no_checkpoints_of_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for content, answer in (
        ({"state_dict": {}}, "not a checkpoint of robustcert"),
        ([1, 2], "not a checkpoint of robustcert"),
        ({"robustcert": {"format": 1}, "state_dict": {}}, "not a complete checkpoint"),
        ({"robustcert": {"format": 2, "version": "9.0"}}, r"format 2 \(robustcert 9.0\)"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=answer):
            read_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match="no run: there is no checkpoints"):
        read_checkpoint(tmp_path)


def test_a_weight_that_is_not_finite_is_named(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    for name in checkpoint.model_state:
        value = checkpoint.model_state[name].clone()
        value.view(-1)[-1] = float("nan")
        path = changed(tiny_run, tmp_path, state_dict={f"model.{name}": value})
        with pytest.raises(CheckpointError, match=rf"{name} holds values that are NaN"):
            read_checkpoint(path)


def test_weights_of_another_architecture_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    config = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt").config
    wider = {**config, "model": {**config["model"], "width": 66}}
    with pytest.raises(CheckpointError, match="do not fit the configured architecture: size"):
        certify(str(changed(tiny_run, tmp_path, config=wider)))
    deeper = {**config, "model": {**config["model"], "depth": 3}}
    with pytest.raises(CheckpointError, match="do not fit the configured architecture: Missing"):
        certify(str(changed(tiny_run, tmp_path, config=deeper)))


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "torch.save",
        "torch.optim.Adam",
        "lightning.pytorch.Trainer",
        "robustcert.runs.train.Path",
    ],
)
@pytest.mark.parametrize("section", ["dataset", "model"])
def test_classes_that_a_checkpoint_may_not_name_are_refused(
    tiny_run: Path, tmp_path: Path, target: str, section: str
) -> None:
    config = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt").config
    config[section] = {**config[section], "_target_": target}
    path = changed(tiny_run, tmp_path, config={**config, "allow_targets": ["os", "torch"]})
    with pytest.raises(ConfigError, match=rf"{section}._target_: '{target}' is not (allowed|a cl)"):
        certify(str(path))


def test_nested_classes_are_judged_as_well(tiny_run: Path, tmp_path: Path) -> None:
    config = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt").config
    config["model"]["activation"] = {"_target_": "os.mkdir", "path": str(tmp_path / "executed")}
    with pytest.raises(ConfigError, match=r"model.activation._target_: 'os.mkdir' is not allowed"):
        certify(str(changed(tiny_run, tmp_path, config=config)))
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_is_certified_as_it_is_whatever_the_defaults(
    tiny_run: Path, tmp_path: Path
) -> None:
    path, attack = str(tiny_run / "checkpoints" / "best.ckpt"), {"samples": 0}

    def radii(name: str) -> str:
        certify(path, samples=20, attack=attack, output=str(tmp_path / name))
        return (tmp_path / name / "radii.csv").read_text()

    known = radii("known")
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        found = radii("found")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found == known
