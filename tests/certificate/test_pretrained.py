"""The networks in docs/pretrained are what they are said to be."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import robustcert
from benchmarks.publish import release
from benchmarks.publish.release import INDEX, MAX_BYTES, PRETRAINED
from benchmarks.soundness.verdicts import certificate_digest, data_files
from robustcert.check import check, prove_network
from robustcert.check.reader import parse_radii
from robustcert.errors import NotCertifiedError
from robustcert.runs.results import read_row, write_row

ENTRIES: dict[str, Any] = json.loads((PRETRAINED / INDEX).read_text())


def test_the_folders_are_those_of_the_index_and_small() -> None:
    assert {path.name for path in PRETRAINED.iterdir() if path.is_dir()} == set(ENTRIES)
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


@pytest.mark.parametrize("name", ENTRIES)
def test_a_pretrained_network_loads_with_the_hashes_and_counts_of_the_index(name: str) -> None:
    folder, entry = PRETRAINED / name, ENTRIES[name]
    predictor = robustcert.load(folder)
    assert predictor.digest == entry["network"]
    assert robustcert.load(name).digest == entry["network"]
    assert certificate_digest(folder) == entry["certificate"]
    summary = json.loads((folder / "certificate.json").read_text())["summary"]
    rows = parse_radii((folder / "radii.csv").read_bytes(), summary["samples"])
    assert sum(row.correct for row in rows) / len(rows) == entry["accuracy"]
    for radius, verified in entry["verified"].items():
        assert sum(r.correct and r.radius > float(radius) for r in rows) / len(rows) == verified
    tensors = load_file(folder / "samples.safetensors")
    if "inputs" in tensors:
        found = predictor(torch.from_numpy(tensors["inputs"]))
        assert found.label.tolist() == [row.prediction for row in rows]


def test_a_path_hides_a_released_name_and_an_unknown_name_lists_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(NotCertifiedError, match=r"digits: neither a run nor a certificate"):
        robustcert.load("digits")
    with pytest.raises(NotCertifiedError, match=r"mnist: expected .*, mnist_1\.58\)$"):
        robustcert.load("mnist")
    with pytest.raises(NotCertifiedError):
        robustcert.load("../pretrained/digits")


@pytest.mark.parametrize("name", ENTRIES)
def test_the_checker_verifies_what_the_folder_holds(name: str) -> None:
    folder = PRETRAINED / name
    if "inputs" in load_file(folder / "samples.safetensors"):
        assert check(folder, exact=20).verified
    else:
        assert prove_network(folder)[1].verified


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["dataset"] != "digits"])
def test_the_checker_verifies_every_radius_with_the_official_files(name: str) -> None:
    root = os.environ.get("ROBUSTCERT_DATA")
    if root is None:
        pytest.skip("ROBUSTCERT_DATA names no folder")
    record = json.loads((PRETRAINED / name / "certificate.json").read_text())
    record["config"]["dataset"]["root"] = root
    assert check(PRETRAINED / name, data=data_files(record)).verified


@pytest.mark.slow
def test_a_released_copy_is_verified_with_digests_and_says_nothing_of_the_machine(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The digits again, this time as a file that the samples can be looked up in.
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    row = read_row(run)
    assert row is not None
    write_row(run, {**row, "command": {"overrides": ["capacity=tiny"]}})
    samples = load_file(run / "certificate" / "samples.safetensors")
    file = tmp_path / "data.npz"
    x = np.zeros((samples["indices"].max() + 1, *samples["inputs"].shape[1:]), np.float32)
    y = np.zeros(len(x), np.int64)
    x[samples["indices"]], y[samples["indices"]] = samples["inputs"], samples["labels"]
    np.savez(file, x_test=x, y_test=y)
    monkeypatch.setattr(release, "data_files", lambda _: [file])
    monkeypatch.setattr(release, "MAX_SAMPLE_BYTES", 1000)
    path = run / "certificate" / "certificate.json"
    record = json.loads(path.read_text())
    record["config"]["dataset"]["root"] = str(tmp_path)
    path.write_text(json.dumps(record))
    folder = release.release(run, "copy", tmp_path / "out")
    assert "inputs" not in load_file(folder / "samples.safetensors")
    assert str(tmp_path) not in (folder / "certificate.json").read_text()
    assert check(folder, exact=5, data=[file]).verified
    assert robustcert.load(folder).digest == record["network"]["digest"]
    # Another picture at the same place is noticed.
    x[samples["indices"][0]] = 0.5
    np.savez(file, x_test=x, y_test=y)
    with pytest.raises(release.NotReleasedError, match="did not verify"):
        release.release(run, "copy", tmp_path / "out")
    record["config"]["cache"] = "/home/somebody"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(release, "data_files", lambda _: [])
    with pytest.raises(release.NotReleasedError, match="a place on this machine"):
        release.release(run, "copy", tmp_path / "out")
