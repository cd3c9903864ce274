"""Decoupled direction and norm: the distance to the nearest adversarial input, from above."""

import math

import torch
from torch import Tensor

from robustcert.attacks.gradient import (
    Function,
    changed,
    lengths,
    margin_gradient,
    random_directions,
    to_length,
)
from robustcert.margins import smallest_margin
from robustcert.network.units import in_units


def ddn(
    network: Function,
    x: Tensor,
    label: Tensor,
    *,
    steps: int = 100,
    restarts: int = 10,
    gamma: float = 0.05,
    initial_norm: float | Tensor = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Smallest perturbation found that changes the prediction from ``label``, without clipping.

    A tie with another class, or a NaN, is a change.

    The perturbation follows the normalised gradient; its norm shrinks by :math:`1 - \gamma` after a
    step that was adversarial and grows by :math:`1 + \gamma` otherwise. The first start is the
    sample itself, the others random points at ``initial_norm``. What is found is pulled back to
    the boundary by bisection.

    Foolbox's attack of this name starts once, at the sample, from one norm for all, inside finite
    bounds, and counts neither a tie nor a NaN: too little to try certificates with.

    Reference: Rony et al., `Decoupling Direction and Norm for Efficient Gradient-Based L2
    Adversarial Attacks and Defenses <https://arxiv.org/abs/1811.09600>`_, CVPR 2019.

    Args:
        network: The function under attack: a folded network or, in a metric, what
            :meth:`robustcert.network.network.PlainNetwork.around` gives.
        x: Inputs of shape ``(N, *input_shape)``, see :func:`robustcert.network.units.in_units`;
            use float64.
        label: The class to leave, shape ``(N,)``.
        steps: Gradient steps from each start.
        restarts: Number of starts.
        gamma: Relative change of the norm in a step.
        initial_norm: First norm, in input units; one for all samples or one for each, shape
            ``(N,)``.
        seed: Of the random starts.

    Returns:
        Distances ``(N,)``, infinite where nothing was found, and the perturbations.
    """
    x = in_units(x)
    generator = torch.Generator().manual_seed(seed)
    best = torch.zeros_like(x)
    found = torch.full_like(lengths(x), torch.inf)
    first = (
        torch.as_tensor(initial_norm, dtype=x.dtype, device=x.device)
        .expand(len(x))
        .view(found.shape)
    )
    for start in range(restarts):
        delta = torch.zeros_like(x)
        if start > 0:
            delta = first * random_directions(x, generator)
        best, found = _descend(
            network, x, label, delta, first, best, found, steps=steps, gamma=gamma
        )
        best, found = _pull_back(network, x, label, best, found)
    return found.flatten(), best


def _descend(
    network: Function,
    x: Tensor,
    label: Tensor,
    delta: Tensor,
    norm: Tensor,
    best: Tensor,
    found: Tensor,
    *,
    steps: int,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """The smallest adversarial perturbations, and their norms, after all steps from one start."""
    for step in range(steps):
        margin, gradient = margin_gradient(network, x + delta, label)
        adversarial = changed(margin).view(norm.shape)
        size = lengths(delta)
        closer = adversarial & (size < found)
        found, best = torch.where(closer, size, found), torch.where(closer, delta, best)
        # Cosine step size, as published.
        alpha = (1 + math.cos(math.pi * step / steps)) / 2
        delta = delta - alpha * to_length(gradient, torch.ones_like(norm))
        norm = norm * torch.where(adversarial, 1 - gamma, 1 + gamma)
        delta = to_length(delta, norm)
    return best, found


def _pull_back(
    network: Function, x: Tensor, label: Tensor, delta: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Bisect the segment from the sample to the adversarial input; keep what is adversarial."""
    low, high = torch.zeros_like(size), torch.ones_like(size)
    for _ in range(25):
        middle = (low + high) / 2
        margin = smallest_margin(network(x + middle * delta), label)
        adversarial = changed(margin).view(size.shape)
        high, low = torch.where(adversarial, middle, high), torch.where(adversarial, low, middle)
    delta = torch.where(torch.isfinite(size), high * delta, delta)
    return delta, torch.where(torch.isfinite(size), lengths(delta), size)
