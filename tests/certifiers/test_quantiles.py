"""Bounds with a confidence are on the safe side of exact arithmetic, and near it."""

import math
from fractions import Fraction

import pytest
import torch
from flint import arb, ctx

from robustcert.certifiers import SmoothingCertifier
from robustcert.certifiers.quantiles import (
    clopper_pearson_low,
    normal_high,
    normal_quantile_low,
    product_low,
    tail_high,
)
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork

COUNTS = [(1, 1), (1, 10), (5, 10), (10, 10), (60, 100), (99, 100), (100, 100), (350, 400)]


def exact_tail(hits: int, trials: int, p: Fraction) -> Fraction:
    return sum(
        (math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1)),
        start=Fraction(0),
    )


@pytest.mark.parametrize(("hits", "trials"), COUNTS)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.75, 1 - 1e-9])
def test_the_tail_is_bounded_from_above_and_closely(hits: int, trials: int, p: float) -> None:
    exact = exact_tail(hits, trials, Fraction(p))
    found = tail_high(hits, trials, Fraction(p))
    assert exact <= found <= exact * (1 + Fraction(1, 10**20))


@pytest.mark.parametrize(("hits", "trials"), COUNTS)
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001, 1e-12])
def test_no_larger_probability_is_claimed_than_the_hits_prove(
    hits: int, trials: int, alpha: float
) -> None:
    low = clopper_pearson_low(hits, trials, alpha)
    assert exact_tail(hits, trials, Fraction(low)) <= Fraction(alpha)
    assert exact_tail(hits, trials, Fraction(low * (1 + 1e-10) + 1e-15)) > Fraction(alpha)


def test_bounds_at_the_edges() -> None:
    assert clopper_pearson_low(0, 10, 0.01) == 0
    assert tail_high(0, 10, Fraction(1, 2)) == 1
    assert tail_high(3, 10, Fraction(0)) == 0
    # Of many trials too, the tail there is alpha and hardly less.
    for hits in (50_500, 99_000, 99_999):
        low = clopper_pearson_low(hits, 100_000, 0.001)
        tail = float(tail_high(hits, 100_000, Fraction(low)))
        assert 0.001 * (1 - 1e-6) < tail <= 0.001
    for wrong in ((11, 10, 0.01), (1, 10, 0.0), (1, 10, 1.0)):
        with pytest.raises(ValueError, match="expected 0 <= hits <= trials"):
            clopper_pearson_low(*wrong)


@pytest.mark.parametrize("q", [0.0, 1e-300, 1e-9, 0.3, 1.0, 2.5, 6.0, 8.2, 38.0])
def test_the_normal_probability_is_bounded_from_above(q: float) -> None:
    before = ctx.prec
    ctx.prec = 400
    try:
        exact = (1 + (arb(q) / arb(2).sqrt()).erf()) / 2
        found = normal_high(q)
        value = arb(found.numerator) / arb(found.denominator)
        assert value - exact >= 0 or abs(value - exact) < 1e-100
        assert value - exact < 1e-40
    finally:
        ctx.prec = before


@pytest.mark.parametrize("p", [0.5 + 2.0**-53, 0.5 + 1e-9, 0.6, 0.9, 0.999, 1 - 1e-9, 1 - 2.0**-53])
def test_the_quantile_is_below_the_true_one_and_near_it(p: float) -> None:
    q = normal_quantile_low(p)
    assert q >= 0
    assert normal_high(q) <= Fraction(p)
    assert normal_high(q * (1 + 1e-10) + 1e-15) > Fraction(p)


@pytest.mark.parametrize("p", [0.5, 0.2, 1.0, math.nan])
def test_no_other_probability_has_a_quantile_here(p: float) -> None:
    with pytest.raises(ValueError, match="above 1/2"):
        normal_quantile_low(p)


def test_products_are_rounded_down() -> None:
    for x, y in ((0.1, 3.0), (1 / 3, 0.7), (2.0, 0.25), (1e308, 10.0), (1e-320, 0.9)):
        assert Fraction(product_low(x, y)) <= Fraction(x) * Fraction(y)


@pytest.mark.parametrize("n", [137, 400])
def test_a_radius_is_at_most_what_the_hits_prove(n: int) -> None:
    # Far from the boundary every copy is a hit.
    weight = torch.zeros(2, 1)
    weight[0] = 1.0
    network = PlainNetwork((Dense(weight),), (1,))
    certifier = SmoothingCertifier(sigma=0.3, n0=5, n=n, alpha=0.01)
    radius = certifier.certify(network, torch.tensor([[100.0]])).radius.item()
    assert radius > 0
    ahead = Fraction(radius) / Fraction(0.3)
    low = float(ahead)
    low = low if Fraction(low) <= ahead else math.nextafter(low, 0.0)
    assert exact_tail(n, n, normal_high(low)) <= Fraction(0.01)
