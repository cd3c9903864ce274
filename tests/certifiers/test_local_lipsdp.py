"""Constants of balls: above every quotient on them, below the global ones, and no attack inside."""

import math
from pathlib import Path

import pytest
import torch
from helpers.configs import slow_but
from helpers.random_networks import COVERED, margins_and_slopes, points_in, random_network
from torch import Tensor

from robustcert.attacks import margin_attack
from robustcert.certifiers import LipschitzCertifier, LipSDPCertifier, LocalLipschitzCertifier
from robustcert.certifiers.local_lipsdp.certifier import Balls
from robustcert.certifiers.local_lipsdp.ellipsoids import Slopes, passed, proved
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def constants(
    network: PlainNetwork, x: Tensor, own: Tensor, radius: float, iterations: int
) -> Tensor:
    gap = torch.ones(len(x), 3, dtype=torch.float64).scatter(1, own[:, None], math.inf)
    ball = torch.full((len(x),), radius, dtype=torch.float64)
    return Balls(network, x, own).constants(ball, gap, iterations)


CASES = [*((activation, 4) for activation in COVERED), ("relu", 0)]


@pytest.mark.parametrize(
    ("activation", "iterations"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] in ("abs", "n_activation") else ())
        for case in CASES
    ],
)
def test_constants_are_above_every_quotient_on_the_ball(activation: str, iterations: int) -> None:
    network = random_network(activation, width=8)
    x = torch.randn(20, 3).double()
    own = network(x).argmax(1)
    before = torch.zeros(20, 3, dtype=torch.float64)
    for radius in (1e-9, 0.1, 1.0):
        bound = constants(network, x, own, radius, iterations)
        ball = torch.full((20,), radius, dtype=torch.float64)
        for y, z in points_in(x, ball * (1 - 1e-9), 60).view(30, 2, 20, 3).unbind(0):
            rise = network(y) - network(z)
            rise = rise.gather(1, own[:, None]) - rise
            assert (rise.abs() <= bound * (y - z).norm(dim=1)[:, None] * (1 + 1e-9) + 1e-13).all()
        # Unoptimised, a ball has no smaller constants than one inside it.
        assert iterations or (bound >= before * (1 - 1e-6)).all()
        before = bound


@pytest.mark.parametrize(
    "activation", slow_but(["identity", "relu", "maxmin", "smooth", "tanh"], ["identity", "maxmin"])
)
def test_constants_of_balls_are_at_most_those_of_the_space(activation: str) -> None:
    network = random_network(activation)
    x = torch.randn(20, 3).double()
    own = network(x).argmax(1)
    everywhere = LipSDPCertifier().pairwise_bound(network)[own]
    # The search of the certifier asks that the proof, with other roundings, still succeeds.
    for radius in (0.1, 100.0):
        local = constants(network, x, own, radius, 0)
        assert (local <= everywhere * (1 + 1e-5) + 1e-9).all()
        assert radius > 1 or activation == "identity" or (local < 0.9 * everywhere).any()


def test_on_a_ball_without_folds_the_constant_is_the_gradient() -> None:
    network = random_network("relu")
    x = torch.randn(20, 3).double()
    own, _, expected = margins_and_slopes(network, x)
    found = constants(network, x, own, 1e-7, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


def test_ellipsoids_hold_whatever_the_multipliers_are() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(1, 5, 5, dtype=torch.float64, generator=generator)
    gram = root @ root.mT
    ends = torch.rand(200, 5, 2, dtype=torch.float64, generator=generator).sort(2).values * 2 - 1
    ends[::3, :2, 1] = ends[::3, :2, 0]
    slopes = Slopes.between(*ends.unbind(2))
    scale = torch.logspace(-3, 3, 200, dtype=torch.float64)[:, None]
    multipliers = scale * torch.rand(200, 5, dtype=torch.float64, generator=generator)
    ellipsoid = proved(gram, slopes, multipliers)
    _, feasible = passed(gram, slopes, multipliers)
    assert 20 < feasible.sum() < 180
    for _ in range(50):
        share = torch.rand(200, 5, dtype=torch.float64, generator=generator)
        share = torch.where(share < 0.5, share.round(), share)
        slope = (ends[:, :, 0] + share * (ends[:, :, 1] - ends[:, :, 0]))[:, :, None]
        excess = ellipsoid - slope * gram * slope.mT
        finite = torch.isfinite(excess).all(2).all(1)
        assert finite[feasible].all()
        assert (torch.linalg.eigvalsh(excess[finite]).amin(1) >= -1e-12).all()


@pytest.mark.parametrize(
    "activation", slow_but(["relu", "maxmin", "smooth", "tanh"], ["maxmin", "smooth"])
)
def test_no_attack_inside_a_radius_succeeds_and_none_is_below_lipschitz(activation: str) -> None:
    network = random_network(activation)
    x = torch.randn(40, 3).double()
    found = LocalLipschitzCertifier().certify(network, x)
    usual = LipschitzCertifier().certify(network, x)
    assert (found.radius >= usual.radius).all()
    assert found.radius.median() > 1.5 * usual.radius.median()
    rows = found.radius > 0
    radius = found.radius[rows] * (1 - 1e-6)
    margin, _ = margin_attack(network, x[rows], found.prediction[rows], radius, steps=40)
    assert (margin > 0).all()
    margin, _ = margin_attack(network, x[rows], found.prediction[rows], 3 * radius, steps=40)
    assert (margin < 0).any()


def test_what_is_not_finite_certifies_nothing() -> None:
    network = random_network("smooth")
    x = torch.randn(4, 3).double()
    x[1], x[2] = 1e308, math.nan
    radius = LocalLipschitzCertifier(rounds=3).certify(network, x).radius
    assert (radius > 0).tolist() == [True, False, False, True]


def test_linear_networks_are_exact() -> None:
    network = PlainNetwork((Dense(torch.tensor([[3.0, 0.0], [0.0, 4.0]])),), (2,))
    radius = LocalLipschitzCertifier(rounds=2).certify(network, torch.tensor([[1.0, 0.0]])).radius
    assert radius.item() == pytest.approx(3 / 5, rel=1e-6)


def test_options_that_are_no_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"certifier\.rounds"):
        LocalLipschitzCertifier(rounds=0)
    with pytest.raises(ValueError, match=r"certifier\.iterations"):
        LocalLipschitzCertifier(iterations=-1)


def test_the_checker_does_not_cover_it(tmp_path: Path) -> None:
    from helpers.proof_folders import certify

    from robustcert.check.verdict import check

    network = PlainNetwork((Dense(torch.randn(3, 4)),), (4,))
    report = check(certify(tmp_path / "folder", network, LocalLipschitzCertifier()))
    assert not report.verified
    assert not report.mismatches
    assert any("local-lipschitz radii are not re-proved" in line for line in report.uncovered)
