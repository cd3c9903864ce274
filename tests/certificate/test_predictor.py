"""The deployed predictor: its radii are those of the certificate, for one forward pass."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.configs import build, build_model, names
from helpers.deployed import plain_network, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robustcert
from robustcert.activations import GroupSort
from robustcert.arithmetic import products
from robustcert.attacks import margin_attack
from robustcert.certificate.predictor import Predictor
from robustcert.certificate.restore import parts_of
from robustcert.certifiers import (
    LipschitzCertifier,
    LipSDPCertifier,
    float64_products_are_strict,
)
from robustcert.certifiers.base import certificates
from robustcert.check import UnreadableError
from robustcert.check.activations.table import KINDS
from robustcert.errors import NotCertifiedError, UnsoundNetworkError
from robustcert.layers import NormPool2d
from robustcert.network.activation import Activation
from robustcert.network.branches import Sum
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork, pairwise_bound


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp(activation: str = "maxmin", layer: str = "unconstrained") -> PlainNetwork:
    return plain_network(build_model("mlp", layer, activation), 2, 8, 8)


def listed(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, predictions and radii of a certificate."""
    rows = list(csv.DictReader((folder / "radii.csv").read_text().splitlines()))
    prediction = torch.tensor([int(row["prediction"]) for row in rows])
    radius = torch.tensor([float.fromhex(row["radius_hex"]) for row in rows], dtype=torch.float64)
    return load_file(folder / "samples.safetensors")["inputs"], prediction, radius


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_activation_that_the_checker_knows_is_found_by_its_name(name: str) -> None:
    assert parts_of(name).function.__name__ == name


def test_a_run_is_loaded_and_predicts_what_its_certificate_says(tiny_run: Path) -> None:
    predictor = robustcert.load(tiny_run)
    x, prediction, radius = listed(tiny_run / "certificate")
    found = predictor(x)
    assert torch.equal(found.label, prediction)
    torch.testing.assert_close(found.radius, radius, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.abstained, found.radius == 0)
    strict = robustcert.load(tiny_run / "certificate", least_radius=0.3)(x)
    assert torch.equal(strict.abstained, radius <= 0.3)
    assert 0 < strict.abstained.sum() < len(x)


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("activation", names("activation"))
def test_the_error_known_beforehand_covers_the_one_that_is_made(
    activation: str, arithmetic: Any
) -> None:
    network = mlp(activation)
    predictor = Predictor(network, pairwise_bound(network), dtype=arithmetic)
    for scale in (0.0, 1e-6, 1.0, 100.0):
        x = (scale * torch.rand(16, 2, 8, 8)).to(predictor.dtype)
        state = predictor.evaluate(x)
        # What is bounded at each input is bounded beforehand for the same arithmetic, and float32
        # really differs from float64 by no more than the sum of both.
        wide = Predictor(network, predictor.pairwise).evaluate(x.double())
        apart = (state.output.double() - wide.output).norm(dim=1)
        assert (apart <= state.centre + wide.centre).all()
        if arithmetic == "float32" and scale == 1.0:
            assert apart.max() > 0


@pytest.mark.parametrize("activation", names("activation"))
def test_every_activation_is_restored_with_no_less_than_its_error(
    activation: str, tmp_path: Path
) -> None:
    network = mlp(activation)
    folder = write_folder(tmp_path / "folder", network)
    function = build("activation", activation)(8).fold().function.__name__
    if function not in KINDS:
        with pytest.raises(UnreadableError, match=f"unknown activation '{function}', of which"):
            robustcert.load(folder)
        return
    restored = robustcert.load(folder).network
    x = torch.rand(20, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(restored(x), network(x))
    for own, other in zip(network.operations, restored.operations, strict=True):
        if isinstance(own, Activation):
            assert isinstance(other, Activation)
            assert other.function is own.function
            assert other.relaxation is own.relaxation
            assert other.jacobian is own.jacobian
            assert other.lipschitz >= own.lipschitz
            if own.jacobian is not None:
                steepest = own.jacobian_lipschitz
                assert steepest * (1 - 1e-12) <= other.jacobian_lipschitz <= steepest * (1 + 1e-6)
            assert other.error >= own.error
            assert other.error[1] >= own.error[1]


@pytest.mark.parametrize("layer", ["aol", "bro", "sandwich", "sll"])
def test_every_kind_of_layer_is_restored(layer: str, tmp_path: Path) -> None:
    model = build_model("mlp" if layer == "sandwich" else "convnet", layer, "maxmin")
    network = plain_network(model, 2, 8, 8)
    predictor = robustcert.load(write_folder(tmp_path / "folder", network))
    assert predictor.network.to(torch.device("cpu"), torch.float32).digest() == network.digest()
    x, prediction, radius = listed(tmp_path / "folder")
    assert torch.equal(predictor(x).label, prediction)
    torch.testing.assert_close(predictor(x).radius, radius, rtol=1e-9, atol=1e-9)


def test_sums_and_pools_are_restored(tmp_path: Path) -> None:
    pool = plain_network(nn.Sequential(NormPool2d(2), nn.Flatten()), 2, 4, 4).operations
    branch = (Dense(torch.randn(8, 8)), *plain_network(GroupSort(8), 8).operations)
    network = PlainNetwork((*pool, Sum(((), branch)), Dense(torch.randn(3, 8))), (2, 4, 4))
    predictor = robustcert.load(write_folder(tmp_path / "folder", network))
    x, _, radius = listed(tmp_path / "folder")
    torch.testing.assert_close(predictor(x).radius, radius, rtol=1e-9, atol=1e-9)


def test_semidefinite_constants_are_used_once_they_are_proved(tmp_path: Path) -> None:
    network = mlp("relu")
    folder = write_folder(tmp_path / "folder", network, LipSDPCertifier(iterations=5))
    x, _, radius = listed(folder)
    found = robustcert.load(folder)(x).radius
    torch.testing.assert_close(found, radius, rtol=1e-9, atol=1e-9)
    first_order = LipschitzCertifier().certify(network, x.float() / 255).radius
    assert (found > 1.01 * first_order).any()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_attack_inside_a_radius_changes_the_label(dtype: Any) -> None:
    network = mlp()
    predictor = Predictor(network, pairwise_bound(network), dtype=dtype)
    x = torch.rand(64, 2, 8, 8)
    found = predictor(x)
    rows = found.radius > 0
    assert rows.sum() > 20
    label, radius = found.label[rows], found.radius[rows] * (1 - 1e-6)
    centre = x[rows].double()
    least, delta = margin_attack(network, centre, label, radius, steps=10)
    assert (least > 0).all()
    assert (delta.flatten(1).norm(dim=1) > 0.9 * radius).all()
    assert torch.equal(predictor(centre + delta).label, label)


def test_what_cannot_be_certified_is_abstained_from() -> None:
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    predictor = Predictor(network, pairwise_bound(network))
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [torch.nan, 0.0], [torch.inf, 0.0], [1e300, 0.0]])
    found = predictor(x.double())
    assert found.abstained.tolist() == [False, True, True, True, True]
    assert (found.radius[1:] == 0).all()
    assert 0.7071 < found.radius[0] < 0.5**0.5
    assert len(predictor(x[:0]).label) == 0


def test_the_radius_is_that_of_the_certifiers_formula() -> None:
    network = mlp()
    predictor = Predictor(network, pairwise_bound(network))
    x = torch.rand(40, 2, 8, 8, dtype=torch.float64)
    found, state = predictor(x), predictor.evaluate(x)
    usual = certificates(
        state, x, x, lambda label, gap, drift: gap / (predictor.pairwise[label] + drift)
    )
    assert torch.equal(found.label, usual.prediction)
    assert (found.radius <= usual.radius).all()
    torch.testing.assert_close(found.radius, usual.radius, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arithmetic_that_is_not_strict_is_switched_for_the_call(
    dtype: Literal["float32", "float64"],
) -> None:
    network = mlp()
    predictor = Predictor(network, pairwise_bound(network), dtype=dtype)
    x = torch.rand(8, 2, 8, 8)
    expected = predictor(x)
    assert float64_products_are_strict()
    torch.set_flush_denormal(True)
    try:
        assert not float64_products_are_strict()
        assert torch.equal(predictor(x).radius, expected.radius)
    finally:
        torch.set_flush_denormal(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not float64_products_are_strict()
        assert torch.equal(predictor(x).radius, expected.radius)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(predictor(x).radius, expected.radius)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float32_products_are_out_of_reach_of_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = mlp()
    predictor = Predictor(network, pairwise_bound(network), dtype="float32")
    heeded, product = [], products._dense

    def spy(*arguments: Any) -> torch.Tensor:
        heeded.append(torch.backends.mkldnn.enabled)
        return product(*arguments)

    monkeypatch.setattr(products, "_dense", spy)
    predictor(torch.rand(8, 2, 8, 8))
    assert heeded
    assert not any(heeded)


def test_inputs_are_bytes_or_floats_of_the_networks_shape() -> None:
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    predictor = Predictor(network, pairwise_bound(network))
    pixels = torch.tensor([[255, 51]], dtype=torch.uint8)
    assert torch.equal(predictor(pixels).radius, predictor(torch.tensor([[1.0, 0.2]])).radius)
    for wrong in (torch.zeros(3), torch.zeros(()), torch.zeros(1, 3), torch.zeros(1, 2, 1)):
        with pytest.raises(ValueError, match=r"expected inputs of shape \(N, 2\)"):
            predictor(wrong)
    with pytest.raises(ValueError, match=r"uint8.* or floating point"):
        predictor(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="least_radius"):
        Predictor(network, pairwise_bound(network), least_radius=-1.0)


@pytest.fixture
def halves() -> Predictor:
    """A predictor whose radius of x is half of sqrt(2) times the distance of its two entries."""
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    return Predictor(network, pairwise_bound(network), least_radius=0.1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.dtype(">f8")])
def test_arrays_are_answered_with_arrays(halves: Predictor, dtype: Any) -> None:
    x = np.array([[1, 0], [0, 1], [0, 0], [0, 1]]).astype(dtype)[::-1]
    x.setflags(write=False)
    expected = halves(torch.tensor(x.astype(np.dtype(dtype).newbyteorder("="))))
    for got, tensor in zip(halves(x), expected, strict=True):
        assert type(got) is np.ndarray
        assert got.tolist() == tensor.tolist()
    assert halves(x).label.tolist() == [1, 0, 1, 0]


def test_one_sample_is_answered_with_one_answer(halves: Predictor) -> None:
    batch = torch.tensor([[0.25, 1.0], [0.5, 0.5]])
    for one, whole in zip(batch, zip(*halves(batch), strict=True), strict=True):
        assert [found.shape for found in halves(one)] == [()] * 3
        assert list(halves(one)) == list(whole)
        assert list(halves(one.numpy())) == [found.item() for found in whole]
    label, radius, abstained = halves(np.array([0.25, 1.0]))
    assert (label, abstained) == (1, False)
    assert 0.53 < radius < 0.75 / 2**0.5


def test_arrays_that_are_no_numbers_are_refused(halves: Predictor) -> None:
    for wrong in (np.array([["a", "b"]]), np.array([[1, 2]]), np.array([[1 + 1j, 0]])):
        with pytest.raises(ValueError, match=r"uint8.* or floating point"):
            halves(wrong)
    with pytest.raises(ValueError, match=r"expected inputs of shape \(N, 2\)"):
        halves(np.zeros((3, 2, 1)))


def test_predictors_and_what_they_say_are_readable(halves: Predictor) -> None:
    digest = halves.digest[:12]
    assert repr(halves) == (
        "Predictor(inputs of shape (2), 2 classes, l2 radii of R and F64 in input units, "
        f"abstains up to 0.1, network {digest})"
    )
    x = torch.tensor([[0.25, 1.0], [0.5, 0.5], [0.5, 0.4375]])
    # Half of 0.75 sqrt(2) is 0.53033: what is shown is never above the radius.
    assert repr(halves(x[0])) == "Prediction(label=1, radius=0.5303, abstained=False)"
    assert repr(halves(x.numpy())) == (
        "Prediction(3 samples, 2 with a radius: median 0.04419, largest 0.5303; 2 abstained from)"
    )
    assert repr(halves(x[1:2])) == "Prediction(1 samples, 0 with a radius; 1 abstained from)"
    found = robustcert.certify(nn.Linear(2, 2), x)
    assert repr(found).startswith("Certificates(3 samples, 3 with a radius: median ")


def test_an_input_that_float32_rounds_is_charged_for_it() -> None:
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    predictor = Predictor(network, pairwise_bound(network), dtype="float32")
    x = torch.tensor([[1.0 + 2.0**-25, 0.0]], dtype=torch.float64)
    assert predictor(x).radius < predictor(x.float()).radius


def test_samples_need_not_be_shipped(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("certificate.json", "network.safetensors"):
        shutil.copy(tiny_run / "certificate" / name, tmp_path / name)
    assert robustcert.load(tmp_path)(torch.rand(1, 1, 8, 8)).radius.shape == (1,)


def _forge(what: str, claim: Any, tensors: dict[str, Tensor]) -> None:
    if what == "constants":
        rows = claim["pairwise"]
        claim["pairwise"] = [[(float.fromhex(k) / 2).hex() for k in row] for row in rows]
    elif what == "bound":
        claim["bounds"][-1]["bound"] = (0.5).hex()
    else:
        next(iter(tensors.values())).view(-1)[0] += 1


@pytest.mark.parametrize("what", ["constants", "bound", "weight"])
def test_a_forged_folder_is_not_loaded(tiny_run: Path, tmp_path: Path, what: str) -> None:
    folder = shutil.copytree(tiny_run / "certificate", tmp_path / "folder")
    claim = json.loads((folder / "certificate.json").read_text())
    tensors = load_file(folder / "network.safetensors")
    _forge(what, claim, tensors)
    (folder / "certificate.json").write_text(json.dumps(claim))
    save_file(tensors, folder / "network.safetensors")
    with pytest.raises(UnsoundNetworkError, match="not proved, so not loaded"):
        robustcert.load(folder)


def test_a_folder_without_a_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotCertifiedError, match=r"certificate\.json"):
        robustcert.load(tmp_path)
