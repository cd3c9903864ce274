"""What has been certified outlasts whatever fails, or finds nothing, afterwards."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import compose, run

from robustcert.certifiers.lipschitz import LipschitzCertifier
from robustcert.errors import BrokenCertificate, ConfigError
from robustcert.report.__main__ import main as report
from robustcert.runs import attack as attack_module
from robustcert.runs import classification
from robustcert.runs.certify import certify
from robustcert.runs.train import train
from robustcert.training.checkpoint import Checkpoint

FEW: dict[str, Any] = {"samples": 20, "batch_size": 10}


def certified(run_folder: Path, output: Path, **options: Any) -> dict[str, float]:
    checkpoint = str(run_folder / "checkpoints" / "best.ckpt")
    attack = {"samples": 4, "steps": 2} | options.pop("attack", {})
    return certify(checkpoint, output=str(output), attack=attack, **FEW | options)


@pytest.fixture(scope="module")
def half_sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, of most of whose samples DDN finds no other prediction."""
    root = tmp_path_factory.mktemp("half_sums")
    x = np.random.RandomState(0).rand(300, 5)
    y = (x.sum(1) > 2.5).astype(np.int64)
    np.savez(root / "data.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    data = ("dataset=npz", f"dataset.root={root / 'data.npz'}")
    network = ("model=mlp", "layer=unconstrained", "activation=relu")
    limits = ("trainer.max_epochs=1", "trainer.enable_progress_bar=false")
    train(compose(*data, *network, *limits), root / "run")
    return root / "run"


@pytest.mark.slow
def test_a_network_that_resists_the_attack_keeps_its_certificate(half_sums: Path) -> None:
    claim = json.loads((half_sums / "certificate" / "certificate.json").read_text())
    assert (half_sums / "certificate" / "radii.csv").is_file()
    assert claim["attack"]["inside"]["samples"] > 0
    assert claim["attack"]["inside"]["median_distance_over_radius"] is None


def test_table_and_report_say_where_nothing_was_found(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resisting(_network: Any, x: torch.Tensor, _label: Any, **_options: Any) -> Any:
        return torch.full((len(x),), math.inf, dtype=torch.float64), torch.zeros_like(x)

    monkeypatch.setattr("robustcert.attacks.crosscheck.ddn", resisting)
    certified(tiny_run, tmp_path / "run" / "certificate")
    claim = json.loads((tmp_path / "run" / "certificate" / "certificate.json").read_text())
    assert claim["attack"]["inside"]["least_distance_over_radius"] is None
    assert claim["attack"]["inside"]["found"] == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 broken; no adversarial input was found at any distance" in said
    assert report([str(tmp_path / "run" / "certificate"), "--out", str(tmp_path / "page")]) == 0
    pages = (tmp_path / "page").rglob("*.html")
    assert any("no adversarial input was found" in page.read_text() for page in pages)


def fail(*_arguments: Any, **_options: Any) -> Any:
    raise RuntimeError("the disk is full of beetles")


@pytest.mark.parametrize(
    "step",
    [
        "write_claim",
        *(
            pytest.param(step, marks=pytest.mark.slow)
            for step in ("attack_samples", "_tightness", "draw_vra_curve")
        ),
    ],
)
def test_radii_outlast_a_step_that_fails_after_them(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    output = tmp_path / "certificate"
    with monkeypatch.context() as patched:
        patched.setattr(classification, step, fail)
        with pytest.raises(RuntimeError, match="beetles"):
            certified(tiny_run, output)
    assert not output.exists()
    partial = tmp_path / "certificate.partial"
    assert len((partial / "radii.csv").read_text().splitlines()) == FEW["samples"] + 1
    # The next one proves nothing again.
    monkeypatch.setattr(LipschitzCertifier, "certify", fail)
    certified(tiny_run, output)
    assert (output / "certificate.json").is_file()
    assert not partial.exists()


@pytest.mark.slow
def test_a_device_that_fails_is_named_and_keeps_what_was_certified(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = LipschitzCertifier.certify, iter(range(10))

    def failing(self: LipschitzCertifier, *arguments: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("80 GiB are not there")
        return original(self, *arguments)

    monkeypatch.setattr(LipschitzCertifier, "certify", failing)
    with pytest.raises(ConfigError, match="device: cpu failed: 80 GiB are not there"):
        certified(tiny_run, tmp_path / "certificate")
    rows = (tmp_path / "certificate.partial" / "radii.csv").read_text().splitlines()
    assert len(rows) == FEW["batch_size"] + 1
    certified(tiny_run, tmp_path / "certificate")
    assert next(calls) == 3  # the second batch once more


def test_a_broken_certificate_is_kept_as_evidence(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuse(*_arguments: Any, **_options: Any) -> Any:
        raise BrokenCertificate("the certificate of sample 3 is broken")

    monkeypatch.setattr(attack_module, "cross_check", accuse)
    with pytest.raises(BrokenCertificate):
        certified(tiny_run, tmp_path / "certificate")
    assert (tmp_path / "certificate.partial" / "radii.csv").is_file()


def test_a_failure_before_the_first_radius_leaves_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LipschitzCertifier, "certify", fail)
    with pytest.raises(RuntimeError, match="beetles"):
        certified(tiny_run, tmp_path / "certificate")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_are_infinite_are_recorded_in_words(tiny_run: Path, tmp_path: Path) -> None:
    certified(tiny_run, tmp_path / "certificate", attack={"seconds": math.inf})
    text = (tmp_path / "certificate" / "certificate.json").read_text()
    assert json.loads(text)["attack"]["seconds"] == "inf"


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "square"])
def test_the_radii_of_a_constant_network_are_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    run(
        tmp_path / "run", f"dataset={dataset}", "model=mlp", "trainer.max_epochs=1", "certify=false"
    )

    def load_constant(_checkpoint: Checkpoint, model: Any) -> None:
        with torch.no_grad():
            model.head.raw.zero_()
            model.head.bias[0] = 1

    monkeypatch.setattr(Checkpoint, "load_into", load_constant)
    certified(tmp_path / "run", tmp_path / "certificate")
    rows = (tmp_path / "certificate" / "radii.csv").read_text().splitlines()
    assert float(rows[1].split(",")[5]) > 1e100
    assert (tmp_path / "certificate" / "vra.png").is_file()
