"""Exact numbers and their rounding up: the scalars of every norm bound."""

import math
from collections.abc import Iterable
from fractions import Fraction

from robustcert.errors import NormBoundError

# Unit roundoff of float64, the largest relative error of an operation: as a float and exact.
UNIT_ROUNDOFF = 2.0**-53
UNIT = Fraction(UNIT_ROUNDOFF)
# Smallest entry of a scaled matrix that is kept: Note [arithmetic] in norms/proof.py.
TINY = 2.0**-300


def gamma(count: int) -> Fraction:
    """Relative error of a sum of ``count`` products in any order, as an exact number."""
    return count * UNIT / (1 - count * UNIT)


def exact(value: float) -> Fraction:
    """``value`` as a fraction; NaN and infinity raise :class:`NormBoundError`."""
    if not math.isfinite(value):
        raise NormBoundError(f"Expected a finite number in a norm bound but got {value}")
    return Fraction(value)


def round_up(value: Fraction) -> float:
    """Return the least float that is not below ``value``."""
    try:
        nearest = float(value)
    except OverflowError as error:
        raise NormBoundError("A norm bound exceeds the float64 range") from error
    if nearest < value:
        nearest = math.nextafter(nearest, math.inf)
    return float(exact(nearest))


def root_up(value: Fraction) -> float:
    """Return a float that is not below the square root of ``value``, within two units."""
    if value < 0:
        raise NormBoundError(f"Expected a nonnegative number under a root but got {float(value)}")
    root = math.sqrt(round_up(value))
    while Fraction(root) ** 2 < value:
        root = math.nextafter(root, math.inf)
    return root


def nonnegative(values: Iterable[float]) -> list[Fraction]:
    """``values`` as fractions; negative and non-finite ones raise :class:`NormBoundError`."""
    fractions = [exact(value) for value in values]
    if any(value < 0 for value in fractions):
        raise NormBoundError("Expected nonnegative norms but got a negative one")
    return fractions


def sum_of_squares_up(total: float, count: int) -> Fraction:
    """Bound of a sum of ``count`` squares that was computed, in any order, as ``total``.

    The total may have been rooted and squared again.
    """
    return (exact(total) + (count + 2) * Fraction(2) ** -1022) / (1 - gamma(count + 4))


def product_up(values: Iterable[float]) -> float:
    """Return the least float not below the exact product of nonnegative ``values``."""
    return round_up(math.prod(nonnegative(values), start=Fraction(1)))


def sum_up(values: Iterable[float]) -> float:
    """Return the least float not below the exact sum of nonnegative ``values``."""
    return round_up(sum(nonnegative(values), start=Fraction(0)))


def hypot_up(values: Iterable[float]) -> float:
    """Return a float not below the root of the sum of the squares of nonnegative ``values``."""
    return root_up(sum((value**2 for value in nonnegative(values)), start=Fraction(0)))


def sqrt_up(value: float) -> float:
    """Return a float not below the exact square root of a nonnegative ``value``."""
    return root_up(exact(value))
