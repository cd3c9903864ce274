"""Positive rational numbers, rounded up or down to a bounded length."""

import math
from fractions import Fraction

from robustcert.check.reader import UnreadableError

# Allowance for products that underflow, in norms.
UNDERFLOW = Fraction(1, 2**900)


def round_up(value: Fraction, bits: int = 4096) -> Fraction:
    """At least a positive number, of ``bits`` binary digits; the number itself where it has these.

    Products of thousands of numbers would have millions of digits. None is below 2^(-2 bits).

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
    """At least the square root, and above it by 2^-60 of it at most."""
    places = max(0, 130 - value.numerator.bit_length() + value.denominator.bit_length())
    places += places % 2
    scaled = -(-(value.numerator << places) // value.denominator)
    return Fraction(math.isqrt(scaled) + 1, 1 << (places // 2))


def root_down(value: Fraction) -> Fraction:
    """At most the square root of a number between 2^-100 and 2^100, closely."""
    return Fraction(math.isqrt((value.numerator << 240) // value.denominator), 1 << 120)


def ceil_log2(value: Fraction) -> int:
    """The least integer whose power of two is not below a positive number."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while Fraction(2) ** exponent < value:
        exponent += 1
    return exponent
