"""Floating-point formats, and allowances for rounding in the checker's own float64."""

import math
from dataclasses import dataclass

import numpy as np

from robustcert.check.fixed_point import Floats

# Unit roundoff of float64.
UNIT = 2.0**-53
# Safety factor for the rounding of sums and products of nonnegative float64 numbers.
SLACK = 1 + 2.0**-26
# Allowance for underflow in an l2 norm: squares of smaller entries may be lost.
TINY = 2.0**-500
# Smallest upper bound above 0: smaller products lose digits, or are 0.
FLOOR = 2.0**-1000


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format: unit roundoff, least normal number, largest safe magnitude."""

    unit: float
    least: float
    safe: float

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of ``terms`` products; infinite where the bound does not hold."""
        product = terms * self.unit
        return product / (1 - product) * SLACK if product < 0.5 else math.inf


# The formats that a deployed network may be evaluated in.
FLOAT64 = Arithmetic(UNIT, 2.0**-1022, 2.0**990)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126, 2.0**96)


def product(a: Floats | float, b: Floats | float) -> Floats:
    """Products of nonnegative upper bounds, which bound the product up to :data:`SLACK`."""
    found = np.multiply(a, b)
    return np.where(np.logical_and(np.greater(a, 0), np.greater(b, 0)), found.clip(FLOOR), found)


def norm(values: Floats) -> Floats:
    """Upper bounds of the l2 norms of the rows."""
    flat = values.reshape(len(values), -1)
    return np.sqrt(np.einsum("ni,ni->n", flat, flat)) * SLACK + TINY * flat.shape[1]
