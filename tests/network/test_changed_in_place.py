"""A network whose constants are changed in place is certified as it is now, or refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.configs import build, names
from torch import Tensor, nn

from robustcert.activations import LinearSpline, NActivation, ReLU, Softplus
from robustcert.certificate.predictor import Predictor
from robustcert.certifiers import Certificates, LipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation, Slopes
from robustcert.network.blocks import ResidualBlock
from robustcert.network.bounds import operation_bound
from robustcert.network.branches import Sum
from robustcert.network.fold import fold, fold_network
from robustcert.network.forward_error import forward_error
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork, pairwise_bound

SMALL: dict[str, dict[str, Any]] = {
    "smoothing": {"n": 50, "n0": 10},
    "global_robustness": {"method": "symbolic", "tries": 5},
    "lipsdp": {"iterations": 1},
    "local_lipsdp": {"rounds": 1, "iterations": 0},
}


def through_numpy(tensor: Tensor) -> None:
    tensor.numpy()[...] *= 1.5


# Torch counts the changes of the first kind only.
WAYS: dict[str, Callable[[Tensor], object]] = {
    "mul_": lambda tensor: tensor.mul_(1.5),
    "data": lambda tensor: tensor.data.mul_(1.5),
    "numpy": through_numpy,
    "one entry": lambda tensor: tensor.data.view(-1)[-1:].add_(1e-3),
}


def dense() -> PlainNetwork:
    torch.manual_seed(0)
    layers = (nn.Linear(3, 4), Softplus(4), nn.Linear(4, 4), Softplus(4), nn.Linear(4, 3))
    return fold_network(nn.Sequential(*layers), (3,))


def quadrics() -> PlainNetwork:
    torch.manual_seed(0)
    model = build("model", "subspaces", input_shape=(4,), num_classes=3, per_class=2, rank=2)
    return PlainNetwork((Dense(0.5 * torch.randn(4, 3)), *fold(model)), (3,))


NETWORKS = {"dense": dense, "quadrics": quadrics}
CERTIFIERS = [
    *(("dense", name) for name in names("certifier") if name != "quadratic"),
    *(("quadrics", "quadratic"),),
]


def anew(network: PlainNetwork) -> PlainNetwork:
    """The same network from new objects, of which nothing has been remembered."""
    operations = tuple(op.to(torch.device("cpu")) for op in network.operations)
    return PlainNetwork(operations, network.input_shape)


def statements(certifier: str, network: PlainNetwork, x: Tensor) -> list[Tensor]:
    found = build("certifier", certifier, **SMALL.get(certifier, {}))
    result: Certificates = found.certify(network, x)
    claim = found.claim(network)
    tensors = [*(claim.multipliers or {}).values()]
    tensors += [] if claim.pairwise is None else [claim.pairwise]
    return [result.radius, result.margin, result.error, *tensors]


@pytest.mark.parametrize(("kind", "certifier"), CERTIFIERS)
def test_radii_are_those_of_the_network_as_it_is(kind: str, certifier: str) -> None:
    network = NETWORKS[kind]()
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    before = statements(certifier, network, x)
    for change in WAYS.values():
        for operation in network.operations:
            if not isinstance(operation, Activation):
                for tensor in operation.tensors().values():
                    change(tensor)
        found, fresh = (statements(certifier, n, x) for n in (network, anew(network)))
        assert all(map(torch.equal, found, fresh))
        assert not all(map(torch.equal, found, before))
        before = found


@pytest.mark.parametrize("way", WAYS)
def test_bounds_and_errors_of_operations_are_those_of_now(way: str) -> None:
    inner = Dense(torch.eye(2))
    block = ResidualBlock(0.1 * torch.eye(2), torch.ones(2), nn_relu())
    network = PlainNetwork((Sum(((inner,), ())), block, Dense(torch.eye(2))), (2,))
    x = torch.ones(1, 2, dtype=torch.float64)
    before = pairwise_bound(network), forward_error(network, x).centre
    WAYS[way](inner.weight)
    WAYS[way](block.weight)
    after = pairwise_bound(network), forward_error(network, x).centre
    fresh = anew(network)
    expected = pairwise_bound(fresh), forward_error(fresh, x).centre
    assert all(map(torch.equal, after, expected))
    assert not any(map(torch.equal, after, before))


def nn_relu() -> Activation:
    return Activation(torch.relu, {}, lipschitz=1.0, slopes=Slopes(0.0, 1.0))


@pytest.mark.parametrize("way", WAYS)
def test_a_bound_that_is_handed_out_may_be_changed(way: str) -> None:
    network, x = dense(), torch.ones(1, 3)
    for name in ("lipschitz", "lipsdp", "eclipse_fast"):
        found = build("certifier", name, **SMALL.get(name, {}))
        before = found.pairwise_bound(network), found.certify(network, x).radius
        WAYS[way](found.pairwise_bound(network))
        after = found.pairwise_bound(network), found.certify(network, x).radius
        assert all(map(torch.equal, before, after))


# What an activation states is of the constants that it had.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first_seen", ["before", "after"])
def test_a_claim_about_other_constants_is_refused(way: str, first_seen: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2), LinearSpline(2), nn.Linear(2, 2))
    network, x = fold_network(module, (2,)), torch.ones(1, 2)
    spline = network.operations[1]
    if first_seen == "before":
        LipschitzCertifier().certify(network, x)
    WAYS[way](spline.tensors()["slopes"])
    for state in (network, network.to(torch.device("cpu"), torch.float64), renamed(network)):
        with pytest.raises(UnsoundNetworkError, match=r"1: .*linear_spline.* changed"):
            LipschitzCertifier().certify(state, x)
        with pytest.raises(UnsoundNetworkError, match="changed"):
            operation_bound(state.operations[1], (2,))


def renamed(network: PlainNetwork) -> PlainNetwork:
    return replace(network, operations=tuple(replace(op) for op in network.operations))


def test_claims_of_nested_activations_are_looked_at() -> None:
    softplus = Softplus(2, temperature=1.0).fold()
    network = PlainNetwork((Sum(((ResidualBlock(torch.eye(2), torch.ones(2), softplus),),)),), (2,))
    pairwise_bound(network)
    softplus.tensors()["temperature"].mul_(0.5)
    with pytest.raises(UnsoundNetworkError, match="softplus"):
        pairwise_bound(network)


def test_constants_that_are_stated_anew_are_as_good() -> None:
    old = NActivation(2).fold()
    corners = {"corners": torch.tensor([[0.0, 0.0], [1.0, 2.0]])}
    new = replace(old, constants=corners, error=(1.1, 4.5), claimed=None)
    assert operation_bound(new, (2,)) == 1.0


# A predictor's network is its own.


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("way", WAYS)
def test_a_predictor_keeps_its_own_network_and_bounds(way: str, dtype: str) -> None:
    network = dense()
    if dtype == "float64":
        network = network.to(torch.device("cpu"), torch.float64)
    pairwise, x = pairwise_bound(network), torch.ones(1, 3)
    predictor = Predictor(network, pairwise, dtype=dtype)
    before = predictor(x), predictor.evaluate(x.to(predictor.dtype)).output
    for net in (network, predictor.network):
        for operation in net.operations:
            for tensor in operation.tensors().values():
                WAYS[way](tensor)
    WAYS[way](pairwise)
    WAYS[way](predictor.pairwise)
    after = predictor(x), predictor.evaluate(x.to(predictor.dtype)).output
    assert torch.equal(before[0].radius, after[0].radius)
    assert torch.equal(before[1], after[1])


def relu(x: Tensor) -> Tensor:
    return 3 * x.relu()


@pytest.mark.parametrize("certifier", ["lipschitz", "crown", "local_lipsdp", "second_order"])
def test_bounds_of_another_function_of_the_same_name_are_refused(certifier: str) -> None:
    network = PlainNetwork((replace(ReLU(2).fold(), function=relu), Dense(torch.eye(2))), (2,))
    found = build("certifier", certifier, **SMALL.get(certifier, {}))
    with pytest.raises(UnsoundNetworkError, match="the function relu was replaced after"):
        found.certify(network, torch.rand(1, 2))


@pytest.mark.parametrize("field", ["relaxation", "jacobian"])
def test_bounds_that_hold_values_of_their_own_are_refused(field: str) -> None:
    slope = torch.ones(1)

    def closed(*_: Any) -> Tensor:
        return slope

    def defaulted(*_: Any, slope: Tensor = slope) -> Tensor:
        return slope

    for bound in (closed, defaulted, partial(closed), slope.mul):
        with pytest.raises(TypeError, match=f"{field} of the activation relu: expected a module"):
            replace(ReLU(2).fold(), **{field: bound})
