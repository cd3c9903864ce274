"""Distances to quadrics: never above what is found by search, and equal to it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.soundness.forgeries import build, certify, refused
from robustcert.activations import SmoothMaxMin
from robustcert.attacks import cross_check
from robustcert.certifiers import LipschitzCertifier, QuadricCertifier, quadratic
from robustcert.certifiers.quadratic import _Pairs
from robustcert.errors import UnsoundNetworkError
from robustcert.layers import CholeskyResidualLinear
from robustcert.models import DeepSubspaces, LayerFamily, Subspaces
from robustcert.network.bounds import sequence_bound
from robustcert.network.fold import fold_network
from robustcert.network.forward_error import ForwardError, forward_error
from robustcert.network.input_space import InputSpace, factor, scaling
from robustcert.network.linear import Affine, Dense
from robustcert.network.network import PlainNetwork, prefix_bounds
from robustcert.network.quadratics import Quadratics, quadratic_distance, split_quadratics


def found(f: Tensor, g: Tensor, eigenvalues: Tensor) -> Tensor:
    """Least distance at which the quadratic vanishes along any of many directions."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(200_000, len(eigenvalues), generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    best = []
    for value, gradient in zip(f, g, strict=True):
        a, b = (u.square() * eigenvalues).sum(1), u @ gradient
        root = (b.square() - 4 * a * value).clamp(min=0).sqrt()
        distance = 2 * value / (-b + root)
        real = (b.square() >= 4 * a * value) & (distance > 0)
        best.append(torch.where(real, distance, math.inf).min())
    return torch.stack(best)


@pytest.mark.parametrize("eigenvalues", [[-1.0, 0.5, 0.0], [0.2, 0.8, 1.0], [-0.3, -0.7, -1.0]])
def test_it_is_the_distance(eigenvalues: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    f = 0.2 + torch.rand(20, generator=generator, dtype=torch.float64)
    g = 3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    a = torch.tensor(eigenvalues, dtype=torch.float64)
    bound = quadratic_distance(f, g, torch.zeros_like(f), a)
    search = found(f, g, a)
    reached = search.isfinite()
    assert reached.any()
    assert (bound <= search * (1 + 1e-9))[reached].all()
    assert (search / bound)[reached].max() < 1.01


def test_a_linear_function_vanishes_at_value_over_slope() -> None:
    f, g = torch.tensor([2.0, -1.0]).double(), torch.tensor([[3.0], [3.0]]).double()
    rest, zero = torch.tensor([16.0, 16.0]).double(), torch.zeros(1).double()
    distance = quadratic_distance(f, g, rest, zero)
    assert distance.tolist() == pytest.approx([0.4, 0.0], rel=1e-6)


def network(per_class: int = 2, rank: int = 3) -> tuple[PlainNetwork, Tensor, Tensor]:
    """Subspaces at clusters of three clouds in eight dimensions, with the clouds."""
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    x = (torch.randn(3, 8)[labels] + 0.3 * torch.randn(90, 8)).clamp(-1, 1) / 2 + 0.5
    model = Subspaces((8,), 3, per_class=per_class, rank=rank)
    model.start_at(x, labels)
    folded = fold_network(model, (8,))
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    return folded, x, labels


def quadratics_of(network: PlainNetwork) -> Quadratics:
    split = split_quadratics(network)
    assert split is not None
    return split[1]


def deep_network(std: float = 1.0) -> tuple[PlainNetwork, Tensor, Tensor]:
    """The same clouds with subspaces of what two layers make of them."""
    _, x, labels = network()
    family = LayerFamily(dense=CholeskyResidualLinear, conv=CholeskyResidualLinear)
    model = DeepSubspaces(
        (8,),
        3,
        width=10,
        depth=2,
        layer=family,
        activation=SmoothMaxMin,
        per_class=2,
        rank=3,
        std=(std,),
    )
    model.start_at(x, labels)
    folded = fold_network(model, (8,))
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    logits = model.distance_logits(x, labels)
    certified = QuadricCertifier().certify(folded, x)
    closed = -logits.detach().double().scatter(1, labels[:, None], -math.inf).amax(1)
    right = (certified.prediction == labels) & (certified.radius > 0)
    assert (closed <= certified.radius * (1 + 1e-3) + 1e-4)[right].all()
    return folded, x, labels


@pytest.mark.parametrize("std", [1.0, 0.25])
def test_radii_of_features_hold_for_inputs(std: float) -> None:
    folded, x, _ = deep_network(std)
    found = QuadricCertifier().certify(folded, x)
    assert (found.radius > 0).sum() > 80
    record = cross_check(folded, x, found.prediction, found.radius, samples=90)
    assert record["broken"] == 0
    # Features move less than inputs, but not much.
    assert 1 <= record["median_distance_over_radius"] < 1.5
    before, quadratics = split_quadratics(folded) or pytest.fail("no quadratics")
    features = PlainNetwork((quadratics,), quadratics.slope.shape[1:])
    among = QuadricCertifier().certify(features, before(x.double()))
    assert torch.equal(among.prediction, found.prediction)
    constant = sequence_bound(before.operations, (8,))
    assert 0.9 < constant * std < 1 + 1e-5
    torch.testing.assert_close(among.radius / constant, found.radius, rtol=1e-5, atol=1e-9)
    assert (found.radius <= among.radius / constant).all()


def test_certified_radii_are_the_distances_that_attacks_find() -> None:
    folded, x, _ = network()
    found = QuadricCertifier().certify(folded, x)
    rows = (found.radius > 0).nonzero()[:, 0]
    assert len(rows) > 80
    record = cross_check(folded, x, found.prediction, found.radius, samples=90)
    assert record["samples"] == len(rows)
    assert record["broken"] == 0
    assert 1 <= record["median_distance_over_radius"] < 1.001


def test_training_radii_are_below_the_certified_ones() -> None:
    _, x, labels = network()
    model = Subspaces((8,), 3, per_class=2, rank=3)
    model.start_at(x, labels)
    plain = fold_network(model, (8,))
    found = QuadricCertifier().certify(plain, x)
    closed = -model.distance_logits(x, found.prediction).detach().double()
    closed = closed.scatter(1, found.prediction[:, None], math.inf).amin(1)
    certified = found.radius > 0
    assert certified.sum() > 80
    assert (closed <= found.radius * (1 + 1e-3) + 1e-4)[certified].all()
    assert (found.radius / closed)[certified].max() > 1.01


METRICS = {
    "scales": scaling(torch.tensor([4.0, 0.25, 1.0, 2.0, 0.5, 3.0, 0.125, 1.0])),
    "frozen": scaling(torch.tensor([0.0, 0.25, 1.0, 0.0, 0.5, 3.0, 0.0, 1.0])),
    "matrix": factor(torch.randn(8, 3, generator=torch.Generator().manual_seed(5))),
}


@pytest.mark.parametrize("metric", METRICS)
def test_radii_in_a_metric_are_near_the_distances_that_attacks_find(metric: str) -> None:
    folded, x, _ = network()
    scales = Affine(torch.linspace(0.5, 2, 8), torch.linspace(-0.2, 0.1, 8))
    space = InputSpace("columns", None, METRICS[metric])
    composed = PlainNetwork((scales, *folded.operations), (8,), space)
    found = QuadricCertifier().certify(composed, x)
    assert (found.radius > 0).sum() > 80
    record = cross_check(composed, x, found.prediction, found.radius, samples=90)
    assert record["broken"] == 0
    assert 1 <= record["median_distance_over_radius"] < 1.4
    # The constant of u to the features is that of the steepest direction.
    constant = prefix_bounds(replace(composed, operations=composed.operations[:-1]))[-1]
    plain = PlainNetwork(folded.operations, (8,))
    among = QuadricCertifier().certify(plain, scales(x.double())).radius / constant
    assert (found.radius >= among * (1 - 1e-6)).all()
    assert (found.radius / among).median() > 2


def test_what_no_change_within_the_metric_moves_is_certified_far() -> None:
    # Two points that differ in the first column, which is frozen.
    frame, still = torch.zeros(2, 1, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    quadratics = Quadratics(frame, torch.zeros(2, 1), still, torch.zeros(2), 2)
    space = InputSpace("columns", None, scaling(torch.tensor([0.0, 2.0])))
    found = QuadricCertifier().certify(
        PlainNetwork((quadratics,), (2,), space), torch.tensor([[0.5, 0.0]])
    )
    assert found.radius > 100


def test_frames_need_not_be_orthonormal() -> None:
    folded, x, _ = network()
    bent = replace(quadratics_of(folded), frame=1.5 * quadratics_of(folded).frame + 0.1)
    folded = PlainNetwork((bent,), (8,))
    found = QuadricCertifier().certify(folded, x)
    assert (found.radius > 0).sum() > 20
    assert cross_check(folded, x, found.prediction, found.radius, samples=90)["broken"] == 0


def test_no_lipschitz_certificate_is_given() -> None:
    folded, x, _ = network()
    with pytest.raises(UnsoundNetworkError, match="certifier=quadratic"):
        LipschitzCertifier().certify(folded, x)
    claim = QuadricCertifier().claim(folded)
    assert (claim.proof, claim.pairwise) == ("quadric", None)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_and_overflow_are_not_certified(value: float) -> None:
    folded, _, _ = network()
    one = [t[:1].expand_as(t) for t in quadratics_of(folded).tensors().values()]
    same = PlainNetwork((Quadratics(*one, 3),), (8,))
    assert not QuadricCertifier().certify(same, torch.full((4, 8), value)).radius.any()
    far = torch.full((4, 8), 1e200, dtype=torch.float64)
    for overflowing in (folded, deep_network()[0]):
        radius = QuadricCertifier().certify(overflowing, far).radius
        assert (radius == 0).all()


def test_other_networks_get_their_lipschitz_radii(caplog: pytest.LogCaptureFixture) -> None:
    network, x = PlainNetwork((Dense(torch.eye(3)),), (3,)), torch.rand(4, 3)
    claim = QuadricCertifier().claim(network)
    assert claim.proof == "lipschitz"
    assert "certifier=quadratic does not cover the network" in caplog.text
    assert torch.equal(claim.pairwise, LipschitzCertifier().pairwise_bound(network))
    found = QuadricCertifier().certify(network, x)
    assert torch.equal(found.radius, LipschitzCertifier().certify(network, x).radius)
    assert split_quadratics(PlainNetwork((), (8,))) is None


def without_curvature(*arguments: Tensor) -> Tensor:
    ahead, turn = arguments[1:3]
    return ahead.clamp_min(0) / turn.norm(dim=2)


def without_charge(self: _Pairs, *arguments: Tensor) -> Tensor:
    _, own, other, ahead, turn, _ = arguments
    both = self.frames[torch.stack([own, other], dim=1)]
    return self.search(other, ahead, turn, both)[0] * ahead


def of_the_tangent(*arguments: Tensor) -> Tensor:
    ahead, turn = arguments[4:6]
    return (ahead / turn.norm(dim=1)).square()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("by_gradients", without_curvature),
        ("by_duality", without_charge),
        ("by_duality", of_the_tangent),
    ],
)
def test_a_fault_of_the_certifier_is_refused_by_the_checker(
    name: str, fault: Callable[..., Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Pairs, name, fault)
    for kind in ("quadric", "deep-quadric", "columns-quadric"):
        assert refused(certify(tmp_path / kind, build(kind)))


def without_constant(network: PlainNetwork, x: Tensor) -> ForwardError:
    return replace(forward_error(network, x), lipschitz=1.0)


def without_error(network: PlainNetwork, x: Tensor) -> ForwardError:
    found = forward_error(network, x)
    return replace(found, centre=0 * found.centre - 1e-6)


@pytest.mark.parametrize("fault", [without_constant, without_error])
def test_a_fault_before_the_quadratics_is_refused_by_the_checker(
    fault: Callable[..., ForwardError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadratic, "forward_error", fault)
    assert refused(certify(tmp_path / "folder", build("deep-quadric")))
