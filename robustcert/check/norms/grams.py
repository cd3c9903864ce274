r"""Proved upper bounds on norms of symbols, from Gram matrices that products of taps add up to.

With taps :math:`K_a` of stride 1, the symbol of ``symbols.py`` has the Gram matrix

.. math:: G(\omega) = \sum_{a, b} K_a^\top K_b e^{i \omega (b - a)} = C_0 + \sum_{d > 0}
    \cos(\omega d) (C_d + C_d^\top) + i \sin(\omega d) (C_d - C_d^\top)

where :math:`C_d` is the sum of :math:`K_a^\top K_b` over all taps with b - a = d, and one of d and
-d is above zero. A few products of taps replace one of symbols at every frequency. For any matrix
L and any t, :math:`\lVert K(\omega) \rVert^2 \le t + \lVert t I - G - L L^* \rVert_F`; here L is a
Cholesky factor.

All of it is float64, with unit roundoff u and :math:`\gamma_k = k u / (1 - k u)` for sums of k
products in any order. Let B be the sum of all :math:`|K_a|`. An entry of :math:`C_d` is a sum of at
most m T products, for T taps of m rows; it is added to another, and multiplied by phases that are
wrong by 10 u; D of these are added up. So entries of real and imaginary parts of G are wrong by at
most :math:`(m T + D + 15) u` times those of B'B, up to squares of that, and G by :math:`\sqrt 2`
times that times :math:`\lVert B \rVert_F^2`. Likewise :math:`L L^*` is wrong by :math:`\sqrt 2
\gamma_{2 n} \lVert L \rVert_F^2`, and a subtraction by u relative to its result.

What is not proved in this way may still be proved in integers (``dense.py``).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from robustcert.check.arithmetic import FLOAT64, UNIT
from robustcert.check.fixed_point import Floats
from robustcert.check.norms.dense import frobenius
from robustcert.check.norms.scalars import ceil_log2

# Least number of channels, on both sides, of convolutions that this is tried for.
MIN_CHANNELS = 32
# Work for each product of two taps, and for each frequency, in products of matrices.
PAIR_WORK, POINT_WORK = 10.0, 20.0
# Number of columns of a factor that are multiplied at once.
BLOCK = 128
# Covers the rounding of a few operations between positive numbers.
SPARE = 1 + 2.0**-20
# What t is below the square of the bound, over the errors that are known in advance.
ALLOWANCE = 4.0


def is_by_taps(out: int, inner: int, taps: int, points: int) -> bool:
    """Whether Gram matrices of so many frequencies are worth the products of all pairs of taps."""
    return min(out, inner) >= MIN_CHANNELS and taps**2 <= points


def taps_work(out: int, inner: int, taps: int, points: float) -> float:
    """Number of operations of the proof, roughly."""
    small, large = sorted((out, inner))
    return small**2 * (PAIR_WORK * large * taps**2 / 2 + POINT_WORK * small * points)


def taps_bytes(out: int, inner: int, taps: int) -> int:
    """Bytes that the matrices take, and what is computed on the way to them and at a frequency."""
    # There are at most twice as many differences of taps, with two matrices each.
    small, large = sorted((out, inner))
    return 8 * taps * small * (12 * small + 5 * large)


@dataclass(frozen=True)
class Grams:
    """Gram matrices of the symbols of a convolution at any frequencies, scaled.

    Attributes:
        shifts: Differences d of taps, ``(D, 2)``, none of them the opposite of another.
        even: ``C_d + C_d'``, or ``C_0``, ``(D, n n)``.
        odd: ``C_d - C_d'``, or zero.
        error: Upper bound of the error of a Gram matrix in the Frobenius norm.
        exponent: Weights are scaled by two to the power of minus this.
    """

    shifts: Any
    even: Floats
    odd: Floats
    error: float
    exponent: int

    @staticmethod
    def of(weight: Floats, shifts: Any, bound: Fraction) -> "Grams | None":
        """Those of a weight ``(m, n, T)`` with shifts ``(T, 2)``, scaled to a bound near 1."""
        exponent = ceil_log2(bound)
        largest = float(abs(weight).max())
        # No entry of a tap is above the norm.
        if abs(exponent) > 900 or not 0 < largest <= bound:
            return None
        if weight.shape[0] < weight.shape[1]:
            # The transpose has the norm of the symbol at the opposite frequency.
            weight = weight.swapaxes(0, 1)
        taps = np.ldexp(weight.transpose(2, 0, 1), -exponent, order="C")
        pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for a, first in enumerate(shifts.tolist()):
            for b, second in enumerate(shifts.tolist()):
                d = second[0] - first[0], second[1] - first[1]
                if d >= (0, 0):
                    pairs.setdefault(d, []).append((a, b))
        even, odd = [], []
        for d, both in pairs.items():
            left, right = (np.concatenate([taps[pair[k]] for pair in both]) for k in (0, 1))
            product = left.T @ right
            even.append((product + product.T if any(d) else product).ravel())
            odd.append((product - product.T if any(d) else np.zeros_like(product)).ravel())
        rounding = (taps.shape[1] * len(taps) + len(pairs) + 15) * UNIT
        energy = float(frobenius(abs(taps).sum(0)) ** 2)
        # The last term covers products, and squares, that underflow.
        error = math.sqrt(2) * rounding * energy * SPARE + 2.0**-500
        return Grams(np.array(list(pairs)), np.array(even), np.array(odd), error, exponent)

    def obey(self, cosine: Floats, sine: Floats, bound: Fraction) -> bool:
        """Whether symbols at some frequencies are proved to have norms of at most ``bound``.

        Args:
            cosine: Cosines ``(F, D)`` of the phases of all shifts, within 10 units.
            sine: Their sines.
            bound: A number that is not above the one that the weights were scaled to.
        """
        size = math.isqrt(self.even.shape[1])
        real, imag = (
            (part @ matrices).reshape(-1, size, size)
            for part, matrices in ((cosine, self.even), (sine, self.odd))
        )
        limit = float((bound * Fraction(2) ** -self.exponent) ** 2) * (1 - 2.0**-50)
        wrong = math.sqrt(2) * FLOAT64.gamma(2 * size) * SPARE
        t = limit - ALLOWANCE * (self.error + wrong * size * limit)
        shifted = -(real + 1j * imag)
        diagonal = np.arange(size)
        shifted[:, diagonal, diagonal] = t - real[:, diagonal, diagonal]
        try:
            factor = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            return False
        rest, energy = _residual(shifted, factor)
        # What is subtracted from is what is left and what is subtracted.
        lost = rest * SPARE + (wrong + 2 * UNIT) * energy * SPARE + self.error
        return bool(t + lost * SPARE <= limit)


def _residual(matrices: Any, factor: Any) -> tuple[float, float]:
    """Largest norms in a batch, Frobenius', of Hermitian matrices less LL*; squared, of L."""
    x, y = factor.real.copy(), factor.imag.copy()
    total = np.zeros(len(x))
    for start in range(0, x.shape[1], BLOCK):
        stop = start + BLOCK
        # L is a lower triangle; products are of real matrices.
        below = np.concatenate((x[:, start:, :stop], y[:, start:, :stop]), 2)
        turned = np.concatenate((y[:, start:, :stop], -x[:, start:, :stop]), 2)
        own = below[:, :BLOCK].swapaxes(1, 2)
        left = matrices[:, start:, start:stop]
        for part, product in ((left.real, below @ own), (left.imag, turned @ own)):
            squares = ((part - product) ** 2).sum(2)
            # What is below the diagonal blocks stands for what is above them as well.
            total += squares[:, :BLOCK].sum(1) + 2 * squares[:, BLOCK:].sum(1)
    energy = (x * x + y * y).sum((1, 2))
    return math.sqrt(float(total.max())), float(energy.max())
