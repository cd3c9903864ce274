"""The certificate folder: what it says, and that it is complete or absent."""

import csv
import hashlib
import json
import math
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.miniatures import write_npz
from helpers.runs import run
from safetensors.torch import load_file
from torch import Tensor

import robustcert.certificate.claim
import robustcert.runs.attack
import robustcert.runs.classification
from robustcert.certificate.claim import is_certificate
from robustcert.certificate.samples import decimal_floor
from robustcert.data import Digits
from robustcert.errors import ConfigError
from robustcert.runs.certify import certify, default_output
from robustcert.training.checkpoint import read_checkpoint

QUICK = {"samples": 0}
LIPSCHITZ = {"_target_": "robustcert.certifiers.LipschitzCertifier"}


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, to write to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def best(folder: Path) -> str:
    return str(folder / "checkpoints" / "best.ckpt")


def claim(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "radii.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_claim_counts_what_the_radii_say(tiny_run: Path) -> None:
    folder = tiny_run / "certificate"
    said, listed = claim(folder)["summary"], rows(folder)
    assert said["samples"] == len(listed) == 359
    assert said["correct"] == sum(row["label"] == row["prediction"] for row in listed)
    assert [row["decimal"] for row in said["certified"]] == [0.25, 0.5, 1.0]
    for row in said["certified"]:
        radius = float.fromhex(row["radius"])
        assert row["decimal"] == radius
        certified = [float.fromhex(r["radius_hex"]) > radius for r in listed if r["correct"] == "1"]
        assert row["count"] == sum(certified)


def test_radii_are_rounded_down_and_samples_are_the_split_in_order(tiny_run: Path) -> None:
    test = Digits().read("test")
    for i, row in enumerate(rows(tiny_run / "certificate")):
        exact = Fraction(float.fromhex(row["radius_hex"]))
        assert Fraction(row["radius"]) <= exact < Fraction(row["radius"]) + Fraction(1, 10**6)
        assert int(row["index"]) == i
        assert int(row["label"]) == test.labels[i]
        assert row["correct"] == str(int(row["label"] == row["prediction"]))
        assert row["status"] == ("certified" if exact > 0 else "abstain")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000000"),
        (1e-9, "0.000000"),
        (0.3, "0.299999"),  # the float is below 0.3
        (0.9999999, "0.999999"),
        (1.58, "1.580000"),
        (123456.7890125, "123456.789012"),
        (1e22, "1" + "0" * 22 + ".000000"),
        (2.0**100, f"{2**100}.000000"),
        (sys.float_info.max, f"{int(sys.float_info.max)}.000000"),
        (sys.float_info.min, "0.000000"),
        (math.inf, "inf"),
    ],
)
def test_decimals_never_exceed_the_number(value: float, text: str) -> None:
    assert decimal_floor(value) == text


def test_the_claim_names_its_files_network_and_origin(tiny_run: Path) -> None:
    folder = tiny_run / "certificate"
    said = claim(folder)
    for name, digest in said["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    checkpoint = tiny_run / "checkpoints" / "best.ckpt"
    assert said["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert said["checkpoint"]["epoch"] == read_checkpoint(checkpoint).epoch
    assert said["config"]["model"]["width"] == 64
    assert said["dataset"]["name"] == "digits"
    assert said["dataset"]["split"] == "test"
    assert said["arithmetic"]["dtype"] == "torch.float64"
    constants = load_file(folder / "network.safetensors")
    used = [name for op in said["network"]["operations"] for name in op["tensors"].values()]
    assert sorted(used) == sorted(constants)
    # Nothing stands beside a bound that nobody proves.
    assert all(bound.keys() == {"name", "kind", "input_shape", "bound"} for bound in said["bounds"])


def test_the_pairwise_constants_are_symmetric_positive_and_those_of_the_radii(
    tiny_run: Path,
) -> None:
    folder = tiny_run / "certificate"
    pairwise = np.array([[float.fromhex(k) for k in row] for row in claim(folder)["pairwise"]])
    assert (pairwise == pairwise.T).all()
    assert (pairwise > 0).sum() == 90
    for row in rows(folder):
        others = np.delete(pairwise[int(row["prediction"])], int(row["prediction"]))
        assert float.fromhex(row["radius_hex"]) <= float(row["margin"]) / others.min() * (1 + 1e-8)


def test_the_picture_is_one(tiny_run: Path) -> None:
    data = (tiny_run / "certificate" / "vra.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 10_000


def test_certifying_again_gives_the_same_bits(folder: Path, tiny_run: Path) -> None:
    certify(best(folder), attack=QUICK, output=str(folder / "certificate"))
    for name in ("radii.csv", "network.safetensors", "samples.safetensors"):
        path = Path("certificate") / name
        assert (folder / path).read_bytes() == (tiny_run / path).read_bytes()


def test_the_split_samples_and_radii_can_be_chosen(folder: Path) -> None:
    before = (folder / "certificate" / "certificate.json").read_bytes()
    summary = certify(best(folder), split="validation", samples=20, radii=[0.3], attack=QUICK)
    assert list(summary) == ["validation/accuracy", "validation/vra_0.3"]
    written = folder / "certificate-validation-20"
    assert len(rows(written)) == claim(written)["summary"]["samples"] == 20
    assert claim(written)["dataset"]["split"] == "validation"
    # A quick look leaves the run's certificate alone.
    assert (folder / "certificate" / "certificate.json").read_bytes() == before
    # Validation samples are part of the training split: their index says which.
    labels = Digits().read("train").labels
    assert [int(row["label"]) for row in rows(written)] == [
        int(labels[int(row["index"])]) for row in rows(written)
    ]
    assert load_file(written / "samples.safetensors")["indices"].tolist() == [
        int(row["index"]) for row in rows(written)
    ]


def test_batches_don_t_matter_but_for_the_last_bits(folder: Path, tiny_run: Path) -> None:
    certify(best(folder), batch_size=7, attack=QUICK, output=str(folder / "certificate"))
    pairs = zip(rows(folder / "certificate"), rows(tiny_run / "certificate"), strict=True)
    for one, other in pairs:
        assert float(one["radius"]) == pytest.approx(float(other["radius"]), abs=2e-6)


def test_float32_speaks_of_another_function_and_certifies_less(folder: Path) -> None:
    node = {"_target_": "robustcert.certifiers.LipschitzCertifier", "arithmetic": "float32"}
    certify(best(folder), certifier=node, attack=QUICK, output=str(folder / "f32"))
    exact, rounded = claim(folder / "certificate"), claim(folder / "f32")
    assert list(exact["claim"]["functions"]) == ["R", "F64"]
    assert list(rounded["claim"]["functions"]) == ["R", "F32"]
    assert rounded["certifier"] == node
    for one, other in zip(rows(folder / "certificate"), rows(folder / "f32"), strict=True):
        assert float.fromhex(other["radius_hex"]) < float.fromhex(one["radius_hex"]) or (
            one["status"] == other["status"] == "abstain"
        )


def test_the_output_is_named_after_what_differs() -> None:
    run, elsewhere = Path("/r/checkpoints"), Path("/elsewhere")
    assert default_output(run / "best.ckpt", "test", None) == Path("/r/certificate")
    assert default_output(run / "last.ckpt", "test", None) == Path("/r/certificate-last")
    assert default_output(run / "best.ckpt", "train", 9) == Path("/r/certificate-train-9")
    assert default_output(elsewhere / "best.ckpt", "test", None) == elsewhere / "certificate"


@pytest.mark.parametrize(
    ("options", "what", "suffix"),
    [
        (
            {"certifier": {"_target_": "robustcert.certifiers.CROWNCertifier"}},
            "LipschitzCertifier, not CROWNCertifier",
            "crown",
        ),
        (
            {"certifier": {**LIPSCHITZ, "arithmetic": "float32"}},
            "certifier.arithmetic float64, not float32",
            "arithmetic-float32",
        ),
        ({"radii": [0.3, 0.1]}, "radii 0.25, 0.5, 1, not 0.1, 0.3", "radii-0.1-0.3"),
        ({"attack": {"samples": 3}}, "16 samples attacked, not 3", "attack-3"),
    ],
)
def test_a_certificate_of_other_settings_is_kept(
    folder: Path, options: dict[str, Any], what: str, suffix: str
) -> None:
    before = {p.name: p.read_bytes() for p in (folder / "certificate").iterdir()}
    output = f"{folder}/certificate"
    said = (
        f"{output} holds a certificate of other settings ({what}): add output={output}-{suffix} to "
        f"keep both, or output={output} to replace it"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        certify(best(folder), **options)
    assert {p.name: p.read_bytes() for p in (folder / "certificate").iterdir()} == before
    assert not (folder / "certificate.partial").exists()


def test_a_certificate_of_the_same_settings_is_written_again(folder: Path) -> None:
    # The defaults, once written out, and one attacked more.
    node = {**LIPSCHITZ, "arithmetic": "float64"}
    attack = {"samples": 17, "steps": 1, "seconds": 20.0}
    certify(best(folder), certifier=node, radii=[1, 0.5, 0.25], attack=attack)
    assert claim(folder / "certificate")["attack"]["samples"] == 17


def test_a_folder_with_something_else_is_not_replaced(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="not replaced"):
        certify(best(folder), output=str(folder), attack=QUICK)
    assert is_certificate(folder / "certificate")
    assert not is_certificate(folder)
    assert (folder / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("place", ["save_file", "draw_vra_curve", "pgd_survivors"])
def test_a_failure_leaves_the_certificate_that_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    module = {
        "save_file": robustcert.certificate.claim,
        "draw_vra_curve": robustcert.runs.classification,
        "pgd_survivors": robustcert.runs.attack,
    }[place]
    monkeypatch.setattr(module, place, full)
    before = {p.name: p.read_bytes() for p in (folder / "certificate").iterdir()}
    names = {p.name for p in folder.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        certify(best(folder), attack={"samples": 2, "steps": 1}, output=str(folder / "certificate"))
    assert {p.name: p.read_bytes() for p in (folder / "certificate").iterdir()} == before
    # The radii are kept beside it, for the same command to go on from.
    assert {p.name for p in folder.iterdir()} == names | {"certificate.partial"}
    assert (folder / "certificate.partial" / "radii.csv").exists()


def test_a_certificate_that_an_attack_breaks_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "certificate")

    def break_all(_network: Any, x: Tensor, _target: Any, radii: list[float], **_: Any) -> Tensor:
        return torch.zeros(len(radii), len(x), dtype=torch.bool)

    monkeypatch.setattr(robustcert.runs.attack, "pgd_survivors", break_all)
    with pytest.raises(RuntimeError, match=r"is broken: PGD changes its prediction"):
        certify(best(folder), attack={"samples": 300})
    assert not (folder / "certificate").exists()


def test_no_attack_is_a_choice(folder: Path) -> None:
    certify(best(folder), attack={"samples": 0}, output=str(folder / "certificate"))
    assert claim(folder / "certificate")["attack"]["accuracy"] == []
    assert (folder / "certificate" / "vra.png").exists()


def test_data_that_moved_are_found_and_other_data_are_refused(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    typed = ("dataset=npz", f"dataset.root={data}", "trainer.max_epochs=1", "certify=false")
    run(tmp_path / "run", *typed, "normalization={mean: [0.5], std: [1.0]}")
    moved = data.rename(tmp_path / "moved.npz")
    checkpoint = best(tmp_path / "run")
    with pytest.raises((ValueError, OSError), match=r"data\.npz"):
        certify(checkpoint, attack=QUICK)
    certify(checkpoint, dataset={"root": str(moved), "checksum": None}, attack=QUICK)
    assert claim(tmp_path / "run" / "certificate")["config"]["dataset"]["root"] == str(moved)
    other = {
        "x_train": np.zeros((30, 1, 4, 4), np.uint8),
        "x_test": np.zeros((12, 1, 4, 4), np.uint8),
    }
    write_npz(moved, **other)
    with pytest.raises(ConfigError, match=r"takes inputs of shape \(3, 6, 5\), got \(1, 4, 4\)"):
        certify(checkpoint, dataset={"root": str(moved)}, attack=QUICK)
    with pytest.raises(ConfigError, match=r"dataset.roof: NPZ takes no 'roof'; did you mean root"):
        certify(checkpoint, dataset={"roof": str(moved)}, attack=QUICK)
