"""A table trained and certified in a metric, from the command line to its files."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import run

import robustcert
from robustcert.check import check
from robustcert.errors import ConfigError, UnsoundNetworkError
from robustcert.report.run_page import write_run_page
from robustcert.runs.certify import certify


def write_table(path: Path) -> Path:
    """Two columns of other units that tell the class, and one that does so better and is frozen."""
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"columns": np.array(["age", "pressure", "sex"])}
    for split, count in (("train", 300), ("test", 60)):
        y = generator.integers(0, 2, count)
        noise = generator.normal(size=(count, 3))
        x = (2 * y[:, None] - 1) * [1.0, 1.0, 4.0] + noise
        arrays |= {f"x_{split}": x * [10, 1000, 0.5] + [50, 9000, 0], f"y_{split}": y}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_a_table_is_trained_and_certified_in_its_units(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.npz")
    run(
        tmp_path / "run",
        *("dataset=npz", f"dataset.root={table}", "dataset.domain=columns"),
        *("normalization.mean=[50,9000,0]", "normalization.std=[10,1000,0.5]"),
        *("norm.scale={age: 10, pressure: 1000}", "norm.frozen=[sex]", "trainer.max_epochs=8"),
        *("loader.batch_size=32", "activation=smooth", "certifier=second_order"),
    )
    folder = tmp_path / "run" / "certificate"
    assert check(folder, data=[table]).verified
    record = json.loads((folder / "certificate.json").read_text())
    change = (
        "any change of age (scale 10.0) and pressure (scale 1000.0) with "
        "sqrt(sum (change_i / scale_i)^2) < r; sex does not change"
    )
    assert record["claim"]["metric"]["change"] == change
    assert record["claim"]["domain"]["names"] == ["age", "pressure", "sex"]
    assert record["attack"]["inside"]["samples"] > 0
    counts = [row["count"] for row in record["summary"]["certified"]]
    # The frozen column alone tells the classes: its margin is what the others would have to undo.
    assert counts[0] > 30
    predictor = robustcert.load(folder)
    assert predictor.change == change
    page = write_run_page(folder)[0].read_text()
    assert "sex does not change" in page
    assert "units of u" in page
    with pytest.raises(ConfigError, match=r"norm: any change .*, not any change"):
        certify(str(tmp_path / "run"), norm={"scale": 2.0}, attack={"samples": 0})
    with pytest.raises(UnsoundNetworkError, match="covers the l2 distance"):
        certify(
            str(tmp_path / "run"),
            certifier={"_target_": "robustcert.certifiers.CROWNCertifier"},
            output=str(tmp_path / "crown"),
        )
    certify(str(tmp_path / "run"), norm={"scale": 1, "frozen": []}, output=str(tmp_path / "l2"))
    assert check(tmp_path / "l2").verified


@pytest.mark.slow
def test_an_exported_model_says_what_its_radii_are_of(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from benchmarks.soundness.forgeries import measured
    from robustcert.certificate.predictor import Predictor
    from robustcert.certifiers import LipschitzCertifier
    from robustcert.export import to_onnx

    network = measured("scaled")
    predictor = Predictor(network, LipschitzCertifier().pairwise_bound(network))
    said = to_onnx(predictor, tmp_path / "model.onnx")
    assert said["robustcert.change"] == predictor.change
    assert json.loads(said["robustcert.domain"])["kind"] == "columns"
    x = 3 * np.random.default_rng(0).normal(size=(40, 6))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    _, label, radius = session.run(None, {"x": x})
    found = predictor(x)
    np.testing.assert_array_equal(label, found.label)
    np.testing.assert_allclose(radius, found.radius, rtol=1e-6, atol=1e-9)
