"""Intervals of outputs: no input of the ball has an output outside, whatever rounding does."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from helpers.configs import build_model
from torch import Tensor

from robustcert.attacks import ascend
from robustcert.certifiers import IntervalCertifier, LipschitzCertifier, LipSDPCertifier, Outputs
from robustcert.certifiers import intervals as intervals_module
from robustcert.errors import UnsoundNetworkError
from robustcert.network.fold import fold_network
from robustcert.network.input_space import InputSpace, scaling
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork

RADII = (0.0, 0.01, 0.3, 2.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(activation: str = "maxmin") -> PlainNetwork:
    sizes = {"input_shape": (3,), "num_classes": 1, "mean": [0.3], "std": [0.5]}
    model = build_model("mlp", "unconstrained", activation, **sizes)
    return fold_network(model, (3,))


def holds_on_balls(certifier: IntervalCertifier) -> None:
    """No output that an attack finds within a radius is outside; some are near the ends."""
    linear = PlainNetwork((Dense(torch.randn(1, 3)),), (3,))
    scale = scaling(torch.tensor([3.0, 0.0, 0.5]))
    measured = PlainNetwork(linear.operations, (3,), InputSpace("columns", None, scale))
    for net in (network("tanh"), linear, measured):
        x = torch.rand(6, 3).double()
        f, centre = net.around(x)
        found = certifier.certify(net, x)
        reached = []
        for radius in RADII:
            lower, upper = found.interval(radius)
            for sign in (-1.0, 1.0):
                points = ascend(lambda u, f=f, s=sign: s * f(u)[:, 0], centre, radius, steps=10)
                outputs = f(points)[:, 0]
                assert (lower <= outputs).all()
                assert (outputs <= upper).all()
            reached.append((outputs - found.prediction) / (upper - found.prediction))
        # The constant of a linear network is reached.
        assert len(net.operations) > 1 or reached[-1].min() > 0.999


def encloses_exact_values(certifier: IntervalCertifier) -> None:
    """At radius 0 the interval holds the real output, also where terms cancel."""
    large = torch.full((8, 4), 3e7) + torch.rand(8, 4)
    mixed = torch.cat([torch.ones(1, 4), -torch.ones(1, 4)], 1) + 1e-7 * torch.randn(1, 8)
    first, second = Dense(large), Dense(mixed)
    x = torch.rand(40, 4)
    lower, upper = certifier.certify(PlainNetwork((first, second), (4,)), x).interval(0.0)
    for row, low, high in zip(x.tolist(), lower.tolist(), upper.tolist(), strict=True):
        exact = product(mixed, product(large, [Fraction(v) for v in row]))[0]
        assert Fraction(low) <= exact <= Fraction(high)


def product(weight: Tensor, x: list[Fraction]) -> list[Fraction]:
    return [sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]


def does_not_speak_of_overflow(certifier: IntervalCertifier) -> None:
    """Nothing is said where a value may overflow, or where the input is no number."""
    tenfold = [Dense(torch.full((1, 1), 1e38)) for _ in range(7)]
    net = PlainNetwork((Dense(torch.full((1, 2), 1e36)), *tenfold), (2,))
    found = certifier.certify(net, torch.ones(1, 2).double())
    assert torch.isfinite(found.prediction).all()
    lower, upper = found.interval(1.0)
    assert (lower == -math.inf).all()
    assert (upper == math.inf).all()
    nan = torch.tensor([[math.nan, 0.0, 1.0]])
    lower, upper = certifier.certify(network(), nan).interval(0.1)
    assert lower.item() == -math.inf
    assert upper.item() == math.inf


# The cheapest first.
CHECKS = [does_not_speak_of_overflow, encloses_exact_values, holds_on_balls]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_intervals(check: Callable[[IntervalCertifier], None]) -> None:
    check(IntervalCertifier())


def test_float32_is_enclosed_as_well() -> None:
    net, x = network(), torch.rand(20, 3)
    found = IntervalCertifier(LipschitzCertifier(arithmetic="float32")).certify(net, x)
    lower, upper = found.interval(0.1)
    moved = x + 0.1 * torch.nn.functional.normalize(torch.randn(20, 3)) * 0.99
    assert (lower <= net(moved)[:, 0].double()).all()
    assert (net(moved)[:, 0].double() <= upper).all()


FAULTS = {
    "constant halved": lambda f: replace(f, lipschitz=f.lipschitz / 2),
    "constant 0.1 % too small": lambda f: replace(f, lipschitz=f.lipschitz * 0.999),
    "error left out": lambda f: replace(f, error=0 * f.error),
    "overflow left out": lambda f: replace(f, reach=f.reach + math.inf),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: IntervalCertifier, net: PlainNetwork, x: Tensor) -> Outputs:
        return FAULTS[name](right(self, net, x))

    right = IntervalCertifier.certify
    monkeypatch.setattr(intervals_module.IntervalCertifier, "certify", faulty)

    def fails(check: Callable[[IntervalCertifier], None]) -> bool:
        torch.manual_seed(0)
        try:
            check(IntervalCertifier())
        except AssertionError:
            return True
        return False

    assert any(fails(check) for check in CHECKS)


def test_other_certifiers_and_several_outputs_are_refused() -> None:
    with pytest.raises(UnsoundNetworkError, match="certifier=lipschitz"):
        IntervalCertifier(LipSDPCertifier())
    net = PlainNetwork((Dense(torch.eye(2)),), (2,))
    with pytest.raises(UnsoundNetworkError, match="one output, but this has 2"):
        IntervalCertifier().claim(net)
