"""Certificates in a metric: balls {x + S u : |u| < r}, refused by certifiers of plain ones."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.soundness import attack_metrics
from benchmarks.soundness.forgeries import METRICS, measured
from robustcert.attacks import cross_check, pgd_survivors
from robustcert.certificate.predictor import Predictor
from robustcert.certificate.space import in_short
from robustcert.certifiers import (
    Certifier,
    CombinedCertifier,
    GlobalCertifier,
    LipschitzCertifier,
    LipSDPCertifier,
    QuadricCertifier,
    SmoothingCertifier,
)
from robustcert.config.build import build_certifier
from robustcert.errors import UnsoundNetworkError
from robustcert.margins import margins
from robustcert.metrics.gradient_ratio import gradient_ratio
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, factor, scaling
from robustcert.network.network import PlainNetwork

COVERING = (
    LipschitzCertifier,
    LipSDPCertifier,
    CombinedCertifier,
    QuadricCertifier,
    GlobalCertifier,
)
CONF = Path(__file__).parents[2] / "conf" / "certifier"
SCALE = torch.tensor([3.0, 0.0, 0.5, 1.0], dtype=torch.float64)


def affine() -> PlainNetwork:
    torch.manual_seed(0)
    return fold_network(nn.Sequential(nn.Linear(4, 3)), (4,))


def certifiers() -> list[Certifier]:
    import yaml

    nodes = [yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("*.yaml"))]
    nodes = [node if "domain" not in node else {**node, "domain": [0, 1]} for node in nodes]
    return [build_certifier(node) for node in nodes]


@pytest.mark.parametrize("kind", ["scales", "matrix"])
def test_an_affine_network_is_certified_up_to_its_exact_distance(kind: str) -> None:
    network, x = affine(), torch.randn(50, 4)
    matrix = SCALE.diag() if kind == "scales" else torch.randn(4, 2, dtype=torch.float64)
    metric = scaling(SCALE) if kind == "scales" else factor(matrix)
    network = replace(network, space=InputSpace("columns", None, metric))
    found = LipschitzCertifier().certify(network, x)
    rows = network.operations[0].weight.double() @ matrix  # type: ignore[attr-defined]
    apart = (rows[found.prediction][:, None] - rows).norm(dim=2)
    exact = (margins(network(x.double()), found.prediction) / apart).nan_to_num(nan=math.inf)
    least = exact.scatter(1, found.prediction[:, None], math.inf).amin(1)
    assert (found.radius <= least).all()
    torch.testing.assert_close(found.radius, least, rtol=1e-6, atol=1e-9)


def test_a_uniform_scale_divides_the_radii() -> None:
    network, x = affine(), torch.randn(20, 4)
    plain = LipschitzCertifier().certify(network, x).radius
    metric = scaling(torch.full((4,), 8.0))
    network = replace(network, space=InputSpace("columns", None, metric))
    torch.testing.assert_close(8 * LipschitzCertifier().certify(network, x).radius, plain)


def test_names_and_kinds_change_no_radius() -> None:
    network, x = affine(), torch.randn(20, 4)
    named = replace(network, space=InputSpace("columns", ("a", "b", "c", "d")))
    for certifier in (LipschitzCertifier(), LipSDPCertifier(iterations=2)):
        first, second = (certifier.certify(net, x).radius for net in (network, named))
        assert torch.equal(first, second)


def test_what_does_not_cover_a_metric_says_so() -> None:
    network = replace(affine(), space=InputSpace("columns", None, scaling(SCALE)))
    x = torch.randn(2, 4)
    for certifier in certifiers():
        assert certifier.covers_metric == isinstance(certifier, COVERING)
        if certifier.covers_metric:
            certifier.certify(network, x)
            continue
        said = f"{type(certifier).__name__} covers {certifier.distances_covered}, got a metric"
        with pytest.raises(UnsoundNetworkError, match=re.escape(said)):
            certifier.certify(network, x)
        with pytest.raises(UnsoundNetworkError, match=re.escape(said)):
            certifier.claim(network)


def test_an_input_that_is_rounded_has_no_radius_in_a_metric() -> None:
    network = replace(affine(), space=InputSpace("columns", None, scaling(SCALE)))
    x = torch.randn(20, 4)
    certifier = LipschitzCertifier(arithmetic="float32")
    pairwise = LipschitzCertifier().pairwise_bound(network)
    predictor = Predictor(network, pairwise, dtype="float32")
    assert (certifier.certify(network, x).radius > 0).any()
    assert (predictor(x).radius > 0).any()
    moved = x.double() + 1e-12
    assert not certifier.certify(network, moved).radius.any()
    assert not predictor(moved).radius.any()


@pytest.mark.parametrize("kind", ["scaled", "mahalanobis-smooth"])
def test_the_predictor_gives_the_radii_of_the_certificate(kind: str) -> None:
    network = measured(kind)
    x = 3 * torch.randn(30, 6)
    found = LipschitzCertifier().certify(network, x)
    predictor = Predictor(network, LipschitzCertifier().pairwise_bound(network))
    said = predictor(x)
    assert torch.equal(said.label, found.prediction)
    torch.testing.assert_close(said.radius, found.radius, rtol=1e-8, atol=1e-9)
    assert predictor.change is not None
    assert in_short(predictor.change) in repr(predictor)
    with pytest.raises(ValueError, match="in their own units, got uint8"):
        predictor(torch.zeros(2, 6, dtype=torch.uint8))


def test_attacks_move_no_frozen_feature() -> None:
    seen: list[Tensor] = []

    class Watching(PlainNetwork):
        def __call__(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().__call__(x)

    space = InputSpace("columns", None, scaling(SCALE))
    plain = affine()
    network = Watching(plain.operations, plain.input_shape, space)
    x = torch.randn(1, 4).double()  # gradients are float32
    label = plain(x).argmax(1)
    pgd_survivors(network, x, label, [0.1, 5.0], steps=3)
    cross_check(network, x, label, torch.tensor([0.01]).double(), ddn_restarts=2)
    found = torch.cat(seen)
    assert (found[:, 1] == x[0, 1]).all()
    assert (found[:, 0] != x[0, 0]).any()


def test_gradients_in_the_metric_do_not_exceed_the_constants() -> None:
    network = measured("scaled")
    pairwise = LipschitzCertifier().pairwise_bound(network)
    ratio = gradient_ratio(network, torch.randn(50, 6), pairwise)
    assert 0.2 < float(ratio.max()) <= 1


@pytest.mark.slow
def test_certificates_in_metrics_are_attacked_and_larger_ones_are_broken() -> None:
    options = ["--certificates", "3000", "--ddn", "300", "--networks", "1", "--restarts", "2"]
    assert attack_metrics.main(options) == 0
    assert attack_metrics.main([*options[:1], "300", *options[2:], "--factor", "1.5"]) == 1


def test_every_kind_of_metric_is_there() -> None:
    spaces: list[Any] = [measured(kind).space for kind in METRICS]
    assert all(space.metric is not None for space in spaces)
    assert not SmoothingCertifier.covers_metric
