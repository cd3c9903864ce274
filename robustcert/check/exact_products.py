r"""Exact products of integer matrices in float64.

An integer matrix is written in balanced digits, :math:`X = \sum_k 2^{bk} X_k` with entries of
:math:`X_k` at most :math:`2^{b-1}` in magnitude. Where :math:`n 2^{2b} \le 2^{53}`, a product
:math:`X_i Y_j` with n terms in each entry stays below :math:`2^{51}` with all its partial sums, so
that float64 evaluates it without rounding, in whatever order and with or without fused operations.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from robustcert.check.fixed_point import Floats, Integers

# Number of binary digits that float64 holds exactly.
MANTISSA = 53


def digit_bits(terms: int) -> int:
    """Maximum number of bits of digits whose products, summed over ``terms``, are exact."""
    return (MANTISSA - max(terms - 1, 1).bit_length()) // 2


def split_floats(values: Floats, bits: int, count: int | None = None) -> list[Floats]:
    """Balanced digits of integer-valued floats; ``count`` of them, or as many as there are.

    Raises:
        ValueError: the values are not below ``2**(bits * count - 1)``.
    """
    digits = []
    for digit in float_digits(values, bits):
        digits.append(digit)
        if count is not None and len(digits) > count:
            raise ValueError("values do not fit their digits")
    return digits + [np.zeros_like(values)] * ((count or 0) - len(digits))


def float_digits(values: Floats, bits: int) -> Iterator[Floats]:
    """Balanced digits of integer-valued floats, the lowest first, as many as there are."""
    # Every step is exact: high * 2**bits and the digit are multiples of the unit in the last place
    # of the value, or the digit is zero.
    while abs(values).max(initial=0.0) > 2.0 ** (bits - 1):
        high = np.rint(values * 2.0**-bits)
        yield values - high * 2.0**bits
        values = high
    yield values


def split_integers(values: Integers, bits: int) -> list[Floats]:
    """Balanced digits of Python integers, as many as there are."""
    digits, half, mask = [], 1 << (bits - 1), (1 << bits) - 1
    while values.any():
        digit = ((values + half) & mask) - half
        digits.append(digit.astype(np.float64))
        values = (values - digit) >> bits
    return digits or [np.zeros(values.shape)]


def add_up(parts: dict[int, NDArray[np.int64]], bits: int) -> Integers:
    """Python integers ``sum 2**(bits * s) * parts[s]``."""
    total: Integers = np.zeros((), dtype=object)
    for place, part in parts.items():
        total = total + (part.astype(object) << (bits * place))
    return total


def exact_gram(rows: Integers) -> Integers:
    """Inner products of the rows of an integer matrix."""
    bits = digit_bits(rows.shape[1])
    return gram_of_digits(split_integers(rows, bits), bits)


def gram_of_digits(digits: list[Floats], bits: int) -> Integers:
    """Inner products of the rows of an integer matrix whose digits are given."""
    parts: dict[int, NDArray[np.int64]] = {}
    for i, left in enumerate(digits):
        for j, right in enumerate(digits):
            product = (left @ right.T).astype(np.int64)
            parts[i + j] = parts[i + j] + product if i + j in parts else product
    return add_up(parts, bits)


def residual_norm(shifted: int, digits: list[Floats], factor: list[Floats], bits: int) -> float:
    r"""Upper bound of :math:`\lVert t I - A^\top A - R^\top R \rVert_F` over a batch.

    Args:
        shifted: The integer ``t``.
        digits: Digits of integer matrices A, each of shape ``(b, m, n)``.
        factor: As many digits of integer matrices R, ``(b, k, n)``.
        bits: Size of the digits, for sums of ``max(m, k)`` products.
    """
    count = len(digits)
    size = digits[0].shape[-1]
    places = [np.zeros((digits[0].shape[0], size, size), np.int64) for _ in range(2 * count)]
    for matrix in (digits, factor):
        for i in range(count):
            for j in range(i + 1):
                product = matrix[i].swapaxes(-1, -2) @ matrix[j]
                if i != j:
                    product = product + product.swapaxes(-1, -2)
                places[i + j] -= product.astype(np.int64)
    half = 1 << (bits - 1)
    diagonal = np.arange(size)
    for place in places[:-1]:
        digit = ((shifted + half) & ((1 << bits) - 1)) - half
        place[:, diagonal, diagonal] += digit
        shifted = (shifted - digit) >> bits
    places[-1][:, diagonal, diagonal] += shifted
    total = np.zeros(places[0].shape)
    for k, place in enumerate(places):
        if k + 1 < len(places):
            carry = (place + half) >> bits
            place -= carry << bits
            places[k + 1] += carry
        total += abs(place).astype(np.float64) * 2.0 ** (bits * k)
    # The factor covers the rounding of sums of at most 2^40 positive numbers.
    return float(np.sqrt((total * total).sum(axis=(1, 2)).max(initial=0.0))) * (1 + 2.0**-10)
