"""The verified checker: it proves what the other one proves, and no forged folder passes."""

import io
import math
import shutil
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.soundness.forge_folders import DENSE_KINDS
from benchmarks.soundness.forgeries import (
    EVERYWHERE,
    Corruption,
    certify,
    certify_kind,
    forge,
    per_tensor,
)
from robustcert.check import UnreadableError, check
from robustcert.check import verified as verified_module
from robustcert.check.command import main
from robustcert.check.network.operation import Operation
from robustcert.check.report import Report
from robustcert.check.verified_text import FINE, write_problem
from robustcert.network.linear import Dense, Flatten
from robustcert.network.network import PlainNetwork

PROOFS = Path(__file__).parents[2] / "proofs"


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, built if it is not."""
    built = verified_module.PROGRAM
    if not built.is_file():
        if shutil.which("coqc") is None or shutil.which("ocamlfind") is None:
            pytest.skip("Coq or OCaml is not installed: make verified-checker")
        subprocess.run([PROOFS / "verified.sh"], check=True)
    return built


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("honest")
    return {kind: certify_kind(root, kind) for kind in DENSE_KINDS}


def by_program(folder: Path) -> Report:
    data = [file for file in [folder.with_name("data.npz")] if file.exists()]
    return check(folder, data=data, verified_until=time.monotonic() + 60)


def verdict(folder: Path) -> bool:
    try:
        return by_program(folder).verified
    except UnreadableError:
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("kind", DENSE_KINDS)
def test_honest_folders_are_verified(honest: dict[str, Path], kind: str) -> None:
    report = by_program(honest[kind])
    assert report.mismatches == report.uncovered == []
    assert main([str(honest[kind]), "--verified"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("program")
def test_float32_claims_are_verified_on_the_coarse_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = PlainNetwork((Flatten(), Dense(torch.randn(3, 16))), (1, 4, 4))
    assert verdict(certify(tmp_path / "float32", network, "float32"))


CASES = [
    *((kind, name) for kind in ("relu", "maxmin") for name in EVERYWHERE),
    *((kind, name) for kind in DENSE_KINDS for name, _ in per_tensor(kind)),
]


@pytest.mark.slow
@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_no_forged_folder_is_verified(
    honest: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    corruption: Corruption = EVERYWHERE.get(name) or dict(per_tensor(kind))[name]
    assert not verdict(forge(honest, tmp_path, kind, corruption))


def dense(weight: np.ndarray, bias: np.ndarray | None = None) -> Operation:
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    sizes = ((weight.shape[1],), (weight.shape[0],))
    return Operation("dense", "layer", "0", {}, tensors, *sizes)


def test_the_text_holds_the_weights_exactly() -> None:
    weight = np.array([[0.1, -(2.0**-70)], [3.0, 0.0]])
    file = io.StringIO()
    write_problem(file, [dense(weight)], [3.1], np.eye(2), np.empty((0, 2)), [], coarse=False)
    words = file.getvalue().split()
    start = words.index("dense") + 3
    den, *entries = (int(word) for word in words[start : start + 5])
    assert [Fraction(entry, den) for entry in entries] == [Fraction(w) for w in weight.ravel()]
    assert words[words.index("precisions") + 1] == str(len(FINE))
    assert words[-3:] == ["rows", "0", "end"]


def test_the_witness_obeys_the_residual_lemma() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32).astype(np.float64)
    bound = math.nextafter(float(np.linalg.norm(weight, 2)) * (1 + 1e-9), math.inf)
    file = io.StringIO()
    write_problem(file, [dense(weight)], [bound], np.eye(3), np.empty((0, 4)), [], coarse=False)
    words = file.getvalue().split()
    at = words.index("dense") + 3
    den = int(words[at])
    whole = np.array([int(word) for word in words[at + 1 : at + 13]], dtype=object).reshape(3, 4)
    at = words.index("witness")
    divisor, t, error, limit = (int(word) for word in words[at + 1 : at + 5])
    rows = (whole + divisor // 2) // divisor
    factor = np.zeros((3, 3), dtype=object)
    at += 5
    for i in range(3):
        factor[i, : i + 1] = [int(word) for word in words[at + 1 : at + 2 + i]]
        at += 2 + i
    residual = np.diag([t] * 3).astype(object) - rows @ rows.T - factor @ factor.T
    assert (residual**2).sum() <= error**2
    assert t + error <= limit**2
    cut = math.isqrt(int(((whole - divisor * rows) ** 2).sum())) + 1
    assert divisor * limit + cut <= Fraction(bound) * den + 1


def test_another_class_of_network_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"operation \d+ .*convolution.*without --verified"):
        by_program(certify_kind(tmp_path, "convnet"))
    with pytest.raises(UnreadableError, match="smooth_maxmin is not known"):
        by_program(certify_kind(tmp_path, "smooth"))


def test_a_missing_program_is_answered_with_the_command(
    honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified_module, "PROGRAM", tmp_path / "verified-checker")
    with pytest.raises(UnreadableError, match="make verified-checker"):
        by_program(honest["maxmin"])


@pytest.mark.parametrize("said", ["", "verified 23", "verified 24\nrefused"])
def test_an_answer_that_is_no_answer_verifies_nothing(
    honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    script = tmp_path / "verified-checker"
    script.write_text(f"#!/bin/sh\nprintf '%s\\n' '{said}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(verified_module, "PROGRAM", script)
    with pytest.raises(UnreadableError, match="without an answer"):
        by_program(honest["maxmin"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "",
        "robustcert-verified 2",
        "robustcert-verified 1\ninputs -1",
        "robustcert-verified 1 inputs 1x",
    ],
)
def test_the_program_refuses_other_text(program: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "problem.txt").write_text(text)
    done = subprocess.run([program, tmp_path / "problem.txt"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
