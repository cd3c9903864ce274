"""Monotone networks: proved directions, whatever training has estimated."""

import math
from collections.abc import Sequence

import pytest
import torch
from helpers.configs import build_model
from torch import Tensor, nn

from robustcert.certifiers import LipschitzCertifier
from robustcert.certifiers.monotone import monotone_directions
from robustcert.lipschitz import lipschitz_bound, lipschitz_estimate
from robustcert.models import Monotone
from robustcert.network.agreement import require_agreement
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, scaling
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork, output_bound

DIRECTIONS = (1, 0, -1, 1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def monotone(outputs: int, activation: str = "maxmin", layer: str = "unconstrained") -> Monotone:
    sizes = {"input_shape": (4,), "num_classes": 1, "mean": [0.3], "std": [0.5]}
    model = build_model("mlp", layer, activation, normalize_head=False, **sizes)
    return Monotone(model, DIRECTIONS, input_shape=(4,), num_classes=outputs).eval()


def response(network: PlainNetwork, x: Tensor) -> Tensor:
    """What is monotone: the output, or the difference of two logits."""
    found = network(x)
    return found[:, -1] - (found[:, 0] if found.shape[1] == 2 else 0)


def falls(network: PlainNetwork, directions: Sequence[int]) -> bool:
    """Whether a sampled pair contradicts the directions beyond the rounding of float64."""
    for feature, sign in enumerate(directions):
        x = torch.randn(2000, 4).double()
        step = torch.zeros_like(x)
        step[:, feature] = torch.rand(2000).double() * torch.tensor([1e-3, 3.0]).repeat(1000)
        change = sign * (response(network, x + step) - response(network, x))
        if (change < -1e-9).any():
            return True
    return False


@pytest.mark.parametrize("activation", ["maxmin", "tanh", "abs"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_sampled_pairs_follow_the_directions(outputs: int, activation: str) -> None:
    module = monotone(outputs, activation)
    network = fold_network(module, (4,))
    assert monotone_directions(network) == DIRECTIONS
    assert not falls(network, DIRECTIONS)
    # The module that is evaluated is the network that is certified.
    require_agreement(module, network, torch.rand(20, 4))


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_constant_is_that_of_the_sum(outputs: int) -> None:
    module = monotone(outputs)
    network = fold_network(module, (4,))
    bound = lipschitz_bound(module.model, (4,))
    most = bound * (1 + math.sqrt(3)) * (1 + 1e-5)
    if outputs == 1:
        found = output_bound(network)[0].item()
    else:
        found = LipschitzCertifier().pairwise_bound(network)[0, 1].item()
    assert bound < found <= most


def test_the_slope_is_proved_and_not_the_estimate() -> None:
    module = monotone(1)
    # The normalisation divides by 0.5 before both terms.
    assert float(module.slope()) >= 0.5 * lipschitz_bound(module.model, (4,))
    module.train()
    x, estimate = torch.rand(5, 4), 0.5 * lipschitz_estimate(module.model)
    line = ((x - 0.3) / 0.5) @ torch.tensor(DIRECTIONS).float()
    torch.testing.assert_close(module(x), module.model(x) + (estimate * line)[:, None])
    # Training reaches g through the slope as well.
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.model.parameters())


def test_directions_cost_no_more_where_columns_have_other_units() -> None:
    std = [1e3, 1e-2, 1.0, 10.0]
    sizes = {"input_shape": (4,), "num_classes": 1, "mean": [0.0] * 4, "std": std}
    model = build_model("mlp", "unconstrained", "maxmin", normalize_head=False, **sizes)
    module = Monotone(model, DIRECTIONS, input_shape=(4,), num_classes=1).eval()
    space = InputSpace("columns", None, scaling(torch.tensor(std)))
    network = fold_network(module, (4,), space)
    assert monotone_directions(network) == DIRECTIONS
    bare = output_bound(fold_network(model, (4,), space))[0].item()
    assert output_bound(network)[0].item() <= bare * (1 + math.sqrt(3)) * (1 + 1e-5)


FAULTS = {
    "estimate of one step": lambda module: lipschitz_estimate(module.model).detach() * 0.5,
    "units of the normalised input": lambda module: lipschitz_estimate(module.model).detach() / 2,
    "no slope": lambda module: torch.zeros(()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Monotone, "slope", FAULTS[name])
    # |x| has its constant as a slope everywhere.
    network = fold_network(linear_one(), (4,))
    assert falls(network, DIRECTIONS)
    assert monotone_directions(network) != DIRECTIONS


def linear_one() -> Monotone:
    """A linear g against all directions at once."""
    model = nn.Sequential(nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(-torch.tensor([DIRECTIONS]).float())
    return Monotone(model, DIRECTIONS, input_shape=(4,), num_classes=1).eval()


def test_networks_of_other_forms_have_no_directions() -> None:
    line = Dense(torch.tensor([[5.0, 0.0, -5.0, 5.0]]))
    other = Dense(torch.ones(1, 4))
    assert monotone_directions(PlainNetwork((Sum(((other,), (line,))),), (4,))) == (1, 0, -1, 1)
    assert monotone_directions(PlainNetwork((line,), (4,))) is None
    three = (Sum(((other,), (line,), (line,))),)
    assert monotone_directions(PlainNetwork(three, (4,))) is None
    # A head that is no difference may turn the direction around.
    head = Dense(torch.tensor([[0.5], [-0.5]]))
    assert monotone_directions(PlainNetwork((Sum(((other,), (line,))), head), (4,))) is None


@pytest.mark.parametrize(
    ("directions", "shape", "classes", "said"),
    [
        ((1, 0), (2,), 3, "3 classes"),
        ((1, 0), (3,), 1, "one direction for each feature"),
        ((1, 0), (2, 4, 4), 1, "one direction for each feature"),
        ((1, 2), (2,), 1, "1, -1 or 0"),
    ],
)
def test_what_has_no_direction_is_refused(
    directions: Sequence[int], shape: Sequence[int], classes: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Monotone(nn.Linear(2, 1), directions, input_shape=shape, num_classes=classes)
