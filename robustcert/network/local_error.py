"""Rounding error of one operation, in any order of summation."""

import math

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError


def gamma(terms: int, unit: float) -> float:
    """Relative error of a sum of ``terms`` products, in any order, rounded up (Higham, ch. 3)."""
    if not terms * unit < 0.5:
        raise UnsoundNetworkError(f"no error bound is known for sums of {terms} products")
    # One ulp of slack per operation of this formula itself.
    return math.nextafter(math.nextafter(terms * unit / (1 - terms * unit), math.inf), math.inf)


# Note [higher orders] (from a count of roundings to a bound)
# ~~~~~~~~~~~~~~~~~~~~
# An activation's formula is computed with factors 1 + d_i, one for every rounding, |d_i| <= c_i u
# and K = sum c_i; a library function has a c_i of 8. By the mean value theorem the result is wrong
# by at most sum c_i u sup |df / d d_i|. Each of these derivatives is a value of the computation
# times the derivatives of what comes after it. To first order they are taken at d = 0; with sizes
# of values, as the counts have them (|z| + tau, not what is left when they cancel), each grows
# within the box by at most a factor (1 + u)^K for its value and another for what comes after:
# products, quotients, roots, sums and functions of slope at most 1 do no worse. An exponential
# whose argument is wrong relatively grows by a factor e^(3 u |z|) besides, |z| below 104 in float32
# and 745 in float64, where it underflows: below 1 + 2^-15. So the bound is the count times
#
#     (1 + u)^(2 K) (1 + 2^-15) <= e^(2^-5) (1 + 2^-15) < 1.032 < 17 / 16    for K u <= 2^-6,
#
# and K is at most MAX_ROUNDINGS for the coarsest unit, 2^-24.
HIGHER_ORDERS = 17 / 16
MAX_ROUNDINGS = 2**18


def counted(
    relative: float, absolute: float = 0.0, *, roundings: float = 100.0
) -> tuple[float, float]:
    """Error constants of an :class:`Activation` from those of first order: Note [higher orders].

    Args:
        relative: First-order count in multiples of the norm of the input.
        absolute: First-order count that remains where the input is 0.
        roundings: Number of roundings that were counted, at most.

    Raises:
        UnsoundNetworkError: there are too many roundings.
    """
    if not roundings <= MAX_ROUNDINGS:
        raise UnsoundNetworkError(
            f"expected an activation of at most {MAX_ROUNDINGS} roundings, got {roundings:g}: "
            "make its groups, windows or numbers of knots smaller"
        )
    return HIGHER_ORDERS * relative, HIGHER_ORDERS * absolute


def absolute_norm(weight: Tensor) -> float:
    r"""Upper bound on the norm of the map with kernel :math:`|W|`, by the Schur test.

    :math:`\lVert |W| \rVert_2 \le \sqrt{\max_i \sum_j |W_{ij}| \, \max_j \sum_i |W_{ij}|}`, which
    a convolution's taps bound from above for any padding and stride.
    """
    magnitude = weight.double().abs().flatten(2) if weight.dim() > 2 else weight.double().abs()
    out_sums = magnitude.flatten(1).sum(1).max()
    in_sums = magnitude.sum(0).max() if weight.dim() == 2 else magnitude.sum((0, 2)).max()
    # Rooted one by one, so that the product neither overflows nor underflows.
    return float(out_sums.sqrt() * in_sums.sqrt()) * (1 + 1e-9)


def affine_rounding(
    weight: Tensor, bias: Tensor | None, fan_in: int, positions: int, unit: float
) -> tuple[float, float]:
    """Rounding error of ``W z + b``: ``(a, b)`` for ``a |z| + b``."""
    # |fl(Wz + b) - (Wz + b)| <= gamma_{n+1} (|W||z| + |b|) entrywise, then the l2 norm of both.
    g = gamma(fan_in + 1, unit)
    outputs = weight.shape[0] * positions
    shift = 0.0
    if bias is not None:
        shift = float(bias.double().norm()) * math.sqrt(positions)
    # Flushed products and sums, inputs (against the weights) and weights (against the inputs).
    tiny = smallest_normal(unit)
    flushed = 2 * (fan_in + 1) * tiny * math.sqrt(outputs) * (1 + float(weight.abs().max()))
    return (
        (g * absolute_norm(weight) + tiny * weight.numel()) * (1 + 1e-12),
        (g * shift + flushed) * (1 + 1e-9),
    )


def smallest_normal(unit: float) -> float:
    """Smallest normal number of the arithmetic with this unit roundoff."""
    # Numbers below it may be lost, by underflow or on hardware that flushes subnormal ones.
    return torch.finfo(torch.float64 if unit < 1e-10 else torch.float32).smallest_normal
