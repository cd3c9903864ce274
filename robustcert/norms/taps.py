r"""Norm bounds by symbols, and their Gram matrices: added up of products of taps, or of symbols."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcert.norms.device import placed
from robustcert.norms.proof import Array, Gram, bound_by_gram, energy_up
from robustcert.norms.symbols import (
    Axis,
    Taps,
    blocks,
    chunks,
    norm_of_map,
    roots_of_unity,
    symbol_error,
    symbols,
)

# Note [products of taps] (Gram matrices without symbols)
# ~~~~~~~~~~~~~~~~~~~~~~~
# With one pair of residues, the symbol K(w) = sum_a K_a e^{i w a} of Note [symbol] has
#     K^H K = sum_{a, b} K_a' K_b e^{i w (b - a)}
#           = C_0 + sum_{d > 0} cos(w d) (C_d + C_d') + i sin(w d) (C_d - C_d'),
# where C_d is the sum of K_a' K_b over all taps with b - a = d, and C_{-d} = C_d'; of d and -d
# one counts as positive. These are products of real matrices, as many as pairs of taps, where K^H K
# takes four at every frequency. Groups are separate maps; K' has the norm of K.
#
# Rounding. Let there be T taps of R rows, D values of d, B = sum_a |K_a| entrywise, and eta the
# error of a cosine or a sine, 32 u. An entry of C_d is a sum of at most R T products; it is added
# to one of C_d', multiplied by a cosine and added up with D - 1 others. So real and imaginary part
# are each wrong by at most eta + gamma_{R T + D + 2} (1 + eta) <= gamma_k, k = R T + D + 34, times
# B' B, which is at least the sum of all |K_a|' |K_b|. Its norm is at most ||B||_F^2: both parts
# together are wrong by at most root 2 gamma_k ||B||_F^2 in norm. With k for the number of rows and
# ||B||_F^2 for phi that is below what Note [residual] charges for G: 2 gamma_{2k} phi. No error of
# a symbol has to be added, because none is formed.

# Roundings of Note [products of taps] that are not of sums.
ROUNDINGS = 34


@dataclass(frozen=True)
class TapProducts:
    """Sums of products of taps by their distance, from which Gram matrices are added up.

    Attributes:
        shifts: Distances d, (D, 2).
        even: ``C_d + C_d'``, ``C_0`` for d = 0, shape (D, groups n n).
        odd: ``C_d - C_d'``.
        shape: (groups, n, n).
        rows: Number of products that are charged for an entry.
        energy: Bound of the squared Frobenius norm of B, the sum of magnitudes, in any group.
    """

    shifts: NDArray[np.int64]
    even: Tensor
    odd: Tensor
    shape: tuple[int, int, int]
    rows: int
    energy: Fraction

    @staticmethod
    def of(taps: Taps) -> "TapProducts":
        """Those of one pair of residues."""
        ((shifts, values),) = taps
        if values.shape[2] < values.shape[3]:
            values = values.swapaxes(-1, -2)
        kernels = placed(np.ascontiguousarray(values))
        pairs: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for a, first in enumerate(shifts.tolist()):
            for b, second in enumerate(shifts.tolist()):
                distance = second[0] - first[0], second[1] - first[1]
                if distance >= (0, 0):
                    both = pairs.setdefault(distance, ([], []))
                    both[0].append(a)
                    both[1].append(b)
        even, odd = [], []
        for distance, both in pairs.items():
            left, right = (torch.cat([kernels[tap] for tap in some], 1) for some in both)
            product = left.mT @ right
            even.append(product + product.mT if any(distance) else product)
            odd.append(product - product.mT if any(distance) else torch.zeros_like(product))
        count, groups, rows, size = kernels.shape
        return TapProducts(
            np.array(list(pairs)),
            torch.stack(even).flatten(1),
            torch.stack(odd).flatten(1),
            (groups, size, size),
            rows * count + len(pairs) + ROUNDINGS,
            energy_up(np.abs(values).sum(axis=0)),
        )

    def gram(self, turns: NDArray[np.int64], period: int) -> Gram:
        """Gram matrices of all groups at frequencies ``turns`` (F, 2) of a period."""
        real, imag = (
            (placed(part) @ matrices).view(-1, *self.shape[1:])
            for part, matrices in zip(
                roots_of_unity(turns @ self.shifts.T, period), (self.even, self.odd), strict=True
            )
        )
        return Gram(real, imag, self.rows, self.shape[1], self.energy)


def symbol_norm_bound(weight: Array, axes: tuple[Axis, Axis]) -> Fraction:
    """Bound of the norm by all symbols, weight (groups, c_out, c_in, kh, kw)."""
    taps = blocks(weight, axes)
    bound = Fraction(0)
    for _, gram in symbol_grams(taps, axes):
        bound = max(bound, bound_by_gram(gram, float(bound)))
    return norm_of_map(bound, gram_error(taps, axes), axes)


def symbol_grams(taps: Taps, axes: tuple[Axis, Axis]) -> Iterator[tuple[NDArray[np.int64], Gram]]:
    """Gram matrices of the symbols of all groups at all frequencies, those of most energy first.

    Yields:
        Grid points (f, 2) and Gram matrices (f groups, n, n).
    """
    if not is_by_products(taps, axes):
        for points, real, imag in symbols(taps, axes):
            yield points, Gram.of(real, imag)
        return
    products = TapProducts.of(taps)
    for points, turns in chunks(taps, axes):
        yield points, products.gram(turns, axes[0].points * axes[1].points)


def gram_error(taps: Taps, axes: tuple[Axis, Axis]) -> Fraction:
    """Bound of what symbols are wrong by in norm, beyond what their Gram matrices are charged."""
    return Fraction(0) if is_by_products(taps, axes) else symbol_error(taps)


def is_by_products(taps: Taps, axes: tuple[Axis, Axis]) -> bool:
    """Whether products of taps are less work than those of symbols."""
    count = len(taps[0][1])
    # Half of the pairs are left, and half of the frequencies.
    return len(taps) == 1 and 1 < count**2 <= axes[0].points * axes[1].points
