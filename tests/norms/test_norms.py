"""Norm bounds against exact arithmetic and materialised operators, estimates against bounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert import norms
from robustcert.errors import NormBoundError
from robustcert.norms import convolution, lines, proof, symbols
from robustcert.norms.convolution import circular_conv_norm_bound, conv_norm_bound
from robustcert.norms.dense import dense_norm_bound, gram_bound, row_distance_bounds
from robustcert.norms.estimates import (
    conv_norm_lower,
    conv_power_iteration,
    gram_iteration,
    norm_lower,
    power_iteration,
)
from robustcert.norms.proof import (
    Gram,
    factorise,
    residual_bound,
    scaled,
    squared_norm_bound,
)
from robustcert.norms.scalars import product_up, sqrt_up, sum_up
from robustcert.norms.taps import symbol_norm_bound


def integers(array: np.ndarray) -> tuple[np.ndarray, Fraction]:
    """Python integers and a unit with ``array == integers * unit``, exactly."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    least = int(exponent.min())
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    return whole << (exponent - least).astype(object), Fraction(2) ** (least - 53)


def exact_square(weight: Tensor) -> Fraction:
    """Squared Rayleigh quotient of the leading singular vector, in rationals: never high."""
    matrix = weight.double()
    matrix = matrix / matrix.abs().max()
    vector = np.rint(torch.linalg.svd(matrix)[2][0].numpy() * 2.0**40).astype(np.int64)
    whole, unit = integers(weight.double().numpy())
    image = whole @ vector.astype(object)
    return Fraction((image**2).sum(), (vector.astype(object) ** 2).sum()) * unit**2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def kernel_of_ones(n: int = 64) -> Tensor:
    """An all-ones start sees norm 1, the true norm is 16 sqrt 2."""
    weight = torch.eye(n)
    weight[:2] = 0
    weight[0, 0], weight[0, 1], weight[1, :2] = 16.0, -16.0, 0.5
    return weight


def hidden_gap(n: int = 64, sigma: float = 1.3) -> Tensor:
    diagonal = torch.ones(n)
    diagonal[0] = sigma
    return orthogonal(n, 1) * diagonal @ orthogonal(n, 2)


MATRICES: dict[str, Tensor] = {
    "gaussian": randn(40, 60),
    "tall": randn(300, 7),
    "row": randn(1, 50),
    "column": randn(50, 1),
    "scalar": torch.tensor([[-3.0]]),
    "orthogonal": orthogonal(48),
    "hadamard": torch.ones(1, 1)
    .kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    .kron(torch.ones(4, 4)),
    "start_in_kernel": kernel_of_ones(),
    "hidden_gap": hidden_gap(),
    "row_scales": randn(40, 40) * 2.0 ** torch.linspace(-40, 40, 40)[:, None],
    "column_scales": randn(40, 40) * 2.0 ** torch.linspace(-40, 40, 40),
    "extreme_range": torch.tensor([[1e38, 1e-45], [1e-45, 1e-38]]),
    "zero_row_sums": randn(30, 30) - randn(30, 30).mean(1, keepdim=True),
    "1e-30": randn(30, 20) * 1e-30,
    "denormal": randn(30, 20) * 1e-42,
    "1e18": randn(30, 20) * 1e18,
    "1e30": randn(30, 20) * 1e30,
    "antisymmetric": randn(31, 31) - randn(31, 31).T,
    "rank_one": randn(30, 1) @ randn(1, 30, seed=1),
    "single_entry": torch.zeros(9, 9).index_put(
        (torch.tensor(4), torch.tensor(2)), torch.tensor(0.1)
    ),
    "half": randn(20, 30).half(),
    "bfloat16": randn(20, 30).bfloat16(),
    "double": randn(20, 30).double() / 3,
    "double_range": torch.tensor([[1.0, 1e-200], [1e-120, 1.0]], dtype=torch.float64),
    "above_direct": randn(280, 270),
}


@pytest.mark.parametrize("name", MATRICES)
def test_dense_bound_is_tight_and_not_below_an_exact_quotient(name: str) -> None:
    weight = MATRICES[name]
    least = exact_square(weight)
    bound = dense_norm_bound(weight)
    assert Fraction(bound) ** 2 >= least
    assert Fraction(bound) ** 2 <= least * (1 + Fraction(1, 10**5)) ** 2
    assert dense_norm_bound(weight.T) == pytest.approx(bound, rel=1e-5)
    second = gram_bound(weight, 12)
    assert Fraction(second) ** 2 >= least
    assert second <= bound * min(weight.shape) ** 2.0**-12 * (1 + 1e-9)
    assert 0 <= bound - norm_lower(weight) <= 1e-4 * bound


def test_dense_bound_accepts_numpy_and_parameters() -> None:
    weight = torch.nn.Parameter(randn(5, 4))
    array = weight.detach().numpy()
    array.flags.writeable = False
    assert dense_norm_bound(weight) == dense_norm_bound(array)


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("seed", range(30))
def test_garbage_factors_are_sound(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "BLOCK", block)
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 12, 2)
    weight = rng.standard_normal((1, m, n))
    truth = np.linalg.norm(weight[0], 2) ** 2
    gram = Gram.of(weight)
    for t in (0.0, truth * rng.uniform(0.0, 1.5), -1.0, 1e-300, 1e6):
        factor = torch.from_numpy(rng.standard_normal((1, n, n)) * 10.0 ** rng.uniform(-200, 3))
        assert float(residual_bound(gram, t, factor)) >= truth * (1 - 1e-13)
    complex_weight = (rng.standard_normal((2, m, n)), rng.standard_normal((2, m, n)))
    truth = max(np.linalg.norm(a + 1j * b, 2) for a, b in zip(*complex_weight, strict=True)) ** 2
    factor = torch.from_numpy(rng.standard_normal((2, n, n)) + 1j * rng.standard_normal((2, n, n)))
    for t in (0.0, truth * rng.uniform(0.0, 1.5)):
        assert float(residual_bound(Gram.of(*complex_weight), t, factor)) >= truth * (1 - 1e-13)


@pytest.mark.parametrize("imaginary", [False, True])
def test_bounds_do_not_depend_on_blocks(imaginary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, other = rng.standard_normal((2, 3, 17, 14))
    imag = other if imaginary else None
    truth = max(np.linalg.norm(real + 1j * other * imaginary, 2, axis=(1, 2))) ** 2
    for block in (1, 4, 7, 13, 14, 256):
        for direct in (4, 256):  # Lanczos estimates, direct ones
            monkeypatch.setattr(proof, "BLOCK", block)
            monkeypatch.setattr(proof, "DIRECT_SIZE", direct)
            bound = float(squared_norm_bound(real, imag))
            assert truth * (1 - 1e-13) <= bound <= truth * (1 + 1e-5)


@pytest.mark.parametrize("imaginary", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_band_is_bounded_like_any_matrix(
    seed: int, imaginary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows that read few columns, some none, and columns that nobody reads.
    rng = np.random.default_rng(seed)
    rows, columns, reach = 40, int(rng.integers(20, 40)), int(rng.integers(1, 8))
    offset = np.arange(columns) - (np.arange(rows) * columns // rows)[:, None]
    inside = (offset >= 0) & (offset < reach) & (rng.random((rows, 1)) < 0.9)
    inside[:, int(rng.integers(columns))] = False
    real, imag = rng.standard_normal((2, 3, rows, columns)) * inside
    arguments = (real, imag) if imaginary else (real, None)
    truth = max(np.linalg.norm(real + 1j * imag * imaginary, 2, axis=(1, 2))) ** 2
    gram = Gram.of(*arguments)
    assert gram.band < reach
    exact_gram = (real + 1j * imag * imaginary).conj().swapaxes(1, 2) @ (
        real + 1j * imag * imaginary
    )
    for block in (1, 3, 8, 256):
        monkeypatch.setattr(proof, "BLOCK", block)
        monkeypatch.setattr(proof, "LEAST_BLOCK", block)
        # Three matrices count as many where blocks are of three columns.
        monkeypatch.setattr(proof, "LEAST_OF_MANY", block)
        monkeypatch.setattr(proof, "MANY", block)
        assert np.allclose(Gram.of(*arguments).tensor().numpy(), exact_gram, atol=1e-12)
        bound = float(squared_norm_bound(*arguments))
        assert truth * (1 - 1e-13) <= bound <= truth * (1 + 1e-5)
        # What is factorised is all of the residual that there is.
        found = factorise(gram, 1.5 * truth)
        assert found.found.all()
        assert float(found.rest.max()) < 1e-24 * truth**2
        assert found.energy.numpy() == pytest.approx(
            1.5 * truth * columns - (abs(real) ** 2 + imaginary * imag**2).sum((1, 2))
        )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.999, 1.001, 10.0])
def test_a_bound_that_is_known_already_costs_no_other_bound(share: float) -> None:
    # Some of the matrices are below it, or all, or none.
    rng = np.random.default_rng(1)
    real, imag = (
        rng.standard_normal((2, 5, 9, 6)) * np.array([0.1, 0.5, 1.0, 2.0, 3.0])[:, None, None]
    )
    truth = max(np.linalg.norm(real + 1j * imag, 2, axis=(1, 2))) ** 2
    bound = float(squared_norm_bound(real, imag, floor=share * truth))
    largest = max(1.0, share) * truth
    assert truth * (1 - 1e-13) <= bound <= largest * (1 + 1e-8)


def test_symbols_come_by_their_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = randn(4, 3, 3, 3, seed=5).numpy().astype(np.float64)[None]
    axes = (symbols.Axis.of(3, 9, 1, 1, 1, circular=False),) * 2
    taps = symbols.blocks(weight, axes)
    (_, *whole) = next(symbols.symbols(taps, axes))
    monkeypatch.setattr(symbols, "CHUNK_BYTES", 1)
    parts = [part[1:] for part in symbols.symbols(taps, axes)]
    energies = [float((r**2).sum() + (i**2).sum()) for r, i in parts]
    assert len(parts) == len(whole[0]) > 40
    assert energies == pytest.approx(sorted(energies, reverse=True))
    assert sum(energies) == pytest.approx((whole[0] ** 2).sum() + (whole[1] ** 2).sum())
    known = symbol_norm_bound(weight, axes)
    monkeypatch.undo()
    assert float(known) == pytest.approx(float(symbol_norm_bound(weight, axes)), rel=1e-8)


def test_a_bad_factor_of_a_true_bound_is_charged_its_residual() -> None:
    gram = Gram.of(np.eye(3)[None])
    factor = torch.linalg.cholesky(torch.eye(3, dtype=torch.float64)[None])
    assert float(residual_bound(gram, 2.0, factor)) == pytest.approx(2.0)
    assert float(residual_bound(gram, 2.0, 0 * factor)) == pytest.approx(2.0 + math.sqrt(3))
    with pytest.raises(NormBoundError):
        residual_bound(gram, 2.0, factor * float("nan"))
    with pytest.raises(NormBoundError):
        residual_bound(gram, float("nan"), factor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "bound",
    [
        dense_norm_bound,
        gram_bound,
        row_distance_bounds,
        norm_lower,
        lambda w: conv_norm_bound(w[:, :, None, None], 4),
    ],
)
def test_nan_and_infinity_are_refused(bound: Callable[[Tensor], object], bad: float) -> None:
    weight = randn(4, 3)
    weight[1, 2] = bad
    with pytest.raises(NormBoundError, match="NaN or infinity"):
        bound(weight)


def test_what_cannot_be_proved_is_refused() -> None:
    with pytest.raises(NormBoundError, match="range"):
        dense_norm_bound(torch.full((2, 2), 1e300, dtype=torch.float64))
    with pytest.raises(NormBoundError, match="range"):
        dense_norm_bound(torch.full((2, 2), 1e-310, dtype=torch.float64))
    with pytest.raises(ValueError, match="entries"):
        dense_norm_bound(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="shape"):
        dense_norm_bound(torch.zeros(3))
    with pytest.raises(ValueError, match="floating"):
        dense_norm_bound(torch.ones(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="fits"):
        conv_norm_bound(torch.ones(1, 1, 5, 5), 3)
    with pytest.raises(ValueError, match="groups"):
        conv_norm_bound(torch.ones(3, 1, 1, 1), 3, groups=2)


def test_flushed_denormals_are_noticed() -> None:
    weight = randn(4, 4) * 1e-42
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        with pytest.raises(NormBoundError, match="denormal"):
            dense_norm_bound(weight)
    finally:
        torch.set_flush_denormal(False)


def test_zero_maps() -> None:
    assert dense_norm_bound(-torch.zeros(3, 4)) == 0.0
    assert gram_bound(torch.zeros(3, 4)) == 0.0
    assert norm_lower(torch.zeros(3, 4)) == 0.0
    assert conv_norm_bound(torch.zeros(2, 3, 3, 3), 5) == 0.0
    # Both taps read padding only.
    assert conv_norm_bound(torch.ones(1, 1, 2, 2), 1, padding=1, dilation=2) == 0.0


def matrix_of(weight: Tensor, size: tuple[int, int], **options: object) -> Tensor:
    """The convolution as a matrix: its responses to all unit impulses, exact in float64."""
    channels = weight.shape[1] * int(options.get("groups", 1))  # type: ignore[call-overload]
    impulses = torch.eye(channels * size[0] * size[1], dtype=torch.float64)
    impulses = impulses.reshape(-1, channels, *size)
    return F.conv2d(impulses, weight.double(), **options).flatten(1).T  # type: ignore[arg-type]


def by_symbols(weight: Tensor, *args: object, **options: object) -> float:
    """:func:`conv_norm_bound` without its look at the matrix, whole or along one dimension."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "mixed_norm_bound", lambda *_: None)
        patch.setattr(convolution, "operator_norm_bound", lambda *_: None)
        return conv_norm_bound(weight, *args, **options)  # type: ignore[arg-type]


def alternating(weight: Tensor) -> Tensor:
    """Signs that put the largest gain at the highest frequencies."""
    sign = 1 - 2 * (torch.arange(weight.shape[2])[:, None] + torch.arange(weight.shape[3])) % 2
    return weight.abs() * sign


@pytest.mark.parametrize("seed", range(80))
def test_convolution_bounds_hold_for_the_materialised_operator(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> tuple[int, int]:
        first, second = rng.integers(low, high + 1, 2)
        return int(first), int(second)

    groups, size = int(rng.integers(1, 4)), draw(1, 9)
    options = {"stride": draw(1, 3), "padding": draw(0, 4), "dilation": draw(1, 3)}
    weight = randn(
        groups * int(rng.integers(1, 4)), int(rng.integers(1, 4)), *draw(1, 5), seed=seed
    )
    weight = alternating(weight) if seed % 2 else weight
    try:
        matrix = matrix_of(weight, size, groups=groups, **options)
    except RuntimeError:
        with pytest.raises(ValueError, match="fits"):
            conv_norm_bound(weight, size, groups=groups, **options)
        return
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    symbol = by_symbols(weight, size, groups=groups, **options)
    assert symbol >= truth * (1 - 1e-13)
    bound = conv_norm_bound(weight, size, groups=groups, **options)
    assert truth * (1 - 1e-13) <= bound <= min(symbol * (1 + 1e-11), truth * (1 + 1e-6))
    lower = conv_norm_lower(weight, size, groups=groups, **options)
    assert 0.9 * truth <= lower <= truth * (1 + 1e-12)
    vector = randn(1, weight.shape[1] * groups, *size, seed=1)
    estimate, _ = conv_power_iteration(weight, vector, 5, groups=groups, **options)
    assert estimate <= bound * (1 + 1e-5)
    assert bound >= float(matrix.abs().max())


@pytest.mark.parametrize("seed", range(40))
def test_bounds_by_symbols_along_one_dimension(seed: int) -> None:
    """Norm of the matrix <= symbols along one dimension <= symbols along both, in both orders."""
    rng = np.random.default_rng(seed)
    groups, kernel, size = int(rng.integers(1, 3)), rng.integers(1, 5, 2), rng.integers(3, 8, 2)
    stride, padding, dilation = rng.integers(1, 4, 2), rng.integers(0, 4, 2), rng.integers(1, 3, 2)
    weight = randn(groups * int(rng.integers(1, 4)), int(rng.integers(1, 4)), *kernel, seed=seed)
    numbers = [kernel, size, stride, padding, dilation]
    try:
        vertical, horizontal = (
            symbols.Axis.of(*(int(v[d]) for v in numbers), circular=False) for d in (0, 1)
        )
    except ValueError:
        return
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    pairs = {key: (int(value[0]), int(value[1])) for key, value in options.items()}
    matrix = matrix_of(weight, (int(size[0]), int(size[1])), groups=groups, **pairs)
    values = weight.double().numpy().reshape(groups, -1, *weight.shape[1:])
    rows = convolution.unrolled(values, vertical, 3)
    columns = convolution.unrolled(values, horizontal, 4)
    whole = convolution.unrolled(rows, horizontal, 4)[..., 0, 0]
    # Those of the matrix are (channel, y, x) within a group, those of the whole (x, y, channel).
    blocks = matrix.view(
        *(groups, len(weight) // groups, vertical.outputs, horizontal.outputs),
        *(groups, weight.shape[1], vertical.inputs, horizontal.inputs),
    )
    for group in range(groups):
        own = blocks[group, :, :, :, group].permute(2, 1, 0, 5, 4, 3)
        assert np.array_equal(whole[group], own.reshape(whole[group].shape).numpy())
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    both = symbol_norm_bound(values, (vertical, horizontal))
    along = [
        symbol_norm_bound(rows, (lines.PIXEL, horizontal)),
        symbol_norm_bound(columns, (vertical, lines.PIXEL)),
    ]
    for bound in along:
        assert truth * (1 - 1e-13) <= bound <= both * (1 + Fraction(1, 10**8))
    mixed = convolution.mixed_norm_bound(values, (vertical, horizontal))
    if mixed is not None:
        assert truth * (1 - 1e-13) <= mixed
        assert any(float(mixed) == pytest.approx(float(bound), rel=1e-8) for bound in along)


def assert_zero_beyond(gram: Gram) -> None:
    """Units more than the band apart share nothing."""
    unit = np.arange(gram.real.shape[-1]) // gram.unit
    beyond = np.abs(unit[:, None] - unit) > gram.band
    assert not any(part.numpy()[:, beyond].any() for part in gram.parts)


@pytest.mark.parametrize("unit", [1, 2, 5])
@pytest.mark.parametrize("imaginary", [False, True])
def test_nothing_is_read_that_was_not_written(
    unit: int, imaginary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(unit)
    units = np.arange(40) // unit
    inside = np.abs(units[:, None] - units) <= 1
    real, imag = rng.standard_normal((2, 3, 40, 40)) * np.tril(inside)
    gram = replace(Gram.of(real, imag if imaginary else None), band=2, unit=unit)
    monkeypatch.setattr(proof, "BLOCK", 8)
    monkeypatch.setattr(proof, "LEAST_BLOCK", 4)
    empty = Tensor.new_empty
    monkeypatch.setattr(
        Tensor, "new_empty", lambda self, *shape: empty(self, *shape).fill_(math.nan)
    )
    t = 1.5 * float(np.linalg.eigvalsh(gram.tensor().numpy()).max())
    assert float(factorise(gram, t).rest.max()) < 1e-24 * t**2


@pytest.mark.parametrize("seed", range(24))
def test_products_of_kernel_rows_are_those_of_the_whole_matrix(seed: int) -> None:
    """Eigenvalues of T(w)^H T(w) from products of K_t(w), and its error: Note [one dimension]."""
    rng = np.random.default_rng(seed)
    groups, kernel, stride = int(rng.integers(1, 3)), *rng.integers(2, 5, 1), *rng.integers(1, 3, 1)
    channels = rng.integers(1, 5, 2)
    weight = rng.standard_normal((groups, *channels, kernel, kernel))
    axis = symbols.Axis.of(int(kernel), 7, int(stride), int(rng.integers(0, 3)), 1, circular=False)
    for kept, pair in enumerate(((lines.PIXEL, axis), (axis, lines.PIXEL))):
        own = lines.Lines.of(weight, (axis, axis), kept)
        taps = symbols.blocks(convolution.unrolled(weight, axis, 3 + kept), pair)
        assert own.error >= symbols.symbol_error(taps)
        for frequency in range(axis.points // 2 + 1):
            point = np.zeros((1, 2), dtype=np.int64)
            point[0, 1 - kept] = frequency
            ((_, real, imag),) = symbols.symbols(taps, pair, point)
            imag = np.zeros_like(real) if imag is None else imag
            whole, gram = Gram.of(real, imag), own.gram([frequency])
            assert gram.rows == whole.rows
            assert_zero_beyond(gram)
            # A band of units leaves what a full matrix leaves.
            t = 1.2 * float(np.linalg.eigvalsh(gram.tensor().numpy()).max())
            banded, full = factorise(gram, t), factorise(replace(gram, band=10**6, unit=1), t)
            assert banded.found.all()
            assert full.found.all()
            assert banded.energy.numpy() == pytest.approx(full.energy.numpy())
            assert max(float(banded.rest.max()), float(full.rest.max())) < 1e-24 * t**2
            assert float(gram.energy) == pytest.approx(float(whole.energy))
            found, expected = (np.linalg.eigvalsh(g.tensor().numpy()) for g in (gram, whole))
            assert found == pytest.approx(expected, abs=1e-11 * float(whole.energy))


def test_short_maps_are_bounded_closely() -> None:
    # The symbols along both dimensions are 5 % too large here, and the matrix has 1152 rows.
    weight = randn(8, 8, 5, 5, seed=3)
    bound = conv_norm_bound(weight, 16)
    lower = conv_norm_lower(weight, 16, steps=200)
    assert lower <= bound <= 1.03 * lower < by_symbols(weight, 16)


def test_only_zero_padding_is_cut_off_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    # Around a circle the wrapped taps read the signal: its border must not be taken for zeros.
    for name in ("operator_norm_bound", "mixed_norm_bound", "unrolled"):
        monkeypatch.setattr(convolution, name, lambda *_: pytest.fail("used on a circle"))
    assert circular_conv_norm_bound(torch.ones(1, 1, 3, 3), 4) == pytest.approx(9.0)


@pytest.mark.parametrize("seed", range(20))
def test_circular_bounds_are_attained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stride, outputs = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    size, kernel, dilation = stride * outputs, int(rng.integers(1, 6)), int(rng.integers(1, 3))
    weight = randn(int(rng.integers(1, 4)), int(rng.integers(1, 4)), kernel, kernel, seed=seed)
    impulses = torch.eye(weight.shape[1] * size**2, dtype=torch.float64)
    impulses = impulses.reshape(-1, weight.shape[1], size, size)
    reach = dilation * (kernel - 1)
    padded = impulses.repeat(1, 1, 1 + reach, 1 + reach)[:, :, : size + reach, : size + reach]
    image = F.conv2d(padded, weight.double(), stride=stride, dilation=dilation).flatten(1)
    truth = float(torch.linalg.matrix_norm(image, 2))
    bound = circular_conv_norm_bound(weight, size, stride, dilation=dilation)
    assert truth * (1 - 1e-13) <= bound <= truth * (1 + 1e-6)


def test_circular_stride_must_divide_the_size() -> None:
    with pytest.raises(ValueError, match="multiple"):
        circular_conv_norm_bound(torch.ones(1, 1, 3, 3), 5, stride=2)


@pytest.mark.parametrize("seed", range(200))
def test_wrapped_reads_find_zeros_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, size, stride, dilation = (int(v) for v in rng.integers(1, (7, 12, 5, 4)))
    padding = int(rng.integers(0, 6))
    try:
        axis = symbols.Axis.of(kernel, size, stride, padding, dilation, circular=False)
    except ValueError:
        return
    length = -(-size // stride)
    for tap, shift, residue, *_ in axis.taps if len({tap[1] for tap in axis.taps}) > 1 else ():
        assert axis.points >= max(length, axis.outputs)
        for output in range(axis.outputs):
            position = (output + shift) % axis.points
            read = stride * position + residue if position < length else size
            true = stride * output + dilation * tap - padding
            assert read == true if 0 <= true < size else read >= size


def test_the_period_holds_all_outputs() -> None:
    # The outer taps read padding only; five outputs come from one input.
    axis = symbols.Axis.of(4, 1, 1, 5, 2, circular=False)
    assert [tap[0] for tap in axis.taps] == [1, 2]
    assert axis.points >= axis.outputs == 5


def high_pass() -> Tensor:
    row = torch.tensor([1.0, -2.0, 1.0])
    return torch.outer(row, row)[None, None]


def test_the_grid_of_the_input_is_not_enough_for_zero_padding() -> None:
    # 1-D: tridiagonal Toeplitz, norm 2 + 2 cos(pi / (n + 1)); the 3-point grid sees 3 only.
    truth = (2 + math.sqrt(2)) ** 2
    assert circular_conv_norm_bound(high_pass(), 3) == pytest.approx(9.0)
    assert conv_norm_bound(high_pass(), 3, padding=1) == pytest.approx(truth, rel=1e-8)
    assert by_symbols(high_pass(), 3, padding=1) >= truth


@pytest.mark.parametrize("size", [5, 8, 16, 24])
def test_the_norm_grows_with_the_input(size: int) -> None:
    truth = (2 + 2 * math.cos(math.pi / (size + 1))) ** 2
    bound = conv_norm_bound(high_pass(), size, padding=1)
    assert truth * (1 - 1e-14) <= bound <= truth * (1 + 1e-8)
    assert conv_norm_bound(high_pass(), size + 1, padding=1) > truth
    assert truth <= by_symbols(high_pass(), size, padding=1) <= 16 * (1 + 1e-8)


def test_a_large_map_costs_a_quarter_percent() -> None:
    weight = randn(3, 3, 3, 3)
    bound = conv_norm_bound(weight, 200, padding=1)
    fine = torch.fft.fft2(weight.double(), (512, 512)).permute(2, 3, 0, 1)
    supremum = float(torch.linalg.matrix_norm(fine, 2).max())
    assert supremum <= bound <= 1.0025 * supremum
    assert conv_norm_lower(weight, 200, padding=1) <= bound


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_coarse_grid_factor(degree: int) -> None:
    """A nonnegative trigonometric polynomial between the grid points stays below the factor."""
    points, factor = symbols.grid(10**6, degree)
    exact = (1 + 1 / math.cos(math.pi * degree / points)) / 2
    assert exact <= factor <= exact * (1 + 1e-8)
    # The extremal polynomial: 1 + cos(degree w), its maximum half-way between two points.
    grid = 2 * math.pi * (np.arange(points) + 0.5) / points
    assert (1 + np.cos(degree * grid)).max() * float(factor) >= 2


def test_pointwise_and_depthwise_convolutions() -> None:
    weight = randn(20, 30)
    for stride in (1, 2):
        bound = conv_norm_bound(weight[:, :, None, None], 9, stride)
        assert bound == pytest.approx(dense_norm_bound(weight), rel=1e-8)
    kernels = randn(64, 1, 3, 3)
    each = [by_symbols(kernel[None], 6, padding=1) for kernel in kernels]
    assert by_symbols(kernels, 6, padding=1, groups=64) == pytest.approx(max(each), rel=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-40, 1e30])
def test_convolution_bounds_scale(scale: float) -> None:
    weight = randn(4, 3, 3, 3) * scale
    truth = float(torch.linalg.matrix_norm(matrix_of(weight, (6, 6), padding=1) / scale, 2)) * scale
    assert truth * (1 - 1e-12) <= by_symbols(weight, 6, padding=1) <= 1.2 * truth


def test_conjugate_pairs_cover_the_grid() -> None:
    for height, width in [(1, 1), (4, 4), (5, 3), (6, 1), (2, 7)]:
        axes = tuple(symbols.Axis([], 1, 1, points, Fraction(1)) for points in (height, width))
        kept = symbols.frequencies(axes)  # type: ignore[arg-type]
        mirrored = -kept % np.array([height, width])
        assert len(np.unique(np.concatenate((kept, mirrored)), axis=0)) == height * width


def test_roots_of_unity_are_within_their_allowance() -> None:
    flint = pytest.importorskip("flint")
    flint.ctx.prec = 128
    for denominator in (1, 2, 3, 25, 49, 65 * 33, 64 * 64):
        numerators = np.unique(np.linspace(-3 * denominator, 3 * denominator, 97).astype(np.int64))
        cosine, sine = symbols.roots_of_unity(numerators, denominator)
        for numerator, c, s in zip(numerators.tolist(), cosine, sine, strict=True):
            angle = flint.fmpq(2 * numerator, denominator)
            assert abs(flint.arb.cos_pi_fmpq(angle) - flint.arb(float(c))) < 2.0**-50
            assert abs(flint.arb.sin_pi_fmpq(angle) - flint.arb(float(s))) < 2.0**-50


def test_median_excess_of_dense_bounds() -> None:
    excess = []
    for seed in range(40):
        weight = randn(20 + seed, 64, seed=seed)
        excess.append(dense_norm_bound(weight) / math.sqrt(exact_square(weight)) - 1)
    assert np.median(excess) < 1e-8
    assert max(excess) < 1e-6


def test_gram_iteration_gradient_is_that_of_the_norm() -> None:
    weight = randn(6, 9).double().requires_grad_()
    bound = gram_iteration(weight, 12)
    truth = torch.linalg.matrix_norm(weight, 2)
    assert bound.item() == pytest.approx(truth.item(), rel=1e-3)
    expected = torch.autograd.grad(truth, weight)[0]
    torch.testing.assert_close(torch.autograd.grad(bound, weight)[0], expected, atol=1e-2, rtol=0)
    assert torch.autograd.gradcheck(lambda w: gram_iteration(w, 3), (weight,))


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1.0, 1e30, 1e37])
def test_gram_iteration_is_finite_at_every_scale(scale: float) -> None:
    weight = (randn(12, 7) * scale).requires_grad_()
    bound = gram_iteration(weight, 6)
    bound.backward()
    truth = float(torch.linalg.matrix_norm(weight.detach().double(), 2))
    # One part in 1e5, or the spacing of denormal numbers.
    slack = 1e-5 * truth + 2.0**-148
    assert truth - slack <= bound.item() <= truth * 7**2.0**-7 + slack
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert bool(weight.grad.any()) == (scale > 0)


def test_power_iteration_converges_from_below_and_is_differentiable() -> None:
    weight = randn(20, 30).requires_grad_()
    norm = dense_norm_bound(weight)
    estimates, vector = [], randn(30)
    for _ in range(6):
        estimate, vector = power_iteration(weight, vector, 20)
        estimates.append(estimate.item())
        assert not vector.requires_grad
    # Once converged, float32 rounding moves it either way.
    assert all(after >= before * (1 - 2e-7) for before, after in pairwise(estimates))
    assert norm * (1 - 1e-4) <= estimates[-1] <= norm * (1 + 1e-6)
    estimate.backward()
    left, _, right = torch.linalg.svd(weight.detach())
    torch.testing.assert_close(weight.grad, torch.outer(left[:, 0], right[0]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-7, 1e30, 1e37])
def test_power_iteration_is_not_biased_by_scale(scale: float) -> None:
    weight = torch.eye(5) * scale
    estimate, _ = power_iteration(weight, randn(5), 3)
    assert float(estimate) == pytest.approx(float(weight[0, 0]), rel=1e-5)


def test_power_iteration_is_only_an_estimate() -> None:
    estimate, vector = power_iteration(kernel_of_ones(), torch.ones(64), 100)
    assert float(estimate) == pytest.approx(1.0)
    assert dense_norm_bound(kernel_of_ones()) >= 16 * math.sqrt(2)
    antisymmetric = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    estimate, vector = power_iteration(antisymmetric, torch.ones(2), 3)
    assert estimate == 0
    assert vector.isfinite().all()


def test_power_iteration_of_zero_has_a_finite_gradient() -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    estimate, vector = power_iteration(weight, torch.ones(4), 2)
    estimate.backward()
    assert estimate == 0
    assert torch.linalg.vector_norm(vector) == 1
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert power_iteration(torch.ones(3, 4), torch.zeros(4), 2)[0] == 0


def test_conv_power_iteration_finds_the_norm() -> None:
    weight = randn(4, 3, 3, 3).requires_grad_()
    options = {"stride": (2, 1), "padding": (1, 2)}
    truth = float(torch.linalg.matrix_norm(matrix_of(weight.detach(), (8, 7), **options), 2))
    estimate, _ = conv_power_iteration(weight, randn(1, 3, 8, 7), 300, **options)  # type: ignore[arg-type]
    assert estimate.item() == pytest.approx(truth, rel=2e-3)
    estimate.backward()
    assert weight.grad is not None
    # The norm is homogeneous of degree 1 (Euler).
    assert (weight.grad * weight).sum().item() == pytest.approx(estimate.item(), rel=1e-4)


def test_row_distances_are_never_low() -> None:
    weight = randn(12, 50) * 2.0 ** torch.linspace(-20, 20, 12)[:, None]
    weight[3] = weight[7]
    weight[5] = weight[6]
    weight[5, 0] = torch.nextafter(weight[6, 0], torch.tensor(9.0))
    bounds = row_distance_bounds(weight)
    whole, unit = integers(weight.numpy())
    for i in range(12):
        for j in range(12):
            square = Fraction(((whole[i] - whole[j]) ** 2).sum()) * unit**2
            bound = Fraction(float(bounds[i, j]))
            assert square <= bound**2 <= square * (1 + Fraction(1, 10**12))
    assert bounds[3, 7] == 0
    tiny = row_distance_bounds(torch.tensor([[1.0, 0.0], [1.0, 1e-250]], dtype=torch.float64))
    assert tiny[0, 1] >= 1e-250


def test_directed_scalars() -> None:
    values = [0.1, 0.2, 0.3, 1e-200, 3e200]
    product = math.prod(Fraction(value) for value in values)
    assert product <= Fraction(product_up(values)) <= product * (1 + Fraction(1, 2**51))
    total = sum(Fraction(value) for value in values)
    assert total <= Fraction(sum_up(values)) <= total * (1 + Fraction(1, 2**51))
    assert product_up([]) == 1.0
    assert sum_up([]) == 0.0
    assert product_up([0.0, 7.0]) == 0.0
    # 2^-1074 is the least positive number: rounding to nearest would give 0.
    assert product_up([2.0**-1000, 2.0**-200]) == 2.0**-1074
    rng = np.random.default_rng(0)
    for value in [0.0, 5e-324, 2.0, 1e308, *(10 ** rng.uniform(-300, 300, 100)).tolist()]:
        root = sqrt_up(value)
        assert Fraction(root) ** 2 >= Fraction(value)
        assert root <= math.nextafter(math.nextafter(math.sqrt(value), math.inf), math.inf)
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(NormBoundError):
            product_up([1.0, bad])
        with pytest.raises(NormBoundError):
            sum_up([1.0, bad])
        with pytest.raises(NormBoundError):
            sqrt_up(bad)
    with pytest.raises(NormBoundError):
        product_up([1e308, 1e308])


def test_scaling_is_exact() -> None:
    weight = randn(6, 5) * 2.0 ** torch.linspace(-130, 90, 6)[:, None]
    copy = scaled(weight)
    assert copy.tail == 0
    assert 0.5 <= np.abs(copy.values).max() < 1
    np.testing.assert_array_equal(np.ldexp(copy.values, copy.exponent), weight.double().numpy())


def test_everything_public_is_documented() -> None:
    for name in norms.__all__:
        assert getattr(norms, name).__doc__, name


@pytest.mark.slow
def test_large_layers() -> None:
    weight = randn(1024, 2048) / 32
    bound = dense_norm_bound(weight)
    assert 0 <= bound / norm_lower(weight) - 1 < 2e-5
    assert dense_norm_bound(orthogonal(1024)) < 1 + 1e-5
    kernel = randn(128, 64, 3, 3) / 24
    bound = conv_norm_bound(kernel, 32, 2, 1)
    assert 1 <= bound / conv_norm_lower(kernel, 32, 2, 1) < 1.01
