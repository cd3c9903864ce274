"""Rational bounds on numbers and roots, with a bounded number of digits."""

import math
from fractions import Fraction

from robustcert.check.reader import UnreadableError

# Allowance for products that underflow, in the norm of a matrix.
UNDERFLOW = Fraction(1, 2**900)


def round_up(value: Fraction, bits: int = 4096) -> Fraction:
    """A positive number rounded up to ``bits`` binary digits, unless it has fewer already.

    Without this, products of thousands of numbers would have millions of digits. The result is at
    least 2^(-2 bits).

    Raises:
        UnreadableError: the number is not below 2^(2 bits).
    """
    over, under = value.numerator, value.denominator
    if max(over.bit_length(), under.bit_length()) <= bits:
        return value
    exponent = over.bit_length() - under.bit_length() + 1
    if exponent > 2 * bits:
        raise UnreadableError(f"bounds: a product of them passes 2^{2 * bits}")
    last = max(exponent - bits, -2 * bits)
    whole = -(-(over << max(0, -last)) // (under << max(0, last)))
    return Fraction(whole) * Fraction(2) ** last


def root_up(value: Fraction) -> Fraction:
    """Upper bound of a square root, with a relative error of at most 2^-60."""
    places = max(0, 130 - value.numerator.bit_length() + value.denominator.bit_length())
    places += places % 2
    scaled = -(-(value.numerator << places) // value.denominator)
    return Fraction(math.isqrt(scaled) + 1, 1 << (places // 2))


def root_down(value: Fraction) -> Fraction:
    """Lower bound, and a close one, of the square root of a number from 2^-100 to 2^100."""
    return Fraction(math.isqrt((value.numerator << 240) // value.denominator), 1 << 120)


def ceil_log2(value: Fraction) -> int:
    """The least integer whose power of two is not below a positive number."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while Fraction(2) ** exponent < value:
        exponent += 1
    return exponent
