r"""Symbols of convolutions on a finite grid, and the norm bound that follows from them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray

from robustcert.norms.proof import Array, energy_up
from robustcert.norms.scalars import exact, gamma, root_up

# Note [symbol] (why the bound holds)
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# One dimension, kernel k, input n, stride s, padding p, dilation d; dimensions are independent.
#     y[i] = sum_t K_t x[s i + d t - p],  0 <= i < n_out,  with x = 0 outside 0..n-1.
# Write d t - p = s a_t + r_t with 0 <= r_t < s. On the space-to-depth signal X_r[q] = x[s q + r],
# of length n_q = ceil(n / s), this is a convolution of stride 1: y[i] = sum_t K_t X_{r_t}[i + a_t].
# Taps that read padding only are dropped; a_min and a_max are taken over the others.
#
# Embedding. Extend X by zeros to period M and let C be the M-periodic convolution with the same
# taps. Output i reads j = i + a with a_min <= j <= n_out - 1 + a_max. A wrapped read must find a
# zero: for j < 0 this needs j + M >= n_q, and j >= M must not occur. Hence
#     M = max(n_q - min(0, a_min), n_out + max(0, a_max))        (n + p for stride 1)
# suffices; M >= n_q and M >= n_out make the embedding an isometry and the restriction to the
# outputs a projection. The convolution is restriction * C * embedding, so its norm is at most
# ||C||, and the unitary DFT block-diagonalises C with blocks, for w = 2 pi f / M, f = 0..M-1,
#     K(w) = sum_t K_t e^{i w a_t}        (c_out times c_in * number of residues r).
# For real weights K(-w) is the conjugate of K(w): half of the frequencies suffice. A circular
# convolution with s dividing n is C itself with M = n / s, so that its norm is attained.
#
# Coarse grid. For any v, q(w) = ||K(w) v||^2 >= 0 is a trigonometric polynomial of degree at most
# D = a_max - a_min in each variable. On N > 2 D equispaced points a real trigonometric polynomial
# g of degree D has max |g| <= max_grid |g| / cos(pi D / N): at a maximum w0 of |g|, M. Riesz's
# lemma gives |g(w)| >= |g(w0)| cos(D (w - w0)) for |w - w0| <= pi / D, and some grid point is
# within pi / N. With g = q - max_grid q / 2, one variable after the other,
#     sup_w ||K(w)||^2 <= max_grid ||K(w)||^2 * (1 + 1 / cos(pi D / N)) / 2   per dimension,
# and D = 0 needs a single point. The supremum bounds the block of every frequency of period M.
#
# Rounding. The angle 2 pi f a / M is reduced modulo 2 pi in integers. The computed cosines and
# sines are taken to be within eta = 2^-48 (32 roundings) of the true ones; a test checks this. A
# symbol entry is a sum of T products, so its real and its imaginary part are each wrong by at most
# (eta + gamma_T (1 + eta)) B with B = sum_t |K_t| entrywise, the block by sqrt(2) times that times
# ||B||_F in norm, and B itself is computed with a relative error of gamma_T.

# Shifts (T, 2) and taps (T, groups, c_out, c_in) of every pair of residues.
Taps = list[tuple[NDArray[np.int64], Array]]

# Largest error of a computed cosine or sine of a frequency: eta in Note [symbol].
TWIDDLE_ERROR = Fraction(1, 2**48)
# Number of frequencies at which a symbol is evaluated, per degree of its polynomial.
POINTS_PER_DEGREE = 32
# Maximum memory of the frequencies that are evaluated at once.
CHUNK_BYTES = 2**28
PI = Fraction(355, 113)  # above pi


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution: Note [symbol].

    Every entry of ``taps`` is (kernel index, shift a, residue r, output positions, positions they
    read); ``points`` frequencies are evaluated and cost ``factor`` in the squared norm.
    """

    taps: list[tuple[int, int, int, NDArray[np.int64], NDArray[np.int64]]]
    inputs: int
    outputs: int
    points: int
    factor: Fraction

    @staticmethod
    def of(
        kernel: int, size: int, stride: int, padding: int, dilation: int, *, circular: bool
    ) -> "Axis":
        """Lay out one dimension of a convolution."""
        if min(kernel, size, stride, dilation) < 1 or padding < 0:
            raise ValueError(
                f"Expected positive kernel, input_size, stride and dilation and padding >= 0 but "
                f"got {kernel}, {size}, {stride}, {dilation} and {padding}"
            )
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if circular:
            if size % stride:
                raise ValueError(f"Expected input_size {size} to be a multiple of stride {stride}")
            outputs = size // stride
        if outputs < 1:
            raise ValueError(f"Expected a kernel that fits the padded input of size {size}")
        taps = []
        for tap in range(kernel):
            offset = dilation * tap - padding
            outs = np.arange(outputs)
            reads = stride * outs + offset
            if circular:
                reads %= size
            inside = (reads >= 0) & (reads < size)
            if inside.any():
                shift, residue = divmod(offset, stride)
                taps.append((tap, shift, residue, outs[inside], reads[inside]))
        shifts = [shift for _, shift, *_ in taps] or [0]
        low, high = min(shifts), max(shifts)
        period = max(-(-size // stride) - min(0, low), outputs + max(0, high))
        points, factor = grid(outputs if circular else period, high - low)
        return Axis(taps, size, outputs, points, factor)

    @property
    def degree(self) -> int:
        """Largest difference of two shifts."""
        shifts = [shift for _, shift, *_ in self.taps] or [0]
        return max(shifts) - min(shifts)

    @property
    def is_attained(self) -> bool:
        """Whether windows do not overlap and one of them is full: it has the symbol's norm."""
        met = np.zeros(self.outputs, dtype=np.int64)
        for *_, outs, _ in self.taps:
            met[outs] += 1
        return self.degree == 0 and int(met.max()) == len(self.taps)

    @property
    def residues(self) -> int:
        """Number of signals that a stride makes of one."""
        return len({residue for _, _, residue, *_ in self.taps})


def grid(period: int, degree: int) -> tuple[int, Fraction]:
    """Number of grid points for a period and the factor they cost: Note [symbol]."""
    if degree == 0:
        return 1, Fraction(1)
    points = POINTS_PER_DEGREE * degree
    if period <= points:
        return period, Fraction(1)
    x = PI * degree / points
    cosine = 1 - x**2 / 2 + x**4 / 24 - x**6 / 720
    return points, (1 + 1 / cosine) / 2


def frequencies(axes: tuple[Axis, Axis]) -> NDArray[np.int64]:
    """Grid indices (F, 2), one of every conjugate pair."""
    height, width = axes[0].points, axes[1].points
    rows, columns = np.divmod(np.arange(height * width), width)
    conjugate = (-rows % height) * width + (-columns % width)
    kept = np.arange(height * width) <= conjugate
    return np.stack((rows[kept], columns[kept]), axis=1)


def roots_of_unity(numerators: NDArray[np.int64], denominator: int) -> tuple[Array, Array]:
    """Cosine and sine of ``2 pi numerators / denominator``, within 2**-48."""
    turns = numerators % denominator
    turns = np.where(2 * turns > denominator, turns - denominator, turns)
    angle = 2 * math.pi * turns / denominator
    # That of half a turn is exactly zero, so that symbols there are real.
    return np.cos(angle), np.where(2 * turns == denominator, 0.0, np.sin(angle))


def blocks(weight: Array, axes: tuple[Axis, Axis]) -> Taps:
    """Shifts (T, 2) and taps (T, groups, c_out, c_in) for every pair of residues."""
    found: dict[tuple[int, int], list[tuple[tuple[int, int], Array]]] = {}
    for (i, a, r, *_), (j, b, s, *_) in product(axes[0].taps, axes[1].taps):
        found.setdefault((r, s), []).append(((a, b), weight[..., i, j]))
    return [
        (np.array([shift for shift, _ in taps]), np.stack([tap for _, tap in taps]))
        for taps in found.values()
    ]


def symbols(
    taps: Taps,
    axes: tuple[Axis, Axis],
    points: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.int64], Array, Array | None]]:
    """Symbols of all groups at grid points (F, 2), by default at all frequencies, in chunks.

    Those of most energy come first: their norms are bounds that the others may not exceed.

    Yields:
        Grid points (f, 2), and real and imaginary parts (f groups, rows, columns), rows >= columns.
    """
    period = axes[0].points * axes[1].points
    _, _, out, inner = taps[0][1].shape
    parts = taps
    if out < inner * len(taps):  # A matrix and its transpose have the same norm.
        parts = [(shifts, values.swapaxes(-1, -2)) for shifts, values in taps]
    stack = -1 if out >= inner * len(taps) else -2
    for some, turns in chunks(taps, axes, points):
        real, imag = [], []
        for shifts, values in parts:
            shape = (len(some) * values.shape[1], *values.shape[2:])
            flat = values.reshape(len(values), -1)
            cosine, sine = roots_of_unity(turns @ shifts.T, period)
            real.append((cosine @ flat).reshape(shape))
            imag.append((sine @ flat).reshape(shape))
        whole = np.concatenate(real, axis=stack)
        other = None if period == 1 else np.concatenate(imag, axis=stack)
        yield some, whole, other


def chunks(
    taps: Taps, axes: tuple[Axis, Axis], points: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Grid points (f, 2), by default all frequencies, as many at once as memory allows.

    Those of most energy come first. Beside them, their turns: multiples of the period's inverse.
    """
    height, width = axes[0].points, axes[1].points
    _, groups, out, inner = taps[0][1].shape
    small, large = sorted((out, inner * len(taps)))
    chunk = max(1, CHUNK_BYTES // (8 * groups * (12 * small * small + 6 * small * large)))
    points = frequencies(axes) if points is None else points
    turns = points * np.array([width, height])
    if len(points) > chunk:
        order = np.argsort(-energies(taps, turns, height * width))
        points, turns = points[order], turns[order]
    for first in range(0, len(points), chunk):
        yield points[first : first + chunk], turns[first : first + chunk]


def energies(taps: Taps, points: NDArray[np.int64], period: int) -> Array:
    """Squared Frobenius norms (F,) of the symbols at given points, without forming them.

    They say where norms are likely to be large; no proof rests on them.
    """
    total = np.zeros(len(points))
    for shifts, values in taps:
        flat = values.reshape(len(values), -1)
        cosine, sine = roots_of_unity(points @ shifts.T, period)
        total += sum(((part @ (flat @ flat.T)) * part).sum(1) for part in (cosine, sine))
    return total


def symbol_error(taps: Taps) -> Fraction:
    """Bound of the rounding error of every symbol in norm: Note [symbol]."""
    sums = np.stack([np.abs(values).sum(axis=0) for _, values in taps], axis=1)
    count = max(len(values) for _, values in taps)
    relative = (TWIDDLE_ERROR + gamma(count) * (1 + TWIDDLE_ERROR)) / (1 - gamma(count))
    return exact(root_up(2 * relative**2 * energy_up(sums)))


def norm_of_map(squared: Fraction, error: Fraction, axes: tuple[Axis, Axis]) -> Fraction:
    """Bound of the map's norm from one of the squared norms of its symbols, and of their errors."""
    norm = exact(root_up(squared)) + error
    return norm * exact(root_up(axes[0].factor * axes[1].factor))
