"""Gram matrices of symbols that are added up of products of taps."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustcert.norms import symbols, taps
from robustcert.norms.proof import Gram, residual_bound
from robustcert.norms.scalars import gamma
from robustcert.norms.symbols import Axis
from robustcert.norms.taps import TapProducts, symbol_grams, symbol_norm_bound

# Weights (groups, c_out, c_in, kh, kw), side, padding and dilation of maps.
CASES: list[tuple[tuple[int, ...], int, int, int]] = [
    ((1, 4, 3, 3, 3), 9, 1, 1),
    ((1, 3, 5, 3, 3), 9, 1, 1),
    ((2, 3, 3, 2, 3), 8, 2, 1),
    ((1, 2, 2, 1, 4), 14, 3, 2),
    ((1, 40, 40, 3, 3), 8, 1, 1),
]


def case(
    shape: tuple[int, ...], side: int, padding: int, dilation: int, *, kind: str = "random"
) -> tuple[NDArray[np.float64], tuple[Axis, Axis]]:
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    if kind == "highpass":
        values = np.abs(values) * (-1.0) ** np.add.outer(*map(np.arange, shape[3:]))
    axes = tuple(Axis.of(k, side, 1, padding, dilation, circular=False) for k in shape[3:])
    return values / np.abs(values).max(), (axes[0], axes[1])


def truth(weight: NDArray[np.float64], axes: tuple[Axis, Axis], point: Any) -> NDArray[Any]:
    """Gram matrices (groups, n, n) of the symbols, from their definition, in long double."""
    angles = [
        np.array([a for _, a, *_ in axis.taps]) * np.longdouble(int(f)) / axis.points
        for f, axis in zip(point, axes, strict=True)
    ]
    phase = np.exp(2j * np.pi * np.longdouble(1) * np.add.outer(*angles))
    read = weight[..., [t for t, *_ in axes[0].taps], :][..., [t for t, *_ in axes[1].taps]]
    symbol = (read.astype(np.clongdouble) * phase).sum((-2, -1))
    if symbol.shape[1] < symbol.shape[2]:
        symbol = symbol.swapaxes(1, 2)
    return np.asarray(symbol.conj().swapaxes(1, 2) @ symbol)


@pytest.mark.parametrize("kind", ["random", "highpass"])
@pytest.mark.parametrize("arguments", CASES, ids=lambda c: "x".join(map(str, c[0])))
def test_what_a_gram_matrix_is_wrong_by_is_charged(arguments: Any, kind: str) -> None:
    weight, axes = case(*arguments, kind=kind)
    parts = symbols.blocks(weight, axes)
    assert taps.is_by_products(parts, axes)
    count = 0
    for points, gram in symbol_grams(parts, axes):
        assert gram.imag is not None
        whole = (gram.real + 1j * gram.imag).unflatten(0, (len(points), -1)).numpy()
        charged = float(2 * gamma(2 * gram.rows) * gram.energy)
        for point, own in zip(points, whole, strict=True):
            known = truth(weight, axes, point)
            # A thousandth for the error of long double.
            assert np.linalg.norm((own - known).astype(complex), axis=(1, 2)).max() <= charged
            assert float(gram.energy) >= np.einsum("bii->b", known).real.max() * (1 - 1e-12)
            count += 1
        assert charged <= 1e-10 * float(gram.energy)
    assert count == len(symbols.frequencies(axes))


@pytest.mark.parametrize("arguments", CASES, ids=lambda c: "x".join(map(str, c[0])))
def test_both_kinds_of_gram_matrices_prove_the_same(
    arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, axes = case(*arguments)
    largest = max(
        float(np.linalg.eigvalsh(truth(weight, axes, point).astype(complex)).max())
        for point in symbols.frequencies(axes)
    )
    by_products = symbol_norm_bound(weight, axes)
    assert largest**0.5 * (1 - 1e-14) <= by_products <= largest**0.5 * (1 + 1e-8)
    monkeypatch.setattr(taps, "is_by_products", lambda *_: False)
    assert float(by_products) == pytest.approx(float(symbol_norm_bound(weight, axes)), rel=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 1e-9, 1.0])
def test_any_factor_is_charged(share: float) -> None:
    weight, axes = case(*CASES[0])
    for points, gram in symbol_grams(symbols.blocks(weight, axes), axes):
        known = [np.linalg.eigvalsh(truth(weight, axes, p).astype(complex)).max() for p in points]
        factor = torch.randn(len(points), 3, 3, dtype=torch.complex128) / 3
        square = Fraction(float(max(known)))
        bound = residual_bound(gram, float(share * square), factor)
        assert bound >= square * (1 - Fraction(1, 2**48))


def without_a_distance(parts: Any) -> TapProducts:
    found = OF(parts)
    found.even[2] = 0
    return found


def with_a_sine_turned(parts: Any) -> TapProducts:
    found = OF(parts)
    found.odd[1] *= -1
    return found


OF = TapProducts.of


@pytest.mark.parametrize("fault", [without_a_distance, with_a_sine_turned])
def test_a_wrong_sum_is_noticed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TapProducts, "of", fault)
    with pytest.raises(AssertionError):
        test_what_a_gram_matrix_is_wrong_by_is_charged(CASES[0], "random")


def test_symbols_stay_where_they_are_less_work() -> None:
    weight, axes = case((1, 3, 3, 5, 5), 8, 2, 1)
    parts = symbols.blocks(weight, axes)
    assert not taps.is_by_products(parts, axes)
    _, real, imag = next(symbols.symbols(parts, axes))
    _, gram = next(symbol_grams(parts, axes))
    assert torch.equal(gram.real, Gram.of(real, imag).real)
