"""An ONNX model becomes a certificate folder like a checkpoint, or one line says why not."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
from helpers.onnx_models import Writer, saved

from robustcert import load
from robustcert.check import check
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.runs.certify import certify

ROOT = Path(__file__).parents[2]
DIGITS = {"_target_": "robustcert.data.Digits"}
OPTIONS: dict[str, Any] = {"radii": [0.01], "samples": 20, "attack": {"samples": 4, "steps": 2}}


def model(path: Path, shape: tuple[int, ...] = (64,), outputs: int = 10) -> Path:
    writer = Writer(shape)
    x = writer.apply("Flatten", "x")
    x = writer.apply("MatMul", x, writer.normal(64, 16, scale=0.1))
    x = writer.apply("Relu", writer.apply("Add", x, writer.normal(16)))
    x = writer.apply("MatMul", x, writer.normal(16, outputs, scale=0.3))
    return saved(writer.model(writer.apply("Add", x, writer.normal(outputs))), path)


@pytest.mark.slow
def test_a_model_is_certified_and_checked_like_a_checkpoint(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx")
    more = {"preprocessing": {"mean": [0.3], "std": [0.5]}}
    result = certify(network=str(path), dataset=DIGITS, **OPTIONS, **more)
    folder = tmp_path / "certificate-model-20"
    record = json.loads((folder / "certificate.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["onnx"] == {"file": "model.onnx", "sha256": digest, "opset": 20}
    assert "checkpoint" not in record
    assert set(result) == {"test/accuracy", "test/vra_0.01"}
    # Standardised by 0.5, the network is twice as steep.
    assert [op["kind"] for op in record["network"]["operations"]][:2] == ["affine", "flatten"]
    assert check(folder, exact=0).verified
    assert load(folder).digest == record["network"]["digest"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "dataset: .* add dataset=mnist"),
        ({"dataset": DIGITS, "radii": None}, "radii: expected"),
        ({"dataset": DIGITS, "checkpoint": "run"}, "and not both"),
        ({"dataset": DIGITS, "preprocessing": {"std": [0.0]}}, "preprocessing.std"),
        ({"dataset": DIGITS, "preprocessing": {"meen": [0.0]}}, "preprocessing.meen"),
        ({"dataset": {"_target_": "robustcert.data.Moons"}}, "takes inputs of shape"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = model(tmp_path / "model.onnx")
    with pytest.raises((ConfigError, UnsoundNetworkError), match=said):
        certify(**{"network": str(path), **OPTIONS, **options})
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_of_fewer_classes_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", outputs=9)
    with pytest.raises(ConfigError, match="has 10 classes"):
        certify(network=str(path), dataset=DIGITS, **OPTIONS)


@pytest.mark.slow
def test_the_command_line_takes_a_model_and_a_dataset(tmp_path: Path) -> None:
    model(tmp_path / "model.onnx", (8, 8, 1))
    (tmp_path / "bad.onnx").write_bytes(b"no model")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "certify.py"), *arguments, "attack.samples=4"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("network=model.onnx", "dataset=digits", "samples=20")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "certificate-model-20" / "certificate.json").read_text())
    assert [row["decimal"] for row in record["summary"]["certified"]] == [0.25, 0.5, 1.0]
    done = run("model.onnx", "dataset=digits", "samples=10", "radii=[0.1]")
    assert done.returncode == 0, done.stderr
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments in (["bad.onnx", "dataset=digits"], ["model.onnx"], ["model.onnx", "dataset=x"]):
        done = run(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 2  # the first says what is read
    assert sorted(p.name for p in tmp_path.iterdir()) == before
