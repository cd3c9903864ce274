"""Quick bounds are bounds, and close ones but for what they say."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from robustcert.norms import (
    conv_norm_bound,
    conv_norm_lower,
    dense_norm_bound,
    norm_lower,
    quick_bounds,
)
from robustcert.norms.closeness import CLOSE, QUICK, closeness
from robustcert.norms.eigenvalues import lanczos, ritz_pairs
from robustcert.norms.lines import Begun, Estimated, Lines, mixed_norm_bound
from robustcert.norms.symbols import Axis, blocks
from robustcert.norms.taps import symbol_grams
from robustcert.norms.waves import Waves

# Number of channels, kernel, side of the map, stride and padding: short maps with many channels.
MAPS = [
    (64, 64, 3, 8, 1, 1),
    (48, 80, 3, 7, 1, 1),
    (80, 48, 3, 7, 1, 0),
    (40, 40, 5, 9, 1, 2),
    (64, 16, 4, 16, 2, 1),
    (60, 3, 6, 20, 4, 1),
    (1, 300, 1, 6, 1, 0),
]


def random_kernel(out: int, inner: int, kernel: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, inner, kernel, kernel, generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", MAPS)
def test_quick_bounds_of_convolutions_are_close(case: tuple[int, ...], seed: int) -> None:
    out, inner, kernel, side, stride, padding = case
    weight = random_kernel(out, inner, kernel, seed)
    close = conv_norm_bound(weight, side, stride, padding)
    with quick_bounds():
        quick = conv_norm_bound(weight, side, stride, padding)
    assert conv_norm_lower(weight, side, stride, padding) <= min(close, quick)
    # Both sides have what their estimates are raised by.
    assert quick <= close * (1 + 3.1e-4)
    assert close <= quick * (1 + 1e-6)


@pytest.mark.parametrize("columns", [40, 300, 700])
def test_quick_bounds_of_matrices_are_close(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(400, columns, generator=generator)
    close = dense_norm_bound(weight)
    with quick_bounds():
        assert closeness() == QUICK
        quick = dense_norm_bound(weight)
    assert closeness() == CLOSE
    assert norm_lower(weight) <= min(close, quick)
    assert quick <= close * (1 + 1.6e-4)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("case", MAPS[:6])
def test_the_wave_of_a_symbol_is_near_the_vector_of_its_block(
    case: tuple[int, ...], kept: int
) -> None:
    out, inner, kernel, side, stride, padding = case
    weight = random_kernel(out, inner, kernel, 0).double().numpy()[None]
    axis = Axis.of(kernel, side, stride, padding, 1, circular=False)
    axes = (axis, axis)
    lines = Lines.of(weight, axes, kept)
    ((points, gram),) = symbol_grams(blocks(weight, axes), axes)
    values, vectors = np.linalg.eigh(gram.tensor().numpy())
    for index in np.argsort(-values[:, -1])[:3]:
        matrix = lines.gram([int(lines.names(points)[index])]).tensor()
        vector = torch.from_numpy(vectors[index, :, -1])
        start = lines.start(points[index], vector)
        start = start if matrix.is_complex() else start.real
        other = start.unflatten(0, (lines.columns, -1)).flip(0).flatten()
        right, wrong = (
            float((wave.conj() @ matrix[0] @ wave).real / wave.abs().square().sum())
            for wave in (start, other)
        )
        # Of a random vector it is a quarter; the wave that runs the other way may be the same.
        assert right > 0.85 * float(ritz_pairs(matrix, 64)[0])
        assert right > 1.2 * wrong or right == pytest.approx(wrong)
        # Without the matrix, and never above its largest eigenvalue but for rounding.
        largest = float(torch.linalg.eigvalsh(matrix).max())
        (found,) = lines.quotients(*lines.blocks_and_start(points[index], vector))
        assert largest * (1 - 1e-4) < float(found) < largest * (1 + 1e-12)


def test_a_wave_takes_the_residues_of_its_column() -> None:
    # Rows of stride 3 and columns of stride 2, of two channels: symbols have 12 columns, in the
    # order of their residues, and a block one of six for every row, or of four for every column.
    vertical = Axis.of(4, 13, 3, 1, 1, circular=False)
    horizontal = Axis.of(3, 9, 2, 0, 1, circular=False)
    axes = (vertical, horizontal)
    residues = ([tap[2] for tap in axis.taps] for axis in axes)
    order = list(dict.fromkeys(product(*residues)))
    for kept, other in ((0, 1), (1, 0)):
        waves = Waves.of_inputs(2, axes, kept)
        beside = list(dict.fromkeys(tap[2] for tap in axes[other].taps))
        stride = (3, 2)[kept]
        for place, entries in enumerate(waves.entries):
            if waves.sizes[place] == 0:
                continue
            pairs = [(place % stride, s) if kept == 0 else (s, place % stride) for s in beside]
            expected = [2 * order.index(pair) + channel for pair in pairs for channel in (0, 1)]
            assert entries.tolist() == expected
            assert waves.turns[place] == place // stride
        read = sorted({int(i) for *_, reads in axes[kept].taps for i in reads})
        assert np.flatnonzero(waves.sizes).tolist() == read


@pytest.mark.parametrize("kept", [0, 1])
def test_every_block_of_every_group_has_a_start(kept: int) -> None:
    weight = random_kernel(3 * 40, 20, 3, 1).double().numpy().reshape(3, 40, 20, 3, 3)
    axes = (Axis.of(3, 8, 1, 1, 1, circular=False),) * 2
    lines = Lines.of(weight, axes, kept)
    (some,) = (Estimated.of(*found) for found in symbol_grams(blocks(weight, axes), axes))
    # One that is its own opposite comes first, real.
    (real, first), (gram, start) = lines.grams([0, 1, 3], some)
    assert (first.is_complex(), start.is_complex()) == (False, True)
    assert (len(first), len(start)) == (3, 6)
    for matrices, vectors in ((real.tensor(), first), (gram.tensor(), start)):
        largest = torch.linalg.eigvalsh(matrices)[:, -1]
        for matrix, vector, value in zip(matrices, vectors, largest, strict=True):
            quotient = (vector.conj() @ matrix @ vector).real / vector.abs().square().sum()
            assert 0.85 * value < quotient <= value * (1 + 1e-12)


@pytest.mark.parametrize(
    ("first", "second", "of_quick", "of_close"),
    [
        # Estimates and bounds of squares: the second promises 0.2 % less, or not.
        ((1.0, 1.0015), (1.0005, 1.0006), 1.0015, 1.0006),
        ((1.0, 1.0030), (1.0005, 1.0006), 1.0006, 1.0006),
        ((1.0, 1.0), (1.0, 1.0), 1.0, 1.0),
    ],
)
def test_what_is_left_out_would_be_less_by_1_in_1000_at_most(
    first: tuple[float, float],
    second: tuple[float, float],
    of_quick: float,
    of_close: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = random_kernel(40, 40, 3, 0).double().numpy()[None]
    axes = (Axis.of(3, 8, 1, 1, 1, circular=False),) * 2
    lines = Lines.of(weight, axes, 0)
    begun = [Begun(lines, 0, estimate) for estimate, _ in (first, second)]
    bounds = {estimate: Fraction(bound) for estimate, bound in (first, second)}
    monkeypatch.setattr(Begun, "along", lambda *_: begun)
    monkeypatch.setattr(Begun, "bound", lambda self, _: bounds[self.estimate])
    close = mixed_norm_bound(weight, axes)
    with quick_bounds():
        quick = mixed_norm_bound(weight, axes)
    assert close is not None
    assert quick is not None
    assert float(close) == pytest.approx(of_close**0.5, rel=1e-9)
    assert float(quick) == pytest.approx(of_quick**0.5, rel=1e-9)
    assert quick <= close * (1 + Fraction(1, 1000))


def test_both_dimensions_are_estimated_at_once_as_one_by_one() -> None:
    for case in MAPS[:5]:
        out, inner, kernel, side, stride, padding = case
        weight = random_kernel(out, inner, kernel, 0).double().numpy()[None]
        axes = (Axis.of(kernel, side, stride, padding, 1, circular=False),) * 2
        both = [Estimated.of(*some) for some in symbol_grams(blocks(weight, axes), axes)]
        lines = [Lines.of(weight, axes, kept) for kept in (0, 1)]
        together = Begun.along(lines, both)
        alone = [Begun.along([one], both)[0] for one in lines]
        assert [one.frequency for one in together] == [one.frequency for one in alone]
        for first, second in zip(together, alone, strict=True):
            assert first.estimate == pytest.approx(second.estimate, rel=1e-4)


@pytest.mark.parametrize("kept", [0, 1])
def test_blocks_that_are_not_formed_are_those_that_are(kept: int) -> None:
    generator = torch.Generator().manual_seed(kept)
    for groups, out, inner, side, stride, padding in (
        (2, 6, 5, 6, 1, 1),
        (1, 4, 9, 5, 1, 0),
        (3, 7, 2, 8, 2, 1),
    ):
        weight = torch.randn(groups, out, inner, 3, 3, generator=generator).double().numpy()
        axis = Axis.of(3, side, stride, padding, 1, circular=False)
        lines = Lines.of(weight, (axis, axis), kept)
        for frequency in range(lines.period // 2 + 1):
            real, imag = lines.rows([frequency])
            rows = real if imag is None else torch.complex(real, imag)
            gram = lines.gram([frequency]).tensor()
            x = torch.randn(groups, gram.shape[-1], generator=generator, dtype=gram.dtype)
            found = lines._back(lines._through(x, rows), rows)
            torch.testing.assert_close(found, (gram @ x[..., None])[..., 0])


@pytest.mark.parametrize("gain", [0.0, 1e-4])
def test_an_estimate_stops_where_steps_gain_nothing(gain: float) -> None:
    generator = torch.Generator().manual_seed(0)
    flat, steep = torch.linspace(0.9999, 1.0, 300), torch.linspace(0.0, 1.0, 300)
    for spectrum, stops in ((flat, gain > 0), (steep, False)):
        basis = torch.linalg.qr(torch.randn(300, 300, generator=generator)).Q
        matrix = (basis * spectrum) @ basis.T
        start = torch.randn(1, 300, generator=generator)
        steps = 0

        def product(x: torch.Tensor, matrix: torch.Tensor = matrix) -> torch.Tensor:
            nonlocal steps
            steps += 1
            return x @ matrix

        value, vector = lanczos(product, start, 12, gain)
        assert (steps < 12) == stops
        assert float(value) < 1 + 1e-5
        assert float((product(vector) * vector).sum()) == pytest.approx(float(value), rel=1e-5)
