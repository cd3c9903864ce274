"""Gradient ascent inside l2 balls, on any value of a network's outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcert.attacks.gradient import lengths, random_directions, to_length


def ascend(
    value: Callable[[Tensor], Tensor],
    x: Tensor,
    radius: float,
    *,
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """The point of every ball at which the largest value was found, by projected steps.

    Steps shrink from four times the radius to a hundredth of it. The samples themselves and one
    random point of each ball are candidates as well. Points are not clipped.

    Args:
        value: From points ``(N, *)`` to what is to be large, shape ``(N,)``, differentiable.
        x: Centres, shape ``(N, *)``, float64.
        radius: Of the balls; every point is within it after its own rounding.
        steps: Number of steps.
        seed: Of the random start.

    Returns:
        Points, of the shape of ``x``.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    best, found = x, value(x).detach()
    delta = random_directions(x, generator) * (radius / 2)
    for step in range(steps + 1):
        point = (x + delta).detach().requires_grad_()
        with torch.enable_grad():
            now = value(point)
            (gradient,) = torch.autograd.grad(now.sum(), point)
        better = (now.detach() > found).view(-1, *(1,) * (x.dim() - 1))
        best = torch.where(better, point.detach(), best)
        found = torch.maximum(now.detach(), found)
        length = torch.full_like(lengths(x), 4 * radius * 0.0025 ** (step / max(steps, 1)))
        delta = _within(
            point.detach() - x + to_length(gradient.nan_to_num(nan=0.0), length), radius
        )
    return best


def _within(delta: Tensor, radius: float) -> Tensor:
    """Perturbations shortened to just inside the radius, so that the sum's rounding stays in."""
    shorter = torch.full_like(lengths(delta), radius * (1 - 1e-9))
    return torch.where(lengths(delta) > shorter, to_length(delta, shorter), delta)
