"""A checkpoint of version 0.1.0 whose configuration names modules as they were called then."""

import csv
import logging
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from helpers.interrupted import resume

from robustcert.config.build import CHECKPOINT_TARGETS, resolve
from robustcert.config.moved_targets import MOVED
from robustcert.errors import ConfigError
from robustcert.runs.certify import certify
from robustcert.training.checkpoint import read_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINT = FIXTURES / "checkpoint_0.1.0.ckpt"
SAMPLES = 40


def targets(node: object) -> set[str]:
    """All ``_target_``s of a configuration."""
    if isinstance(node, dict):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*map(targets, node.values()))
    return set().union(*map(targets, node)) if isinstance(node, list) else set()


def radii(path: Path) -> list[tuple[str, float]]:
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        return [(row["prediction"], float.fromhex(row["radius_hex"])) for row in rows]


def test_it_holds_old_names() -> None:
    old = {name.rpartition(".")[0] for name in targets(read_checkpoint(CHECKPOINT).config)}
    assert {"robustcert.callbacks", "robustcert.schedules", "robustcert.metrics_file"} <= old
    assert old & set(MOVED)


def test_it_is_certified_as_it_was(tmp_path: Path) -> None:
    quick = {"samples": 0}
    certify(str(CHECKPOINT), samples=SAMPLES, output=str(tmp_path / "folder"), attack=quick)
    now = radii(tmp_path / "folder" / "radii.csv")
    before = radii(FIXTURES / "checkpoint_0.1.0.csv")
    assert [label for label, _ in now] == [label for label, _ in before]
    assert [r for _, r in now] == pytest.approx([r for _, r in before], rel=1e-6, abs=1e-9)


def test_it_is_resumed(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("best", "last"):
        shutil.copy(CHECKPOINT, checkpoints / f"{name}.ckpt")
    resume(tmp_path / "run", "trainer.max_epochs=3", "certify=false")
    assert read_checkpoint(checkpoints / "last.ckpt").epoch == 3


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_module_has_moved(old: str, new: str) -> None:
    assert old != new
    assert import_module(new)


def test_an_old_name_is_answered_by_the_new(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cls = resolve("robustcert.callbacks.LogTightness", "some.key", ("robustcert",))
    assert cls.__module__ == "robustcert.training.callbacks.tightness"
    assert "robustcert.training.callbacks.LogTightness" in caplog.text


@pytest.mark.parametrize("allowed", [("torch",), ("robustcert.callbacks",)])
def test_names_are_judged_after_mapping(allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        resolve("robustcert.callbacks.LogTightness", "key", allowed)


def test_an_old_name_admits_no_more_than_the_new() -> None:
    with pytest.raises(ConfigError, match="is not a class of"):
        resolve("robustcert.callbacks.tightness.torch", "key", CHECKPOINT_TARGETS)
