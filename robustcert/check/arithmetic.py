"""Floating-point formats, and what covers rounding in the checker's own float64."""

import math
from dataclasses import dataclass

import numpy as np

from robustcert.check.fixed_point import Floats

# Covers the rounding of every sum of nonnegative terms here.
SLACK = 1 + 2.0**-26


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format: unit roundoff, least normal number, largest safe magnitude."""

    unit: float
    least: float
    safe: float

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of products; infinite where the theory says nothing."""
        product = terms * self.unit
        return product / (1 - product) * SLACK if product < 0.5 else math.inf


FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022, 2.0**990)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126, 2.0**96)


def norm(values: Floats) -> Floats:
    """Upper bounds of the l2 norms of the rows."""
    flat = values.reshape(len(values), -1)
    # Squares below 2^-1022 may be lost.
    return np.sqrt(np.einsum("ni,ni->n", flat, flat)) * SLACK + 2.0**-500 * flat.shape[1]
