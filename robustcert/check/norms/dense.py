r"""Proved upper bounds on the norms of matrices, in exact integers.

For any matrices A and R with n columns and any t, let E = t I - A'A - R'R. Every unit vector x has
:math:`|A x|^2 = t - |R x|^2 - x' E x \le t + \lVert E \rVert_F`. So any R, such as a Cholesky
factor rounded to integers, proves :math:`\lVert A \rVert \le B` as soon as :math:`t + \lVert E
\rVert_F \le B^2`. A is rounded to integers too, and the Frobenius norm of what rounding cuts off is
subtracted from B. Everything in E is then an integer, and computed exactly (``exact_products.py``).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from robustcert.check.effort import UNLIMITED, Effort, NotTriedError
from robustcert.check.exact_products import digit_bits, residual_norm, split_floats
from robustcert.check.fixed_point import Floats
from robustcert.check.norms.cost import proof_seconds, proof_work
from robustcert.check.norms.scalars import ceil_log2

# Maximum shorter side and maximum number of entries of a matrix that is factorised.
MAX_FACTOR_SIDE, MAX_FACTOR_ENTRIES = 4096, 2**26
# Maximum number of arrays that a proof keeps at the same time: of the size of the matrices, and of
# their Gram matrices.
MAX_ARRAYS, MAX_GRAM_ARRAYS = 8, 22


@dataclass(frozen=True)
class Proof:
    """How a bound was proved; ``method`` is empty if it was not."""

    method: str = ""
    value: float = math.nan


def prove_dense(weight: Floats, bound: Fraction, effort: Effort = UNLIMITED) -> Proof:
    """Prove a bound on the norm of a matrix.

    Raises:
        NotTriedError: it is too large for a factorisation, or for the time.
    """
    if not can_factor(weight.shape):
        # Only a bound above the Frobenius norm is proved.
        if frobenius(weight) <= bound:
            return Proof("Frobenius norm")
        raise NotTriedError(
            f"a matrix {weight.shape[0]}x{weight.shape[1]}, of which factors of up to "
            f"{MAX_FACTOR_SIDE} columns and {MAX_FACTOR_ENTRIES} entries are computed"
        )
    effort.require(proof_seconds(proof_work(*weight.shape)))
    return Proof("exact residual" if proved(weight[None], bound) else "")


def can_factor(shape: tuple[int, ...]) -> bool:
    """Whether a matrix is within the limits of a factorisation."""
    return min(shape) <= MAX_FACTOR_SIDE and math.prod(shape) <= MAX_FACTOR_ENTRIES


def proof_bytes(out: int, inner: int, count: int = 1) -> int:
    """Bytes that the proof for so many matrices takes at most, besides the matrices."""
    small, large = sorted((out, inner))
    return 8 * count * small * (MAX_ARRAYS * large + MAX_GRAM_ARRAYS * small)


def proved(matrices: Floats, bound: Fraction, loss: Fraction = Fraction(0)) -> bool:
    """Whether every matrix of a batch ``(b, m, n)``, changed by at most ``loss``, obeys ``bound``.

    ``loss`` and ``bound`` are l2 norms. False means that no proof was found.
    """
    if not np.isfinite(matrices).all():
        return False
    if not matrices.any():
        return loss <= bound
    if bound <= loss or float(abs(matrices).max()) > bound:
        return False
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    exponent = ceil_log2(bound)
    scale = Fraction(2) ** -exponent
    if abs(exponent) > 900:
        return False
    scaled = np.ldexp(matrices, -exponent)
    gram = scaled.swapaxes(1, 2) @ scaled
    return any(_residual_proof(scaled, gram, bound * scale, loss * scale, n) for n in (2, 3))


def _residual_proof(
    matrices: Floats, gram: Floats, bound: Fraction, loss: Fraction, count: int
) -> bool:
    # Entries are at most 1, and so are those of the factor.
    rows, size = matrices.shape[1:]
    bits = digit_bits(max(rows, size))
    places = bits * count - 2
    whole = np.rint(matrices * 2.0**places)
    cut = frobenius_each(matrices * 2.0**places - whole)
    # One unit more than is cut off covers what the scaling may lose to underflow.
    limit = math.floor((bound - loss) * 2**places) - math.ceil(cut) - 1
    if limit <= 0:
        return False
    # Allowance for rounding: half a unit in every entry of the factor, and the factorisation.
    room = size * (0.6 * 2.0**-places + 2.0**-48)
    t = limit**2 - math.ceil(room * 4**places)
    shifted = -gram
    diagonal = np.arange(size)
    shifted[:, diagonal, diagonal] += t / 4**places
    try:
        factor = np.linalg.cholesky(shifted).swapaxes(1, 2)
        digits = split_floats(whole, bits, count)
        guess = split_floats(np.rint(factor * 2.0**places), bits, count)
    except (np.linalg.LinAlgError, ValueError):
        return False
    error = residual_norm(t, digits, guess, bits)
    return math.isfinite(error) and t + math.ceil(error) <= limit**2


def frobenius(values: Floats) -> Fraction:
    """Upper bound of the Frobenius norm: the root of the sum of squares."""
    peak = float(abs(values).max(initial=0.0))
    if peak == 0:
        return Fraction(0)
    scaled = np.ldexp(values, -math.frexp(peak)[1])
    # The factor covers all rounding, and squares that are lost to underflow.
    total = float(np.sqrt(np.sum(scaled * scaled))) * (1 + 2.0**-20)
    return Fraction(total) * Fraction(2) ** math.frexp(peak)[1]


def frobenius_each(values: Floats) -> Fraction:
    """Upper bound of the largest Frobenius norm in a batch, for entries of at most 1/2."""
    return Fraction(float(np.sqrt((values * values).sum(axis=(1, 2)).max())) * (1 + 2.0**-10))


def estimate(matrices: Floats) -> float:
    """Largest norm in a batch, computed in float64 without proof."""
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    peak = float(abs(matrices).max(initial=0.0))
    if peak == 0:
        return 0.0
    scaled = np.ldexp(matrices, -math.frexp(peak)[1])
    values = np.linalg.eigvalsh(scaled.swapaxes(1, 2) @ scaled)
    return math.ldexp(math.sqrt(max(0.0, float(values.max()))), math.frexp(peak)[1])
