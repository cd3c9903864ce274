"""The way back from a run to its torch module."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import run
from safetensors.torch import load_file

import robustcert
from robustcert.certificate.samples import read_radii
from robustcert.errors import ConfigError
from robustcert.training.checkpoint import CheckpointError


def test_a_run_is_loaded_as_the_module_that_was_certified(tiny_run: Path) -> None:
    for path in (tiny_run, str(tiny_run), tiny_run / "checkpoints" / "best.ckpt"):
        model = robustcert.load_module(path)
        assert not model.training
        x = load_file(tiny_run / "certificate" / "samples.safetensors")["inputs"]
        found = robustcert.certify(model, x)
        listed = read_radii(tiny_run / "certificate" / "radii.csv")
        assert torch.equal(found.radius, listed.radius)


def test_it_is_trained_further_and_certified_again(tiny_run: Path) -> None:
    model = robustcert.load_module(tiny_run).train()
    before = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    x = load_file(tiny_run / "certificate" / "samples.safetensors")["inputs"][:8] / 255.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    changed = [
        name
        for name, value in model.state_dict().items()
        if not value.equal(before[f"model.{name}"])
    ]
    assert {name for name, _ in model.named_parameters()} <= set(changed)
    assert (robustcert.certify(model.eval(), x).radius > 0).any()


def test_a_checkpoint_names_no_class_that_is_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thirds.py").write_text(
        "from robustcert.models import MLP\nclass Third(MLP):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    typed = ("model._target_=thirds.Third", "allow_targets=[thirds]", "certify=false")
    run(tmp_path / "run", *typed, "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match=r"'thirds.Third' is not allowed"):
        robustcert.load_module(tmp_path / "run")
    model = robustcert.load_module(tmp_path / "run", allow_targets=["thirds"])
    assert type(model).__name__ == "Third"


def test_what_is_no_run_is_named(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(CheckpointError, match="no run: there is no checkpoints"):
        robustcert.load_module(tmp_path)
    shutil.copy(tiny_run / "results.json", tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        robustcert.load_module(tmp_path / "best.ckpt")


def test_the_caller_s_defaults_change_nothing(tiny_run: Path) -> None:
    expected = robustcert.load_module(tiny_run).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = robustcert.load_module(tiny_run).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(found[name].equal(value) for name, value in expected.items())
