"""Quick bounds are bounds, and close ones but for what they say."""

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
from robustcert.norms.lines import Lines
from robustcert.norms.symbols import Axis, blocks
from robustcert.norms.taps import symbol_grams

# Number of channels, kernel, side of the map, stride and padding: short maps with many channels.
MAPS = [
    (64, 64, 3, 8, 1, 1),
    (48, 80, 3, 7, 1, 1),
    (80, 48, 3, 7, 1, 0),
    (40, 40, 5, 9, 1, 2),
    (64, 16, 4, 16, 2, 1),
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
@pytest.mark.parametrize("case", MAPS[:4])
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
        assert largest * (1 - 1e-4) < lines.estimate(points[index], vector) < largest * (1 + 1e-12)


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
