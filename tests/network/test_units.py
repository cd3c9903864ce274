"""One meaning of samples as numbers, whoever certifies them."""

from typing import Any

import pytest
import torch
from helpers.configs import build, names
from helpers.deployed import plain_network, write_folder
from torch import Tensor, nn

import robustcert
from robustcert.activations import GroupSort, SmoothMaxMin
from robustcert.attacks import cross_check, ddn, margin_attack, pgd_survivors
from robustcert.certificate.predictor import Predictor
from robustcert.certifiers import LipschitzCertifier, SmoothingCertifier, certify
from robustcert.check import INPUTS
from robustcert.data import to_unit
from robustcert.network.activation import Activation
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork
from robustcert.network.units import in_units

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> PlainNetwork:
    return plain_network(
        nn.Sequential(nn.Linear(4, 8), SmoothMaxMin(8), nn.Linear(8, 6), GroupSort(6)), 4
    )


def certifier(name: str) -> Any:
    fewer = {
        "smoothing": {"n0": 10, "n": 100},
        "global_robustness": {"method": "lipschitz", "tries": 10},
    }
    return build("certifier", name, **fewer.get(name, {}))


def test_a_byte_stands_for_the_float32_nearest_to_a_share_of_255() -> None:
    exact = torch.arange(256, dtype=torch.float64) / 255
    assert torch.equal(in_units(EVERY_BYTE), exact.float())
    assert torch.equal(to_unit(EVERY_BYTE), exact.float())


@pytest.mark.parametrize("name", names("certifier"))
def test_every_certifier_takes_bytes_for_what_they_stand_for(name: str) -> None:
    x = torch.randint(0, 256, (3, 4), dtype=torch.uint8)
    found, meant = (certifier(name).certify(network_, x_) for network_, x_ in pair(x))
    assert torch.equal(found.radius, meant.radius)
    assert torch.equal(found.prediction, meant.prediction)


def pair(x: Tensor) -> list[tuple[PlainNetwork, Tensor]]:
    net = network()
    return [(net, x), (net, (x.double() / 255).float())]


def test_certify_and_the_predictor_take_bytes_for_the_same() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    x = torch.randint(0, 256, (20, 4), dtype=torch.uint8)
    found = certify(module, x)
    assert torch.equal(found.radius, certify(module, to_unit(x)).radius)
    net = network()
    predictor = Predictor(net, LipschitzCertifier().pairwise_bound(net))
    assert torch.equal(predictor(x).radius, predictor(to_unit(x)).radius)
    radius = LipschitzCertifier().certify(net, x).radius
    torch.testing.assert_close(predictor(x).radius, radius, rtol=1e-9, atol=1e-9)


# What a predictor takes beside tensors with a batch.
OF_A_PREDICTOR = ("an array", "no batch")
REFUSED: dict[str, tuple[Any, str]] = {
    "complex": (torch.zeros(2, 4, dtype=torch.complex64), "complex64.*real"),
    "bool": (torch.zeros(2, 4, dtype=torch.bool), "torch.bool"),
    "int64": (torch.zeros(2, 4, dtype=torch.int64), "int64.*uint8"),
    "int8": (torch.zeros(2, 4, dtype=torch.int8), "int8.*uint8"),
    "uint16": (torch.zeros(2, 4, dtype=torch.uint16), "uint16"),
    "sparse": (torch.eye(4).to_sparse(), "to_dense"),
    "an array": (torch.zeros(2, 4).numpy(), "ndarray.*torch.from_numpy"),
    "another shape": (torch.zeros(2, 5), r"expected inputs of shape \(N, 4\), got \(2, 5\)"),
    "no batch": (torch.zeros(4), r"expected inputs of shape \(N, 4\), got \(4,\)"),
    "a scalar": (torch.tensor(0.0), r"expected inputs of shape \(N, 4\), got \(\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_stands_for_no_numbers_is_refused_everywhere(kind: str) -> None:
    x, message = REFUSED[kind]
    net = network()
    predictor = Predictor(net, LipschitzCertifier().pairwise_bound(net))
    claims = [certifier(name).certify for name in names("certifier")]
    for claim in (*claims, certify):
        with pytest.raises(ValueError, match=message):
            claim(net, x)
    if kind not in OF_A_PREDICTOR:
        with pytest.raises(ValueError, match=message):
            predictor(x)


@pytest.mark.parametrize("name", names("certifier"))
def test_other_layouts_and_precisions_of_the_same_numbers_give_the_same_radii(name: str) -> None:
    net, x = network(), torch.rand(2, 4).bfloat16().float()
    expected = certifier(name).certify(net, x).radius
    same = {
        "another order in memory": x.t().contiguous().t(),
        "part of a graph": x.clone().requires_grad_(),
        "half precision": x.bfloat16(),
        "a parameter": nn.Parameter(x),
    }
    for kind, other in same.items():
        found = certifier(name).certify(net, other)
        assert torch.equal(found.radius, expected), kind
        assert not found.radius.requires_grad
    assert len(certifier(name).certify(net, x[:0]).radius) == 0


def kinks(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


@pytest.mark.parametrize("name", names("certifier"))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_never_certified(name: str, value: float) -> None:
    # NaN is not above 0, so that its kink gives 0: every logit is finite.
    operations = (
        Activation(kinks, {}, lipschitz=1.0),
        Dense(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([1.0, 0.0])),
    )
    x = torch.tensor([[value, 0.5], [0.5, value], [0.5, 0.5]])
    if name in ("quadratic", "crown", "local_lipsdp", "lipsdp", "eclipse_fast"):
        operations = (Dense(torch.eye(2)), *plain_network(nn.Sequential(nn.ReLU()), 2).operations)
    found = certifier(name).certify(PlainNetwork(operations, (2,)), x)
    assert (found.radius[:2] == 0).all()


def test_attacks_take_bytes_for_what_they_stand_for() -> None:
    net = plain_network(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    x = torch.randint(0, 256, (6, 4), dtype=torch.uint8)
    numbers = to_unit(x)
    found = LipschitzCertifier().certify(net, x)
    label, radius = found.prediction, found.radius
    options: dict[str, Any] = {"steps": 5}
    assert torch.equal(ddn(net, x, label, **options)[0], ddn(net, numbers, label, **options)[0])
    near, far = (margin_attack(net, x_, label, radius, **options)[0] for x_ in (x, numbers))
    assert torch.equal(near, far)
    near, far = (pgd_survivors(net, x_, label, [0.1, 0.5], **options) for x_ in (x, numbers))
    assert torch.equal(near, far)
    assert cross_check(net, x, label, radius, ddn_restarts=1)["broken"] == 0


def test_files_say_what_a_byte_stands_for(tmp_path: Any) -> None:
    net = network()
    folder = write_folder(tmp_path / "folder", net, SmoothingCertifier(n0=10, n=100))
    assert f'"{INPUTS["images"]}"' in (folder / "certificate.json").read_text()
    pytest.importorskip("onnx")
    from robustcert.export import to_onnx

    predictor = Predictor(net, LipschitzCertifier().pairwise_bound(net))
    assert to_onnx(predictor, tmp_path / "model.onnx")["robustcert.inputs"] == INPUTS["images"]
    assert robustcert.__version__
