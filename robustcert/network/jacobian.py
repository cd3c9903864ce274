"""How fast the Jacobian of an activation changes around a point."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcert.network.activation import Activation

# Absolute error of the difference of two derivatives, each at most 1.
SLACK = 2.0**-46


@dataclass(frozen=True)
class Bend:
    """An activation's Jacobian at given points.

    Attributes:
        pull: Its transpose times a vector.
        share: What a vector has in each group, in absolute value.
        chord: Largest change of each group's Jacobian per change of the group, for changes up to a
            distance of shape ``(N,)``.
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
        rise = high - derivative(near - d) + SLACK
        return torch.where(run > 0, torch.minimum(rise / run, cap), cap) * (1 + 1e-12)

    return chord


def unit_slope(t: Tensor, tau: Tensor) -> Tensor:
    """Derivative of the smooth absolute value, also at infinity."""
    # At infinity, where a chord may end, the quotient is not a number.
    return torch.where(t.isinf(), t.sign(), t / torch.hypot(t, tau))


def constant_of(operation: Activation, name: str, like: Tensor) -> Tensor:
    """A tensor constant of an activation, in the dtype and device of another tensor."""
    value = operation.constants[name]
    assert isinstance(value, Tensor)
    return value.to(like)
