"""Devices that bounds are computed on: what they have to show, and who names them."""

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stand_in import STAND_IN, StandIn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robustcert import layers
from robustcert.activations import ReLU
from robustcert.arithmetic import products
from robustcert.certificate.samples import read_radii
from robustcert.certifiers import UnsoundArithmeticError, arithmetic, bounds_on
from robustcert.certifiers.arithmetic import check_bounds_arithmetic
from robustcert.models import MLP, LayerFamily
from robustcert.network.bounds import operation_bound
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork
from robustcert.network.shared_bounds import leaves, share_bounds
from robustcert.norms import computed_on, dense_norm_bound
from robustcert.runs import certify
from robustcert.training.validation import ValidationCertifier

CPU = torch.device("cpu")


class _Changed(TorchDispatchMode):
    """An arithmetic in which large results of an operation are changed."""

    def __init__(self, operation: str, least: int) -> None:
        super().__init__()
        self.operation, self.least = operation, least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        changed = func.__name__.startswith(self.operation) and found.numel() >= self.least
        return found * (1 + 2.0**-52) if changed else found


@pytest.fixture(autouse=True)
def nothing_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_tested", {})


def test_float64_of_this_machine_is_good_for_bounds() -> None:
    check_bounds_arithmetic(CPU)


@pytest.mark.parametrize(("operation", "least"), [("bmm.", 2**14), ("linalg_vector_norm.", 1)])
def test_an_arithmetic_that_is_inexact_where_bounds_need_it_is_refused(
    operation: str, least: int
) -> None:
    with pytest.raises(UnsoundArithmeticError, match="on cpu"), _Changed(operation, least):
        check_bounds_arithmetic(CPU)


def test_a_variable_that_asks_for_emulation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "0")
    check_bounds_arithmetic(CPU)
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    with pytest.raises(UnsoundArithmeticError, match="CUBLAS_EMULATE_DOUBLE_PRECISION=1 asks"):
        check_bounds_arithmetic(CPU)


def test_the_cpu_computes_for_a_device_without_the_arithmetic(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arithmetic._warn_once.cache_clear()
    weight = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with bounds_on(torch.device("meta")):
                assert dense_norm_bound(weight) == dense_norm_bound(weight.clone())
    (line,) = caplog.messages
    assert line.startswith("meta proves no bounds, and the CPU does: ")


def folded(seed: int) -> PlainNetwork:
    torch.manual_seed(seed)
    family = LayerFamily(layers.CholeskyLinear, layers.AOLConv2d)
    model = MLP((1, 6, 6), 3, width=20, depth=2, layer=family, activation=ReLU)
    return fold_network(model.eval(), (1, 6, 6))


def test_validation_computes_bounds_where_the_samples_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arithmetic, "_proves", lambda device: True)
    validation = ValidationCertifier()
    validation.prepare(folded(0), CPU)
    expected = validation.pairwise
    with StandIn() as device:
        validation.prepare(folded(0), STAND_IN)
        found = validation.pairwise
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-13, atol=0)
    assert device.operations.count("linalg_cholesky_ex") >= 2


def test_a_share_of_bounds_is_proved_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_proves", lambda device: True)
    network = folded(1).owned()
    with StandIn() as device, bounds_on(STAND_IN):
        share_bounds(network, 0, 1, lambda own: [own])
    assert "linalg_cholesky_ex" in device.operations
    # They are remembered, so that the device is not needed any more.
    known = [operation_bound(*part) for part in leaves(network.backbone, network.input_shape)]
    fresh = folded(1).owned()
    expected = [operation_bound(*part) for part in leaves(fresh.backbone, fresh.input_shape)]
    assert known == pytest.approx(expected, rel=1e-13, abs=0)


def test_certification_computes_bounds_on_its_device(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 4, "attack": {"samples": 0}, "device": "cpu"}
    certify.certify(str(tiny_run), output=str(tmp_path / "cpu"), **options)
    asked = []

    def elsewhere(device: torch.device) -> AbstractContextManager[object]:
        asked.append(device)
        return computed_on(STAND_IN)

    monkeypatch.setattr(certify, "bounds_on", elsewhere)
    with StandIn() as device:
        certify.certify(str(tiny_run), output=str(tmp_path / "there"), **options)
    assert asked == [CPU]
    assert "linalg_cholesky_ex" in device.operations
    home, there = (read_radii(tmp_path / name / "radii.csv") for name in ("cpu", "there"))
    assert torch.equal(there.prediction, home.prediction)
    torch.testing.assert_close(there.radius, home.radius, rtol=1e-12, atol=0)
