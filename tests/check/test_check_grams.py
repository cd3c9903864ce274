"""Norms of symbols by Gram matrices of products of taps: proved, never below the norm."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcert.check.network.operation import Operation
from robustcert.check.norms import grams, symbols
from robustcert.check.norms.operation import prove
from robustcert.check.norms.symbols import Symbols, axes_of, prove_symbols

SIDE, KERNEL = 12, 3


def convolution(out: int, inner: int, kind: str = "random", scale: float = 1.0) -> Operation:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, inner, KERNEL, KERNEL)) / inner
    if kind == "residual":
        weight[:, :, 1, 1] += np.eye(out, inner)
    if kind == "gap":
        weight = weight * 0.1
        weight[:, :, 1, 1] += np.outer(rng.standard_normal(out), rng.standard_normal(inner)) / out
    if kind == "highpass":
        weight = np.abs(weight) * (-1.0) ** np.add.outer(np.arange(KERNEL), np.arange(KERNEL))
    weight = (scale * weight).astype(np.float32)
    options = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    shape = (inner, SIDE, SIDE), (out, SIDE, SIDE)
    return Operation("convolution", "", "0", options, {"weight": weight}, *shape)


def blocks(operation: Operation) -> tuple[Symbols, NDArray[np.complex128]]:
    """The symbols at all frequencies, computed without the checker's phases."""
    found = Symbols.of(operation, *axes_of(operation))
    weight = operation.wide("weight").astype(np.clongdouble)
    period = SIDE + 1
    every = []
    for f, g in found.points.tolist():
        angles = np.add.outer(f * (np.arange(KERNEL) - 1), g * (np.arange(KERNEL) - 1)) % period
        phase = np.exp(2j * np.longdouble(np.pi) * angles / period)
        every.append((weight * phase).sum((2, 3)))
    return found, np.array(every)


def by_taps(operation: Operation, bound: float) -> tuple[grams.Grams, NDArray[np.bool_]]:
    """Whether every symbol is proved to obey a bound."""
    found, limit = Symbols.of(operation, *axes_of(operation)), Fraction(bound)
    known = symbols._grams(operation, found, limit, *axes_of(operation))
    assert known is not None
    answers = [
        known.obey(*found.phases(point[None], known.shifts), limit) for point in found.points
    ]
    return known, np.array(answers)


CASES = [
    (32, 32, "random"),
    (48, 33, "random"),
    (33, 48, "random"),
    (40, 40, "residual"),
    (36, 36, "gap"),
    (32, 32, "highpass"),
]


@pytest.mark.parametrize("scale", [1.0, 2.0**-120, 3.0e30])
@pytest.mark.parametrize(("out", "inner", "kind"), CASES)
def test_symbols_are_proved_as_far_as_they_obey(
    out: int, inner: int, kind: str, scale: float
) -> None:
    operation = convolution(out, inner, kind, scale)
    norms = np.linalg.norm(blocks(operation)[1].astype(np.complex128), 2, axis=(1, 2))
    bound = float(np.median(norms))
    _, proved = by_taps(operation, bound)
    assert not proved[norms > bound * (1 + 1e-12)].any()
    assert proved[norms < bound * (1 - 1e-8)].all()


@pytest.mark.parametrize(("out", "inner", "kind"), CASES)
def test_the_error_of_a_gram_matrix_is_bounded(out: int, inner: int, kind: str) -> None:
    operation = convolution(out, inner, kind)
    found, every = blocks(operation)
    known, _ = by_taps(operation, 8.0)
    every = every if out >= inner else every.swapaxes(1, 2)
    small = min(out, inner)
    for point, block in zip(found.points, every, strict=True):
        cosine, sine = found.phases(point[None], known.shifts)
        gram = (cosine @ known.even + 1j * sine @ known.odd).reshape(small, small)
        block = block * np.longdouble(2.0) ** -known.exponent
        # In long double, whose own error is a thousandth of that of float64.
        assert np.linalg.norm((gram - block.conj().T @ block).astype(complex)) <= known.error
    assert known.error < 1e-9


@pytest.mark.parametrize(
    "factor",
    [
        lambda matrix: 0 * matrix,
        lambda matrix: np.tril(np.ones_like(matrix)),
        lambda matrix: np.broadcast_to(np.eye(matrix.shape[1]) * (1 + 0j), matrix.shape),
    ],
    ids=["zero", "ones", "unit"],
)
def test_any_factor_is_weighed(
    factor: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = convolution(32, 32, "residual")
    norms = np.linalg.norm(blocks(operation)[1].astype(np.complex128), 2, axis=(1, 2))
    monkeypatch.setattr(np.linalg, "cholesky", factor)
    _, proved = by_taps(operation, float(norms.max()) * 1.001)
    assert not proved.any()


of_taps = grams.Grams.of


def without_a_pair(weight: Any, shifts: Any, bound: Fraction) -> grams.Grams | None:
    found = of_taps(weight, shifts, bound)
    assert found is not None
    found.even[1] = 0
    return found


def with_a_sine_turned(weight: Any, shifts: Any, bound: Fraction) -> grams.Grams | None:
    found = of_taps(weight, shifts, bound)
    assert found is not None
    found.odd[2] *= -1
    return found


@pytest.mark.parametrize("fault", [without_a_pair, with_a_sine_turned])
def test_a_wrong_gram_matrix_is_noticed(
    fault: Callable[..., grams.Grams | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grams.Grams, "of", fault)
    with pytest.raises(AssertionError):
        test_symbols_are_proved_as_far_as_they_obey(40, 40, "residual", 1.0)


def test_a_bound_is_proved_by_taps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = convolution(40, 40, "residual")
    norm = float(np.linalg.norm(blocks(operation)[1].astype(complex), 2, axis=(1, 2)).max())
    monkeypatch.setattr(symbols, "proved", lambda *_: False)
    axes = axes_of(operation)
    assert prove_symbols(operation, Fraction(norm * (1 + 1e-8)), *axes).method
    assert not prove_symbols(operation, Fraction(norm * (1 - 1e-9)), *axes).method


def test_what_is_not_proved_by_taps_is_proved_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = convolution(40, 40, "residual")
    norm = float(np.linalg.norm(blocks(operation)[1].astype(complex), 2, axis=(1, 2)).max())
    monkeypatch.setattr(grams.Grams, "obey", lambda *_: False)
    assert prove(operation, norm * (1 + 1e-8)).method
    assert not prove_symbols(operation, Fraction(norm * (1 - 1e-9)), *axes_of(operation)).method


@pytest.mark.parametrize("bad", [math.nan, math.inf, 11.0])
def test_taps_above_the_bound_have_no_gram_matrices(bad: float) -> None:
    weight, shifts = np.ones((32, 32, 2)), np.array([[0, 0], [0, 1]])
    assert grams.Grams.of(weight, shifts, Fraction(10)) is not None
    weight[3, 4, 1] = bad
    assert grams.Grams.of(weight, shifts, Fraction(10)) is None
