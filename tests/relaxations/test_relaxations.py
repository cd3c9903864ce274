"""Linear bounds and exact distances: below every value, and equal where nothing is lost."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.configs import build, proving_certifiers
from helpers.random_networks import WITH_LINES, margins_and_slopes, points_in, random_network
from scipy.optimize import minimize
from torch import Tensor

from robustcert.activations import Abs, BetaAbs, GroupSort, Householder, ReLU, SmoothMaxMin
from robustcert.certifiers import CROWNCertifier, LipschitzCertifier, LocalLipschitzCertifier
from robustcert.errors import UnsoundNetworkError
from robustcert.ground_truth.exact_distance import exact_distance, least_distance
from robustcert.network.activation import Activation
from robustcert.network.fold import fold_network
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation
from robustcert.relaxations.backward import Relaxation, rival_rows, steps_of
from robustcert.relaxations.curves import Curve, curve_of

FOLDED = {"relu": ReLU, "abs": Abs, "maxmin": GroupSort}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Curves


def curves() -> dict[str, tuple[Curve, Activation]]:
    found = {}
    for name in WITH_LINES:
        if name == "identity":
            continue
        module = build("activation", name)(6)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.5 * torch.randn_like(parameter)
        operation = module.fold()
        curve = curve_of(operation, 6)
        found[name] = curve, operation
    return found


@pytest.mark.parametrize("name", [name for name in WITH_LINES if name != "identity"])
def test_lines_enclose_the_graph_and_slopes_every_quotient(name: str) -> None:
    curve, _ = curves()[name]
    ends = (3 * torch.randn(400, 6, 2).double() * torch.logspace(-9, 0, 400)[:, None, None]).sort(2)
    low, high = ends.values.unbind(2)
    low[::3], high[::3] = low[::3] + 1, high[::3] + 1
    lines = curve.lines(low, high)
    least, greatest = curve.slopes(low, high)
    before = None
    for share in torch.linspace(0, 1, 41, dtype=torch.float64):
        v = torch.clamp(low + share * (high - low), low, high)
        s = torch.where(curve.fixed, v, curve.value(v))
        room = 1e-15 * (v.abs() + 1)
        assert (lines.low_slope * v + lines.low <= s + room).all()
        assert (lines.high_slope * v + lines.high >= s - room).all()
        if before is not None:
            run, rise = v - before[0], s - before[1]
            assert (least * run <= rise + room).all()
            assert (greatest * run >= rise - room).all()
        before = v, s
    # No further apart than the function can bend in between.
    width = (lines.high - lines.low) + (lines.high_slope - lines.low_slope) * (low + high) / 2
    assert (width <= 2.001 * (high - low) + 1e-13).all()


@pytest.mark.parametrize("name", [name for name in WITH_LINES if name != "identity"])
def test_curves_are_the_activations(name: str) -> None:
    curve, operation = curves()[name]
    x = 2 * torch.randn(50, 6).double()
    v = x
    if curve.pairs:
        a, b = x[:, ::2], x[:, 1::2]
        v = torch.stack([a + b, b - a], 2).flatten(1)
    s = torch.where(curve.fixed, v, curve.value(v))
    if curve.pairs:
        total, bent = s[:, ::2], s[:, 1::2]
        s = torch.stack([total - bent, total + bent], 2).flatten(1) / 2
    torch.testing.assert_close(s, operation(x), rtol=1e-14, atol=1e-14)


def test_the_activations_of_the_package_that_have_lines() -> None:
    assert {
        *("abs", "beta_abs", "identity", "maxmin", "n_activation", "relu", "smooth"),
        *("smooth_abs", "softplus", "tanh"),
    } <= {*WITH_LINES}


# Relaxations


@pytest.mark.parametrize("radius", [1e-12, 0.1, 1.0])
@pytest.mark.parametrize("activation", WITH_LINES)
def test_planes_are_below_all_margins_on_the_ball(activation: str, radius: float) -> None:
    network = random_network(activation)
    x = torch.randn(20, 3).double()
    own = network(x).argmax(1)
    ball = torch.full((20,), radius, dtype=torch.float64)
    relaxation = Relaxation(steps_of(network), x, ball)
    plane = relaxation.plane(rival_rows(own, 3))
    least = plane.least(x, ball)
    for y in points_in(x, ball * (1 - 1e-9), 60):
        logits = network(y)
        margin = logits.gather(1, own[:, None]) - logits
        below = (plane.rows @ y[:, :, None])[:, :, 0] + plane.constant - plane.error
        assert (below <= margin + 1e-13).all()
        assert (least <= margin + 1e-13).all()
    # The error allowance is one: rounding, not slack.
    assert (plane.error < 1e-10).all()


def test_on_a_ball_without_folds_nothing_is_lost() -> None:
    network = random_network("relu")
    x = torch.randn(20, 3).double()
    own, margin, slope = margins_and_slopes(network, x)
    ball = torch.full((20,), 1e-6, dtype=torch.float64)
    least = Relaxation(steps_of(network), x, ball).plane(rival_rows(own, 3)).least(x, ball)
    torch.testing.assert_close(least, margin - 1e-6 * slope, rtol=1e-9, atol=1e-11)


def test_a_radius_that_overflows_certifies_nothing() -> None:
    network = random_network("relu")
    x = torch.randn(4, 3).double()
    x[1] = 1e308
    found = CROWNCertifier(alone=True).certify(network, x)
    assert found.radius[1] == 0
    assert (found.radius[[0, 2, 3]] > 0).all()
    margin = Relaxation(steps_of(network), x, torch.full((4,), math.inf).double())
    assert not (margin.plane(rival_rows(torch.zeros(4).long(), 3)).least(x, x[:, 0]) > 0).any()


@pytest.mark.parametrize(
    "operation",
    [Convolution(torch.ones(1, 1, 1, 1)), GroupSort(4, group_size=4).fold(), Householder(4).fold()],
)
def test_operations_that_are_not_covered_are_named(operation: Operation) -> None:
    shape = (1, 2, 2) if isinstance(operation, Convolution) else (4,)
    rest = (Flatten(),) if isinstance(operation, Convolution) else ()
    network = PlainNetwork((operation, *rest, Dense(torch.randn(2, 4))), shape)
    with pytest.raises(UnsoundNetworkError, match="linear bounds do not cover"):
        CROWNCertifier().certify(network, torch.zeros(1, *shape))
    with pytest.raises(UnsoundNetworkError, match="do not cover"):
        LocalLipschitzCertifier().certify(network, torch.rand(1, *shape))


def test_crown_is_never_below_lipschitz_unless_alone() -> None:
    network = random_network("maxmin", width=8)
    x = torch.randn(40, 3)
    first = LipschitzCertifier().certify(network, x).radius
    both = CROWNCertifier().certify(network, x).radius
    alone = CROWNCertifier(alone=True).certify(network, x).radius
    assert (both >= first).all()
    torch.testing.assert_close(both, torch.maximum(first, alone))
    assert (alone > 1.5 * first).double().mean() > 0.5


# Exact distances


def brute_force(network: PlainNetwork, x: Tensor, own: int) -> float:
    """Every pattern of signs, and the nearest point of each by quadratic programming."""
    first, fold, head = network.operations[-3:]
    assert isinstance(first, Dense)
    assert isinstance(head, Dense)
    weight, bias = first.weight.double().numpy(), first.bias.double().numpy()  # type: ignore[union-attr]
    outer, shift = head.weight.double().numpy(), head.bias.double().numpy()  # type: ignore[union-attr]
    name = fold.function.__name__  # type: ignore[attr-defined]
    best = math.inf
    centre = x.double().numpy()
    folds = len(weight) // 2 if name == "group_sort" else len(weight)
    for signs in itertools.product([-1.0, 1.0], repeat=folds):
        s = np.array(signs)
        if name == "group_sort":
            a, b = weight[::2], weight[1::2]
            side, offset = s[:, None] * (b - a), s * (bias[1::2] - bias[::2])
            low = np.where(s[:, None] > 0, a, b), np.where(s > 0, bias[::2], bias[1::2])
            high = np.where(s[:, None] > 0, b, a), np.where(s > 0, bias[1::2], bias[::2])
            matrix = np.stack([low[0], high[0]], 1).reshape(weight.shape)
            vector = np.stack([low[1], high[1]], 1).reshape(-1)
        else:
            slope = np.where(s > 0, 1.0, 0.0 if name == "relu" else -1.0)
            side, offset = s[:, None] * weight, s * bias
            matrix, vector = slope[:, None] * weight, slope * bias
        logits, constant = outer @ matrix, outer @ vector + shift
        for rival in range(len(outer)):
            if rival == own:
                continue
            normal = logits[rival] - logits[own]
            level = constant[rival] - constant[own]
            rows, least = np.vstack([side, normal]), -np.append(offset, level)
            found = minimize(
                lambda y: ((y - centre) ** 2).sum(),
                centre,
                jac=lambda y: 2 * (y - centre),
                constraints={
                    "type": "ineq",
                    "fun": lambda y, rows=rows, least=least: rows @ y - least,
                    "jac": lambda y, rows=rows: rows,
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 200},
            )
            if (rows @ found.x - least >= -1e-7).all():
                best = min(best, float(np.linalg.norm(found.x - centre)))
    return best


def test_a_steep_step_costs_nothing_before_it_begins() -> None:
    """The Lipschitz radius is margin over slope; CROWN reaches nearly to where the logits move."""
    module = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    slope, begins, margin = 1000.0, 0.5, 0.1
    values = [[slope], [slope]], [-slope * begins, -slope * begins - 1]
    head = [[0.0, 0.0], [1.0, -1.0]], [margin, 0.0]
    for parameter, value in zip(module.parameters(), (*values, *head), strict=True):
        parameter.data = torch.tensor(value)
    network = fold_network(module, (1,))
    distance = begins + margin / slope
    found = CROWNCertifier().certify(network, torch.zeros(1, 1)).radius.item()
    assert LipschitzCertifier().certify(network, torch.zeros(1, 1)).radius.item() < 1e-4
    assert begins * 0.999 < found < distance


@pytest.mark.parametrize(("activation", "width"), [("relu", 5), ("abs", 5), ("maxmin", 8)])
def test_exact_distances_are_those_of_all_patterns(activation: str, width: int) -> None:
    network = random_network(activation, inputs=2, width=width, depth=1)
    # Without the normalisation, which the brute force does not know.
    network = PlainNetwork(network.operations[2:], (2,))
    for x in torch.randn(4, 2).double():
        found = exact_distance(network, x)
        own = int(network(x[None]).argmax())
        assert found.lower == pytest.approx(found.upper, rel=1e-6)
        assert found.upper == pytest.approx(brute_force(network, x, own), rel=1e-5)
        assert found.point is not None
        logits = network(found.point[None])[0]
        assert logits[own] <= logits.max() + 1e-9


@pytest.mark.parametrize("activation", FOLDED)
def test_no_certifier_exceeds_the_exact_distance(activation: str) -> None:
    network = random_network(activation, inputs=2, width=8)
    x = torch.randn(6, 2).double()
    exact = [exact_distance(network, y) for y in x]
    upper = torch.tensor([e.upper for e in exact])
    assert all(e.lower >= e.upper * (1 - 1e-5) for e in exact)
    for certifier in proving_certifiers():
        radius = build("certifier", certifier).certify(network, x).radius
        assert (radius <= upper * (1 + 1e-6)).all(), certifier
        assert (radius > 0).all(), certifier


def test_exact_distances_refuse_smooth_networks() -> None:
    network = PlainNetwork((SmoothMaxMin(4).fold(), Dense(torch.randn(2, 4))), (4,))
    with pytest.raises(UnsoundNetworkError, match="ReLU, MaxMin and absolute values"):
        exact_distance(network, torch.zeros(4))


def test_least_distances_satisfy_their_optimality_conditions() -> None:
    generator = np.random.RandomState(0)
    infeasible = 0
    for _ in range(50):
        rows, least = generator.randn(5, 3), generator.randn(5)
        length, d = least_distance(rows, least)
        if math.isinf(length):
            infeasible += 1
            continue
        assert (rows @ d >= least - 1e-9).all()
        assert length == pytest.approx(np.linalg.norm(d), abs=1e-9)
        if length > 1e-9:
            # d is a nonnegative combination of the rows that are tight.
            tight = rows[np.abs(rows @ d - least) < 1e-8]
            shares, *_ = np.linalg.lstsq(tight.T, d, rcond=None)
            assert np.allclose(tight.T @ shares, d, atol=1e-7)
            assert (shares >= -1e-7).all()
    assert infeasible < 25
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert math.isinf(least_distance(opposite, np.array([1.0, 1.0]))[0])


@pytest.mark.parametrize("folds", [BetaAbs])
def test_a_share_of_absolute_values_is_exact(folds: type) -> None:
    head = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    network = PlainNetwork((folds(2).fold(), Dense(head, torch.tensor([-1.0, 0.0]))), (2,))
    # |a| + b < 1 around the origin; the nearest point of the other side is at 1 / sqrt(2).
    found = exact_distance(network, torch.zeros(2))
    assert found.upper == pytest.approx(math.sqrt(0.5), rel=1e-7)
    assert CROWNCertifier().certify(network, torch.zeros(1, 2)).radius.item() <= math.sqrt(0.5)


def test_the_checker_does_not_cover_crown(tmp_path: Path) -> None:
    from helpers.proof_folders import certify

    from robustcert.check.verdict import check

    network = PlainNetwork((Dense(torch.randn(3, 4)),), (4,))
    report = check(certify(tmp_path / "folder", network, CROWNCertifier()))
    assert not report.verified
    assert not report.mismatches
    assert any("crown radii are not re-proved" in line for line in report.uncovered)
