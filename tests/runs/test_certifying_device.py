"""Where a network is certified, and what is said when a device fails."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import compose, run
from lightning.pytorch import Callback, Trainer

from robustcert.certifiers import LipschitzCertifier, UnsoundArithmeticError
from robustcert.errors import BrokenCertificate, ConfigError
from robustcert.runs import certifying_device as room
from robustcert.runs import classification
from robustcert.runs import train as training
from robustcert.runs.certify import certify
from robustcert.runs.certifying_device import chosen_device, failures_named, is_of_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
FEW: dict[str, Any] = {"samples": 20, "batch_size": 10, "attack": {"samples": 4, "steps": 2}}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Devices whose float64 was looked at, and found exact."""
    found: list[torch.device] = []
    monkeypatch.setattr(room, "check_device", found.append)
    return found


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device but the CPU has another float64."""

    def check(device: torch.device) -> None:
        if device.type != "cpu":
            raise UnsoundArithmeticError(f"float64 on {device} is emulated")

    monkeypatch.setattr(room, "check_device", check)


def test_the_training_device_certifies_where_its_float64_is_exact(
    checked: list[torch.device], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert chosen_device(None, CUDA) == CUDA
        assert chosen_device(None, CPU) == CPU
    assert checked == [CUDA, CPU]
    assert caplog.text == ""


def test_the_cpu_certifies_in_place_of_a_device_that_is_inexact_and_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert chosen_device(None, CUDA) == CPU
    said = [record.getMessage() for record in caplog.records]
    assert said == ["certifying on the CPU: device: float64 on cuda:0 is emulated"]
    # What is asked for by name is never replaced.
    with pytest.raises(ConfigError, match="certify_device: float64 on cuda:0 is emulated"):
        chosen_device("cuda:0", CPU, "certify_device")


@pytest.mark.usefixtures("checked")
def test_an_accelerator_that_is_there_certifies_what_was_not_trained_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    assert chosen_device(None) == CUDA
    assert chosen_device("cpu") == CPU
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert chosen_device(None) == CPU


@pytest.mark.parametrize(("typed", "expected"), [((), "cuda:0"), (("certify_device=cpu",), "cpu")])
@pytest.mark.usefixtures("checked")
def test_a_run_is_certified_where_it_was_trained(
    typed: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "certify", lambda *_, **given: asked.append(given))
    training._certify(compose(*typed), Path("run/checkpoints/best.ckpt"), CUDA)
    assert [given["device"] for given in asked] == [expected]


@pytest.mark.slow
def test_a_run_on_an_inexact_device_ends_with_a_certificate_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch)
    original = training.chosen_device
    monkeypatch.setattr(training, "chosen_device", lambda name, _, key: original(name, CUDA, key))
    run(tmp_path / "run", "trainer.max_epochs=1")
    assert '"device": "cpu"' in (tmp_path / "run/certificate/certificate.json").read_text()


# Failures


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered\nmore of it",
        "CUDA driver error: unknown error",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`",
        "HIP error: invalid device function",
        "MPS backend out of memory (MPS allocated: 9.07 GB)",
        "XPU out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_an_accelerator_says_is_named_there_and_nothing_on_the_cpu(said: str) -> None:
    with (
        pytest.raises(
            ConfigError, match=r"^device: cuda:0 failed: .*; or set device=cpu$"
        ) as found,
        failures_named(CUDA),
    ):
        raise RuntimeError(said)
    assert said.splitlines()[0] in str(found.value)
    assert "\n" not in str(found.value)
    assert not is_of_device(RuntimeError(said), CPU)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu!"),
        BrokenCertificate("PGD changes its prediction on cuda: CUDA error: none"),
        UnsoundArithmeticError("float64 on cuda:0 is not that of IEEE 754"),
    ],
)
def test_an_error_of_a_program_is_none_of_the_device(error: RuntimeError) -> None:
    with pytest.raises(type(error)) as found, failures_named(CUDA):
        raise error
    assert found.value is error


def test_memory_that_the_cpu_does_not_have_is_named() -> None:
    with (
        pytest.raises(ConfigError, match=r"device: cpu failed: .*smaller batch_size$"),
        failures_named(CPU),
    ):
        torch.empty(2**50, dtype=torch.float64, device="cpu")


def test_a_device_that_fails_during_attacks_keeps_every_radius(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(tiny_run / "checkpoints" / "best.ckpt")

    def failing(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("80 GiB are not there")

    output = tmp_path / "certificate"
    with monkeypatch.context() as patched:
        patched.setattr(classification, "attack_samples", failing)
        with pytest.raises(ConfigError, match="device: cpu failed: 80 GiB are not there"):
            certify(checkpoint, output=str(output), **FEW)
    assert not output.exists()
    partial = tmp_path / "certificate.partial"
    assert not (partial / "certificate.json").exists()
    radii = (partial / "radii.csv").read_text()
    assert len(radii.splitlines()) == FEW["samples"] + 1
    # The same settings certify no sample again.
    monkeypatch.setattr(LipschitzCertifier, "certify", failing)
    certify(checkpoint, output=str(output), **FEW)
    assert (output / "radii.csv").read_text() == radii
    assert not partial.exists()


@pytest.mark.parametrize("before", [False, True])
def test_a_device_that_fails_in_training_is_named_with_the_way_to_go_on(
    before: bool, tmp_path: Path
) -> None:
    class Failing(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_arguments: Any) -> None:
            if trainer.current_epoch == before:
                torch.empty(2**50, dtype=torch.float64, device="cpu")

    on = r"continue with resume=.*last\.ckpt$" if before else "there is no checkpoint yet$"
    with pytest.raises(ConfigError, match=rf"^trainer: cpu failed: .*loader.batch_size.*; {on}"):
        run(tmp_path / "run", callbacks=[Failing()])
