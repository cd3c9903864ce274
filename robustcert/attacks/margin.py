"""Margin attack on a sphere: does anything at this distance change the prediction?"""

import torch
from torch import Tensor

from robustcert.attacks.gradient import (
    Function,
    lengths,
    margin_gradient,
    random_directions,
    to_length,
)
from robustcert.network.units import in_units


def margin_attack(
    network: Function,
    x: Tensor,
    label: Tensor,
    radius: Tensor,
    *,
    steps: int = 20,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Descend the margin on the sphere of every sample's own radius, without clipping.

    A linear network is broken by the first step; each further one turns the perturbation towards
    the gradient, by less and less.

    Args:
        network: The function under attack: a folded network or, in a metric, what
            :meth:`robustcert.network.network.PlainNetwork.around` gives.
        x: Inputs of shape ``(N, *input_shape)``, see :func:`robustcert.network.units.in_units`;
            use float64.
        label: The class to leave, shape ``(N,)``.
        radius: Distances, shape ``(N,)``, finite.
        steps: Gradient steps.
        seed: Of the direction taken where the gradient vanishes.

    Returns:
        Smallest margins seen, shape ``(N,)``, and the perturbations they were seen at. A NaN counts
        as smallest; unless the margin is above 0, the prediction changed.
    """
    x = in_units(x)
    size = radius.to(x).view(-1, *(1,) * (x.dim() - 1))
    least, gradient = margin_gradient(network, x, label)
    best = torch.zeros_like(x)
    generator = torch.Generator().manual_seed(seed)
    flat = lengths(gradient) == 0
    direction = torch.where(flat, random_directions(x, generator), -gradient)
    delta = to_length(direction, size)
    for step in range(steps):
        margin, gradient = margin_gradient(network, x + delta, label)
        lower = (margin < least) | margin.isnan()
        least = torch.where(lower, margin, least)
        best = torch.where(lower.view(size.shape), delta, best)
        turn = to_length(gradient, size * (1 - step / steps))
        delta = to_length(delta - turn, size)
    return least, best
