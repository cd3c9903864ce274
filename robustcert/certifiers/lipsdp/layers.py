"""Linear maps followed by activations on every coordinate, as semidefinite bounds take them."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustcert.norms.proof import Scaled, energy_up, scaled
from robustcert.norms.scalars import exact, gamma, root_up

# Tail of a matrix that is represented exactly.
NOTHING = Fraction(0)


@dataclass(frozen=True)
class Layer:
    """A linear map and an activation on every coordinate of its output.

    Attributes:
        matrix: The map, shape ``(n, n_in)``.
        low: Least difference quotient, shape ``(n,)``, float64.
        high: Greatest difference quotient.
    """

    matrix: Scaled
    low: Tensor
    high: Tensor

    @property
    def values(self) -> Tensor:
        """The map as a tensor, up to its power of two."""
        return torch.from_numpy(self.matrix.values)

    @property
    def middle(self) -> Tensor:
        """Centres of the intervals of slopes."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half their lengths, rounded up; exactly 0 where the slope is known."""
        middle = self.middle
        return torch.maximum(self.high - middle, middle - self.low) * (1 + 2.0**-50)


def compose(outer: Scaled, inner: Scaled | None) -> Scaled:
    """The map ``outer inner``; one-dimensional values are those of a diagonal map."""
    if inner is None:
        return outer
    a, b = torch.from_numpy(outer.values), torch.from_numpy(inner.values)
    if b.dim() == 1:
        product = a * b
    elif a.dim() == 1:
        product = a[:, None] * b
    else:
        product = a @ b
    norm_a, norm_b = frobenius(a), frobenius(b)
    error = gamma(a.shape[-1]) * norm_a * norm_b
    error += outer.tail * (norm_b + inner.tail) + norm_a * inner.tail
    again = scaled(product)
    unit = Fraction(2) ** -again.exponent
    exponent = again.exponent + outer.exponent + inner.exponent
    return Scaled(again.values, exponent, again.tail + error * unit)


def frobenius(matrix: Tensor) -> Fraction:
    """Frobenius norm, rounded up."""
    return exact(root_up(energy_up(matrix.contiguous().numpy()[None])))
