"""Attacks find what exists and count nothing that does not."""

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcert.attacks import PlainModule, cross_check, ddn, margin_attack, pgd_survivors
from robustcert.attacks import budget as budget_module
from robustcert.attacks.gradient import breaks, to_length
from robustcert.certifiers import certify
from robustcert.errors import BrokenCertificate
from robustcert.network.activation import Activation
from robustcert.network.fold import fold_network
from robustcert.network.linear import Affine, Dense
from robustcert.network.network import PlainNetwork


def linear(weight: list[list[float]]) -> PlainNetwork:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return fold_network(nn.Sequential(layer), (len(weight[0]),))


def relu_network(seed: int = 0) -> tuple[PlainNetwork, Tensor, Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    network = fold_network(net, (6,))
    x = torch.rand(40, 6, dtype=torch.float64)
    return network, x, network(x).argmax(1)


def test_ddn_finds_the_exact_distance_to_a_hyperplane() -> None:
    network = linear([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[1.0, 0.5, 0.2], [-0.3, -0.4, 2.0]], dtype=torch.float64)
    distance, delta = ddn(network, x, network(x).argmax(1), steps=50, restarts=2)
    expected = (x @ torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)).abs() / 5
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=0)
    assert (network(x + delta).argmax(1) != network(x).argmax(1)).all()
    torch.testing.assert_close(delta.norm(dim=1), distance)


def test_ddn_takes_a_first_norm_for_each_sample() -> None:
    network = linear([[3.0, 4.0], [0.0, 0.0]])
    x = torch.tensor([[1e-6, 0.0], [1e3, 0.0]], dtype=torch.float64)
    first = torch.tensor([1e-6, 1e3])
    distance, _ = ddn(network, x, torch.tensor([0, 0]), steps=30, restarts=2, initial_norm=first)
    torch.testing.assert_close(distance, 0.6 * x[:, 0], rtol=1e-3, atol=0)


def test_ddn_reports_no_distance_where_no_other_class_can_win() -> None:
    network = linear([[0.0, 0.0], [0.0, 0.0]])
    constant = PlainNetwork(
        (type(network.head)(network.head.weight, torch.tensor([1.0, 0.0])),), (2,)
    )
    distance, _ = ddn(constant, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert distance.isinf().all()


def test_ddn_is_never_worse_than_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    network, x, label = relu_network()
    ours, _ = ddn(network, x, label, steps=100, restarts=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = foolbox.PyTorchModel(PlainModule(network).eval(), bounds=(-100, 100), device="cpu")
        attack = foolbox.attacks.DDNAttack(steps=100)
        criterion = foolbox.criteria.Misclassification(label)
        _, adversarial, success = attack(model, x.float(), criterion, epsilons=None)
    theirs = (adversarial.double() - x).norm(dim=1)
    theirs[~success] = torch.inf
    # Their last iterate is float32: allow for its rounding.
    assert (ours <= theirs * (1 + 1e-4) + 1e-6).all()


def test_the_margin_attack_breaks_a_linear_network_just_outside_its_radius() -> None:
    network = linear([[1.0, 2.0], [-1.0, 0.0], [0.0, 1.0]])
    x = torch.rand(20, 2, dtype=torch.float64)
    result = certify(network, x)
    inside, _ = margin_attack(network, x, result.prediction, result.radius * (1 - 1e-6))
    assert (inside > 0).all()
    # The nearest boundary of a linear network is at the radius itself, for the nearest rival.
    outside, delta = margin_attack(network, x, result.prediction, result.radius * 1.2)
    assert (outside < 0).float().mean() > 0.9
    torch.testing.assert_close(delta.norm(dim=1), result.radius * 1.2)
    changed = network(x + delta).argmax(1) != result.prediction
    assert torch.equal(changed, outside < 0)


def test_certificates_survive_the_cross_check() -> None:
    network, x, label = relu_network()
    radius = certify(network, x).radius
    # The norm grows by a twentieth in a step: a hundred reach all that is to be found.
    record = cross_check(network, x, label, radius, samples=30, ddn_steps=100, ddn_restarts=2)
    assert record["broken"] == 0
    assert record["samples"] == 30
    assert record["found"] > 0
    assert record["least_distance_over_radius"] >= 1


@pytest.mark.parametrize("factor", [1.01, 2.0])
def test_radii_that_claim_too_much_are_broken(factor: float) -> None:
    network = linear([[1.0, 0.0], [-1.0, 0.0]])
    x = torch.rand(12, 2, dtype=torch.float64) + 0.1
    result = certify(network, x)
    with pytest.raises(BrokenCertificate, match="sample"):
        cross_check(network, x, result.prediction, result.radius * factor, ddn_restarts=1)


@pytest.mark.parametrize("function", [torch.relu, torch.sqrt])
def test_a_tie_or_a_nan_inside_the_radius_breaks_a_certificate(function: Any) -> None:
    # Left of 0 the first logit is 0 as well, or NaN.
    operations = (Activation(function, {}, lipschitz=1.0), Dense(torch.tensor([[1.0], [0.0]])))
    network = PlainNetwork(operations, (1,))
    x, label = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    least, delta = margin_attack(network, x, label, torch.tensor([1.5]))
    assert not least > 0
    assert delta.item() == pytest.approx(-1.5)
    distance, _ = ddn(network, x, label, steps=20, restarts=2)
    assert distance.item() == pytest.approx(1.0)
    radius = torch.tensor([1.5], dtype=torch.float64)
    with pytest.raises(BrokenCertificate):
        cross_check(network, x, label, radius, ddn_steps=1, ddn_restarts=1)


@pytest.mark.parametrize("length", [1e-300, 1.0, 5.0, 1e300])
def test_every_sample_gets_its_length_and_zero_stays_zero(length: float) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-320, 4e-320], [3e200, 4e200]]).double()
    x[2:] = torch.tensor([[3e-320, 4e-320], [3e200, 4e200]], dtype=torch.float64)
    found = to_length(x, torch.full((4, 1), length, dtype=torch.float64)) / length
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_a_locally_constant_network_is_not_accused() -> None:
    # Without a gradient anywhere in the ball, and certified beyond 4.
    network = PlainNetwork(
        (
            Dense(torch.eye(1), torch.tensor([-100.0])),
            Activation(torch.relu, {}, lipschitz=1.0),
            Dense(torch.tensor([[-1.0], [0.0]]), torch.tensor([6.0, 0.0])),
        ),
        (1,),
    )
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    result = certify(network, x)
    assert 4 < result.radius.item() < 7
    record = cross_check(network, x, result.prediction, result.radius, ddn_restarts=2)
    assert record["broken"] == 0


def test_where_ddn_finds_nothing_it_says_so() -> None:
    network = PlainNetwork(
        (
            Activation(torch.tanh, {}, lipschitz=1.0),
            Dense(torch.tensor([[0.1], [0.0]]), torch.tensor([1.0, 0.0])),
        ),
        (1,),
    )
    x = torch.zeros(5, 1, dtype=torch.float64)
    result = certify(network, x)
    assert (result.radius > 1).all()
    record = cross_check(network, x, result.prediction, result.radius, ddn_restarts=2)
    assert record["samples"] == 5
    assert record["found"] == 0
    assert record["least_distance_over_radius"] is record["median_distance_over_radius"] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("kind", ["inside", "NaN", "infinite", "at the radius", "unchanged"])
def test_only_a_point_inside_the_radius_that_changes_the_prediction_is_proof(kind: str) -> None:
    network = linear([[1.0], [0.0]])
    x, label = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    delta = {"inside": -1.5, "NaN": torch.nan, "infinite": -torch.inf, "at the radius": -2.0}
    moved = torch.full_like(x, delta.get(kind, -0.5))
    found = breaks(network, x, label, moved, torch.tensor([2.0], dtype=torch.float64))
    assert found.tolist() == [kind == "inside"]


def test_the_cross_check_says_how_much_its_time_allowed() -> None:
    network, x, label = relu_network()
    record = cross_check(network, x, label, certify(network, x).radius, seconds=-1.0)
    assert record["samples"] == 0
    assert record["requested"] > 0


def test_pgd_survivors_shrink_with_the_radius_and_contain_what_is_certified() -> None:
    network, x, label = relu_network()
    radius = certify(network, x).radius
    radii = [0.5, 0.05, 0.2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survivors = pgd_survivors(network, x, label, radii, steps=10)
    small, medium, large = survivors[1], survivors[2], survivors[0]
    assert (large <= medium).all()
    assert (medium <= small).all()
    for row, r in zip(survivors, radii, strict=True):
        assert row[radius > r].all()


class Slow(PlainNetwork):
    """A network whose evaluations take a second a sample of a clock that only it moves."""

    now = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        Slow.now += len(x)
        return super().__call__(x)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> PlainNetwork:
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: Slow.now)
    plain, _, _ = relu_network()
    return Slow(plain.operations, plain.input_shape)


@pytest.mark.parametrize("seconds", [0.0, 10.0, 300.0, 1e4])
def test_the_attack_at_every_radius_counts_what_its_time_allowed(
    slow: PlainNetwork, seconds: float
) -> None:
    _, x, label = relu_network()
    radii, counted, began = [0.05, 0.2], [0], Slow.now
    options: dict[str, Any] = {"steps": 10, "advance": lambda n: counted.append(n)}
    survivors = pgd_survivors(slow, x, label, radii, seconds=seconds, **options)
    attacked = survivors.shape[1]
    assert attacked == sum(counted)
    assert (attacked == 0, attacked == len(x)) == (seconds < 30, seconds > 1000)
    # One evaluation of a part, at most, begins just before the time is over.
    assert Slow.now - began <= seconds + len(x)
    assert (survivors[1] <= survivors[0]).all()


@pytest.mark.parametrize("seconds", [0.0, 100.0, 600.0, 1e6])
def test_all_attacks_inside_radii_share_one_time(slow: PlainNetwork, seconds: float) -> None:
    plain, x, label = relu_network()
    began, radius = Slow.now, certify(plain, x).radius
    record = cross_check(slow, x, label, radius, samples=30, ddn_restarts=2, seconds=seconds)
    assert Slow.now - began <= seconds + len(x)
    assert record["samples"] >= record["ddn"]["samples"]
    assert (record["samples"] == 0, record["ddn"]["samples"] == 30) == (seconds == 0, seconds > 1e4)
    assert record["requested"] == 30


def test_what_changes_in_float32_alone_is_no_success() -> None:
    # Float32 loses the input beside 2^26: there every prediction is a tie.
    ones, shift = torch.ones(1), torch.tensor([2.0**26])
    operations = (Affine(ones, shift), Affine(ones, -shift), Dense(torch.tensor([[1.0], [0.0]])))
    network = PlainNetwork(operations, (1,))
    x, label = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    assert network(x.float())[0].tolist() == [0.0, 0.0]
    radius = torch.tensor([0.9], dtype=torch.float64)
    assert cross_check(network, x, label, radius, ddn_restarts=1)["found"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pgd_survivors(network, x, label, [0.9], steps=3).all()
