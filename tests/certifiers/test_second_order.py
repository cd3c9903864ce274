"""Second-order certificates: bounds hold, attacks fail, and nothing is lost to Lipschitz bounds."""

import math

import pytest
import torch
from helpers.configs import slow_but
from helpers.smooth_networks import COVERED, EVERY, Factory, dense, gradient, points, steps_from
from torch import Tensor, nn

from robustcert.activations import (
    GroupSort,
    SinCos,
)
from robustcert.attacks import ddn, margin_attack
from robustcert.certifiers import (
    CombinedCertifier,
    LipschitzCertifier,
    robust_accuracy_bracket,
)
from robustcert.certifiers.second_order.curvature import (
    Trace,
    descent_distance,
    is_covered,
    jacobian_lipschitz_bound,
    pairwise_curvature_bound,
    say_once,
    second_order_distance,
)
from robustcert.network.branches import Sum
from robustcert.network.fold import fold_network
from robustcert.network.network import PlainNetwork


def direction(count: int) -> Tensor:
    return torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64).repeat(count, 1)


def least_margin(network: PlainNetwork, x: Tensor, label: Tensor, radius: Tensor) -> Tensor:
    return margin_attack(network, x, label, radius)[0]


@pytest.mark.parametrize("name", EVERY)
def test_the_global_bound_holds_between_any_two_points(name: str) -> None:
    network = EVERY[name]()
    bound = pairwise_curvature_bound(network)
    x = points(network, 500)
    for exponent in (-4.0, -1.0, 0.0, 1.0):
        y = x + steps_from(x, torch.full((500,), 10**exponent, dtype=torch.float64))
        change = (gradient(network, x, (0, 1)) - gradient(network, y, (0, 1))).norm(dim=1)
        distance = (x - y).flatten(1).norm(dim=1)
        assert (change <= bound[0, 1] * distance + 1e-12).all()


def test_the_global_bound_composes_over_sums_and_sees_folds() -> None:
    smooth = dense(COVERED["softplus"])
    one = jacobian_lipschitz_bound(smooth.operations, (3,))
    twice = Sum((smooth.operations, smooth.operations))
    assert jacobian_lipschitz_bound([twice], (3,)) == pytest.approx(2 * one)
    assert pairwise_curvature_bound(dense(GroupSort))[0, 1] == math.inf
    assert pairwise_curvature_bound(dense(GroupSort))[0, 0] == 0


@pytest.mark.parametrize("name", EVERY)
def test_the_anchored_bounds_hold_within_their_reach(name: str) -> None:
    network = EVERY[name]()
    count = 400
    x = points(network, count)
    reaches = torch.tensor([1e-3, 0.03, 0.1, 0.3, 1.0, math.inf], dtype=torch.float64)
    table = reaches[:, None].expand(-1, count)
    slope = Trace(network, x).slope(torch.arange(count), direction(count), table)
    exact = gradient(network, x, (0, 1))
    assert ((slope.norm - exact.norm(dim=1)).abs() <= slope.error).all()
    torch.testing.assert_close(slope.gradient.flatten(1), exact, rtol=1e-10, atol=1e-12)
    whole = pairwise_curvature_bound(network)[0, 1]
    assert (slope.curvature <= whole * (1 + 1e-6)).all()
    assert (slope.curvature.diff(dim=0) >= -1e-9).all()
    for seed in range(4):
        for i, reach in enumerate(reaches):
            share = torch.rand(count, dtype=torch.float64) if seed else torch.ones(count)
            length = share.double() * (10.0 if reach == math.inf else float(reach))
            y = x + steps_from(x, length, seed)
            change = (gradient(network, y, (0, 1)) - exact).norm(dim=1)
            assert (change <= slope.curvature[i] * length + 1e-11).all()


@pytest.mark.parametrize("name", ["smooth_abs", "softplus", "smooth_maxmin", "smooth_n"])
def test_a_single_unit_is_bounded_within_a_small_factor(name: str) -> None:
    # One layer with the identity before it: the anchored bound against its best chords.
    activation = COVERED[name](2)
    net = nn.Sequential(activation, nn.Linear(2, 2, bias=False))
    net[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    network = fold_network(net, (2,))
    line = torch.linspace(-0.6, 0.6, 61, dtype=torch.float64)
    x = torch.stack([line, torch.zeros_like(line)], dim=1)
    v = torch.tensor([[1.0, -1.0]], dtype=torch.float64).repeat(len(x), 1)
    for reach in (0.05, 0.2, 0.6):
        table = torch.full((1, len(x)), reach, dtype=torch.float64)
        slope = Trace(network, x).slope(torch.arange(len(x)), v, table)
        best = torch.zeros(len(x), dtype=torch.float64)
        for shift in torch.linspace(-reach, reach, 41, dtype=torch.float64):
            for turn in torch.linspace(0, math.pi, 5, dtype=torch.float64):
                delta = shift * torch.stack([turn.cos(), turn.sin()])
                change = gradient(network, x + delta, (0, 1)) - gradient(network, x, (0, 1))
                if shift.abs() > 1e-6:
                    best = torch.maximum(best, change.norm(dim=1) / shift.abs())
        assert (slope.curvature[0] >= best * (1 - 1e-9)).all()
        assert (slope.curvature[0] <= 2.5 * best + 1e-3).all()


def envelope_distance(f: float, g: float, lip: float, m: float) -> float:
    """The same by brute force: integrate the envelope until it has used up f."""
    low, high = 0.0, f / g if g > 0 else 10 * f + 10
    for _ in range(200):
        middle = (low + high) / 2
        nodes = torch.linspace(0, middle, 20001, dtype=torch.float64)
        spent = torch.trapezoid((g + m * nodes).clamp(max=lip), nodes)
        low, high = (middle, high) if spent < f else (low, middle)
        if high - low < 1e-12:
            break
    return low


@pytest.mark.parametrize("f", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("g", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("m", [0.1, 1.0, 30.0])
def test_closed_forms_are_the_integral_of_the_envelope(f: float, g: float, m: float) -> None:
    values = [torch.tensor([v], dtype=torch.float64) for v in (f, g, 1.0, m)]
    closed = second_order_distance(*values).item()
    assert closed == pytest.approx(envelope_distance(f, g, 1.0, m), rel=1e-5)
    assert closed >= f * (1 - 1e-12)
    pieces = torch.tensor([[0.1], [0.4], [math.inf]], dtype=torch.float64)
    walked = descent_distance(*values[:3], pieces, values[3].expand(3, 1)).item()
    assert walked <= closed
    assert walked == pytest.approx(closed, rel=1e-8)


def test_a_curvature_that_grows_with_distance_is_integrated_piece_by_piece() -> None:
    f, g, lip = (torch.tensor([v], dtype=torch.float64) for v in (0.5, 0.1, 1.0))
    reaches = torch.tensor([[0.5], [1.0], [math.inf]], dtype=torch.float64)
    curvature = torch.tensor([[0.2], [0.6], [math.inf]], dtype=torch.float64)
    nodes = torch.linspace(0, 2, 200001, dtype=torch.float64)
    rate = torch.where(nodes <= 0.5, 0.1 + 0.2 * nodes, (0.1 + 0.6 * nodes).clamp(max=1))
    rate = torch.where(nodes > 1, 1.0, rate)
    spent = torch.cumulative_trapezoid(rate, nodes)
    expected = nodes[1:][spent < 0.5][-1].item()
    walked = descent_distance(f, g, lip, reaches, curvature).item()
    assert walked == pytest.approx(expected, abs=1e-4)
    # Infinite curvature everywhere is the Lipschitz certificate.
    folds = descent_distance(f, g, lip, reaches, torch.full_like(curvature, math.inf))
    assert folds.item() == pytest.approx(0.5, rel=1e-8)


@pytest.mark.parametrize("name", slow_but(EVERY, COVERED))
def test_radii_are_never_below_lipschitz_and_survive_attacks(name: str) -> None:
    network = EVERY[name]()
    x = points(network, 60)
    first = LipschitzCertifier().certify(network, x)
    both = CombinedCertifier().certify(network, x)
    assert (both.radius >= first.radius).all()
    assert (both.radius > first.radius).any()
    assert torch.equal(both.prediction, first.prediction)
    inside = both.radius * (1 - 1e-6)
    assert (least_margin(network, x, both.prediction, inside) > 0).all()
    start = float(both.radius.median())
    found, _ = ddn(network, x, both.prediction, steps=50, restarts=3, initial_norm=start)
    assert (found >= inside).all()


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
def test_both_arithmetics_gain(arithmetic: str) -> None:
    network = dense(COVERED["softplus"])
    x = points(network, 100).float()
    first = LipschitzCertifier(arithmetic).certify(network, x).radius
    both = CombinedCertifier(arithmetic).certify(network, x).radius
    assert (both >= first).all()
    assert both.mean() > 1.3 * first.mean()
    # Tied and broken inputs are still refused.
    assert CombinedCertifier(arithmetic).certify(network, x[:1] * math.nan).radius.item() == 0


@pytest.mark.parametrize("activation", [GroupSort, SinCos, nn.Identity])
def test_networks_that_are_not_covered_get_their_lipschitz_radii(activation: Factory) -> None:
    network = dense(activation) if activation is not nn.Identity else dense(lambda _: nn.ReLU())
    assert not is_covered(network)
    x = points(network, 30)
    first = LipschitzCertifier().certify(network, x).radius
    assert torch.equal(CombinedCertifier().certify(network, x).radius, first)
    assert CombinedCertifier().adversarial_distance(network, x).isinf().all()


def test_what_an_activation_lacks_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    network = dense(SinCos)
    for _ in range(2):
        CombinedCertifier().certify(network, points(network, 3))
    (line,) = caplog.messages
    assert "the activation sin_cos" in line
    assert "states no jacobian" in line


@pytest.mark.parametrize("name", slow_but(EVERY, COVERED))
def test_proved_adversarial_inputs_exist(name: str) -> None:
    network = EVERY[name]()
    # Samples close to the boundary, where it can be proved that it is close.
    x = points(network, 80)
    distance, delta = ddn(network, x, network(x).argmax(1), steps=60, restarts=2)
    x = (x + 0.97 * delta)[distance.isfinite()]
    result = CombinedCertifier().certify(network, x)
    proved = CombinedCertifier().adversarial_distance(network, x)
    assert (proved >= result.radius).all()
    rows = proved.isfinite().nonzero()[:, 0]
    assert len(rows) > 0
    start = float(proved[rows].median())
    found, _ = ddn(network, x[rows], result.prediction[rows], restarts=3, initial_norm=start)
    assert (found <= proved[rows] * (1 + 1e-3)).all()


def test_the_bracket_holds_the_robust_accuracy() -> None:
    network = dense(COVERED["smooth_maxmin"])
    x = points(network, 300)
    certifier = CombinedCertifier()
    result = certifier.certify(network, x)
    correct = torch.arange(300) % 7 != 0
    epsilon = float(result.radius.median())
    distance = certifier.adversarial_distance(network, x)
    low, high = robust_accuracy_bracket(result.radius, distance, correct, epsilon)
    found, _ = ddn(network, x, result.prediction, restarts=5, initial_norm=epsilon)
    assert low <= ((found > epsilon) & correct).double().mean() <= high < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth_maxmin", "free softplus", "smooth_abs", "free norm_pair"])
def test_no_attack_breaks_any_of_thousands_of_radii(name: str) -> None:
    network = EVERY[name]()
    x = points(network, 3000, seed=7)
    result = CombinedCertifier().certify(network, x)
    inside = result.radius * (1 - 1e-6)
    assert (least_margin(network, x, result.prediction, inside) > 0).all()
    start = float(result.radius.median())
    found, _ = ddn(network, x, result.prediction, steps=60, restarts=3, initial_norm=start)
    assert (found >= inside).all()


def test_the_distance_is_the_integral_also_where_the_envelope_degenerates() -> None:
    """Slope at, above or far below L, no curvature at all, folds: never more than is spent."""
    generator = torch.Generator().manual_seed(5)

    def pick(values: list[float], count: int) -> Tensor:
        rows = torch.randint(len(values), (count,), generator=generator)
        return torch.tensor(values, dtype=torch.float64)[rows]

    count = 4000
    gap = pick([1e-9, 0.1, 1.0, 7.0], count)
    lipschitz = pick([0.5, 1.0, 3.0], count)
    slope = lipschitz * pick([0.0, 0.3, 1.0, 1.0, 1.5], count)
    ends = pick([0.2, 1.0], count)
    reaches = torch.stack([ends, 2 * ends, torch.full_like(ends, math.inf)])
    increments = torch.stack([pick([0.0, 0.0, 0.4, 5.0, math.inf], count) for _ in range(3)])
    curvature = increments.cumsum(0)
    distance = descent_distance(gap, slope, lipschitz, reaches, curvature)
    assert torch.isfinite(distance).all()

    # The integral of the envelope up to the distance, by the midpoint rule.
    s = (torch.arange(2000, dtype=torch.float64)[:, None] + 0.5) / 2000 * distance
    m = torch.where(s <= reaches[0], curvature[0], curvature[2])
    m = torch.where((s > reaches[0]) & (s <= reaches[1]), curvature[1], m)
    steep = torch.minimum(slope, lipschitz) + (m * s).nan_to_num(nan=0.0, posinf=1e300)
    spent = torch.minimum(steep, lipschitz).mean(0) * distance
    # The rule is off by at most a cell where the envelope jumps.
    assert (spent <= gap + 3 * lipschitz * distance / 2000 + 1e-12).all()
    # A function that never moves has no distance to find: 0 claims nothing.
    moves = (slope > 0) | (curvature[-1] > 0)
    assert (distance[moves] >= (gap / lipschitz * (1 - 1e-8))[moves]).all()
    assert (distance[~moves] == 0).all()
