"""Quantiles for confidence bounds, rounded down with proof: integers, every rounding directed."""

import math
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

# Bits of an integer significand, and of fixed-point numbers.
_BITS = 192
_ONE = 1 << _BITS
# Floats between 0 and 1 are multiples of this, or are rounded down to such.
_GRID = 1 << 53
# Decimal digits of pi, cut off.
_PI_LOW = Fraction(314159265358979323846264338327950288419716939937510, 10**50)


@lru_cache(maxsize=4096)
def clopper_pearson_low(hits: int, trials: int, alpha: float) -> float:
    r"""Lower bound on a probability, false with probability at most alpha (one-sided).

    The largest p, up to a relative 1e-12, for which
    :math:`P(X \ge \mathrm{hits}) \le \alpha` is proved of a binomial X with parameters ``trials``
    and p.

    Reference: Clopper and Pearson, `The use of confidence or fiducial limits illustrated in the
    case of the binomial <https://doi.org/10.1093/biomet/26.4.404>`_, Biometrika 1934.

    Example:
        >>> f"{clopper_pearson_low(hits=10, trials=10, alpha=0.001):.6f}"  # 0.001 to the power 1/10
        '0.501187'
    """
    from scipy.stats import beta

    if not 0 <= hits <= trials or not 0 < alpha < 1:
        raise ValueError(
            f"expected 0 <= hits <= trials and alpha between 0 and 1, got {hits} of {trials} and "
            f"{alpha}"
        )
    if hits == 0:
        return 0.0
    guess = float(beta.ppf(alpha, hits, trials - hits + 1))
    # Nothing rests on the guess: below it, the first point that is proved is taken.
    point = int(guess * _GRID) if 0 < guess < 1 else _GRID - 1
    step = 1 + (point >> 46)
    while point > 0 and tail_high(hits, trials, Fraction(point, _GRID)) > Fraction(alpha):
        point -= step
        step *= 2
    return max(point, 0) / _GRID


def tail_high(hits: int, trials: int, p: Fraction) -> Fraction:
    r"""Upper bound on :math:`P(X \ge \mathrm{hits})`, X binomial with parameters ``trials`` and p.

    The terms of the sum are the first one times products of the quotients
    :math:`\frac{n - k}{k + 1} \frac{p}{1 - p}`, which fall with k: once they are below 1, a
    geometric series bounds the rest. The first term is a product of powers.
    """
    if hits <= 0 or p >= 1:
        return Fraction(1)
    if p <= 0:
        return Fraction(0)
    odds = p / (1 - p)
    total = term = _ONE
    for k in range(hits, trials):
        above, below = (trials - k) * odds.numerator, (k + 1) * odds.denominator
        if above < below and term < _ONE >> 80:
            # What is left is at most term * q / (1 - q) with q the quotient.
            total += _over(term * above, below - above)
            break
        term = _over(term * above, below)
        total += term
    significand, exponent = _power_high(p, hits)
    other, shift = _power_high(1 - p, trials - hits)
    choices, more = _choices_high(hits, trials)
    first = choices * significand * other
    return Fraction(first * total) * Fraction(2) ** (exponent + shift + more - _BITS)


def normal_quantile_low(p: float) -> float:
    r"""A number whose standard normal probability :math:`\Phi` is proved to be at most p, near it.

    .. math:: \Phi(q) = \frac12 + \frac{1}{\sqrt{2 \pi}} e^{-q^2 / 2}
        \sum_{k \ge 0} \frac{q^{2k + 1}}{1 \cdot 3 \cdots (2k + 1)}

    has positive terms only: the sum is bounded from above and :math:`e^{q^2 / 2}` from below.

    Args:
        p: Above 1/2, below 1.

    Returns:
        At least 0, below the quantile by a relative 1e-12 or so.
    """
    if not 0.5 < p < 1:
        raise ValueError(f"expected a probability above 1/2 and below 1, got {p}")
    # Nothing rests on the guess.
    q, step = NormalDist().inv_cdf(p), 2.0**-52
    while q > 0 and normal_high(q) > Fraction(p):
        q -= step * max(q, 1e-12)
        step *= 2
    return max(q, 0.0)


def normal_high(q: float) -> Fraction:
    r"""Upper bound on :math:`\Phi(q)`, for q from 0 to 40."""
    if not 0 <= q <= 40:
        raise ValueError(f"expected a number from 0 to 40, got {q}")
    exact = Fraction(q)
    square = exact * exact
    # The sum, from above.
    term = total = _over(exact.numerator << _BITS, exact.denominator)
    k = 1
    while term > 1 or 2 * k + 1 < 2 * square:
        term = _over(term * square.numerator, (2 * k + 1) * square.denominator)
        total += term
        k += 1
    # Quotients are below 1/2 by now: the rest is at most the last term.
    total += term
    # The exponential, from below: any number of its terms will do.
    grown = summand = _ONE
    k = 1
    while summand:
        summand = summand * square.numerator // (2 * k * square.denominator)
        grown += summand
        k += 1
    # 1 / sqrt(2 pi), from above, over a root that is rounded down.
    root = math.isqrt(int(2 * _PI_LOW * _ONE * _ONE))
    return Fraction(1, 2) + Fraction(total, grown) * Fraction(_ONE, root)


def product_low(x: float, y: float) -> float:
    """A float that is not above the product of two positive ones."""
    product = x * y
    if math.isinf(product) or Fraction(product) > Fraction(x) * Fraction(y):
        return math.nextafter(product, 0.0)
    return product


def _over(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def _power_high(base: Fraction, exponent: int) -> tuple[int, int]:
    """``(m, e)`` with ``m 2^e`` at least the power of a base between 0 and 1."""
    power, result = _short(_over(base.numerator << _BITS, base.denominator), -_BITS), (1, 0)
    while exponent:
        if exponent & 1:
            result = _short(result[0] * power[0], result[1] + power[1])
        power = _short(power[0] * power[0], 2 * power[1])
        exponent >>= 1
    return result


@lru_cache(maxsize=256)
def _choices_high(hits: int, trials: int) -> tuple[int, int]:
    """``(m, e)`` with ``m 2^e`` at least the binomial coefficient."""
    return _short(math.comb(trials, hits), 0)


def _short(significand: int, exponent: int) -> tuple[int, int]:
    """The number with a significand of few bits, rounded up."""
    excess = max(0, significand.bit_length() - _BITS)
    return _over(significand, 1 << excess), exponent + excess
