"""How fast the Jacobian of an activation changes around a point."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Absolute error of the difference of two computed derivatives, each at most 1.
DIFFERENCE_ERROR = 2.0**-46
# Safety factor for the roundings of a quotient of nonnegative numbers.
QUOTIENT = 1 + 1e-12


@dataclass(frozen=True)
class LocalJacobian:
    """The Jacobian of an activation at given points, and how far it changes around them.

    An activation acts on groups of its inputs: single entries, differences of pairs, whole groups.

    Attributes:
        pull: The transpose of the Jacobian times a vector, relatively within 64 units of rounding.
        share: Length of the part of a vector that the Jacobian of each group acts on.
        chord: Upper bound on the change of each group's Jacobian per change of the group, for
            changes up to a distance of shape ``(N,)``.
    """

    pull: Callable[[Tensor], Tensor]
    share: Callable[[Tensor], Tensor]
    chord: Callable[[Tensor], Tensor]


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """A value for every sample, shaped to combine with a batch."""
    return value.view(-1, *(1,) * (like.dim() - 1))


def bump_chord(
    t: Tensor, centre: Tensor, cap: Tensor, derivative: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Steepest chord of a derivative that rises symmetrically, see Note [anchored curvature].

    Args:
        t: Computed values.
        centre: Bound on how far the real values are, shape ``(N,)``.
        cap: Largest slope of the derivative.
        derivative: The derivative.
    """
    size = t.abs()
    doubt = per_sample(centre, t) + 2.0**-40 * size
    near = size - doubt
    high = derivative(size + doubt)

    def chord(reach: Tensor) -> Tensor:
        d = per_sample(reach, t)
        run = torch.minimum(near, d)
        rise = high - derivative(near - d) + DIFFERENCE_ERROR
        return torch.where(run > 0, torch.minimum(rise / run, cap), cap) * QUOTIENT

    return chord


def unit_slope(t: Tensor, tau: Tensor) -> Tensor:
    """Derivative of the smooth absolute value, also at infinity."""
    # At infinity, where a chord may end, the quotient is not a number.
    return torch.where(t.isinf(), t.sign(), t / torch.hypot(t, tau))
