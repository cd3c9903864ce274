"""Gradient ascent inside l2 balls, on any value of a network's outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcert.attacks.gradient import lengths, random_directions, shortened, to_length


def ascend(
    value: Callable[[Tensor], Tensor],
    x: Tensor,
    radius: float,
    *,
    steps: int = 40,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The point of every ball at which the largest value was found, by projected steps.

    Steps shrink from four times the radius to a hundredth of it. The samples themselves and one
    random point of each ball are candidates as well. Points are not clipped.

    Args:
        value: From points ``(N, *)`` to what is to be large, shape ``(N,)``, differentiable.
            Points are of ``dtype``.
        x: Centres, shape ``(N, *)``, float64.
        radius: Of the balls; every point is within it after its own rounding.
        steps: Number of steps.
        seed: Of the random start.
        dtype: Arithmetic of values and gradients; float32 finds points that float64 evaluates.

    Returns:
        Points, of the shape of ``x``, float64.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    best, found = x, value(x.to(dtype)).detach()
    delta = random_directions(x, generator) * (radius / 2)
    for step in range(steps + 1):
        point = (x + delta).to(dtype).detach().requires_grad_()
        with torch.enable_grad():
            now = value(point)
            (gradient,) = torch.autograd.grad(now.sum(), point)
        better = (now.detach() > found).view(-1, *(1,) * (x.dim() - 1))
        best = torch.where(better, x + delta, best)
        found = torch.maximum(now.detach(), found)
        length = torch.full_like(lengths(x), 4 * radius * 0.0025 ** (step / max(steps, 1)))
        uphill = to_length(gradient.double().nan_to_num(nan=0.0), length)
        delta = shortened(delta + uphill, radius)
    return best
