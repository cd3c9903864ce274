"""The gradient that l2 attacks follow, and the geometry that they share."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcert.margins import smallest_margin
from robustcert.network.network import PlainNetwork

# Maps inputs (N, *) to logits (N, C).
Function = Callable[[Tensor], Tensor]

# Distances beyond which float32 does not have room for squares.
MAX_FLOAT32_DISTANCE = 2.0**48


def gradient_dtype(network: PlainNetwork, distance: float = 0.0) -> torch.dtype:
    """Arithmetic of an attack's gradients: float32, where constants and distances have room in it.

    What is found is evaluated in float64.

    Args:
        network: The network under attack.
        distance: Largest distance of the attack.
    """
    wide = network.dtype == torch.float64 or distance > MAX_FLOAT32_DISTANCE
    return torch.float64 if wide else torch.float32


def margin_gradient(network: Function, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    r"""Smallest margin :math:`\min_{j \ne y} f_y - f_j` and its gradient at ``x``.

    Unlike cross-entropy's, this gradient does not fade where the network is confident.

    Args:
        network: The function under attack: a folded network or, in a metric, what
            :meth:`robustcert.network.network.PlainNetwork.around` gives.
        x: Shape ``(N, *input_shape)``.
        label: Classes, shape ``(N,)``.

    Returns:
        Margins ``(N,)`` and gradients of the shape of ``x``; where a gradient is NaN, as beyond an
        overflow, 0 stands for it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        margin = smallest_margin(network(x), label)
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    return margin.detach(), gradient.nan_to_num(nan=0.0)


def changed(margin: Tensor) -> Tensor:
    """Whether the label is no longer the unique largest logit: a tie or a NaN is none either."""
    return ~(margin > 0)


def lengths(x: Tensor) -> Tensor:
    """L2 norm of every sample, shaped to broadcast over it."""
    return x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.dim() - 1))


def to_length(x: Tensor, length: Tensor) -> Tensor:
    """Every sample scaled to the given l2 norm; a zero sample stays zero."""
    tiny = torch.finfo(x.dtype).tiny
    # By the largest entry first, whose square may be out of range, and each time by a number that
    # is in range: a length over the norm of a zero sample is not.
    largest = x.abs().flatten(1).amax(1).view(-1, *(1,) * (x.dim() - 1))
    x = x / largest.clamp_min(tiny)
    return x / lengths(x).clamp_min(tiny) * length


def shortened(delta: Tensor, radius: float | Tensor) -> Tensor:
    """Perturbations, float64, no longer than a radius or than the radius of each, shape ``(N,)``.

    Just inside, so that the rounding of a sum with the centre stays within.
    """
    length = lengths(delta)
    most = torch.as_tensor(radius, dtype=delta.dtype, device=delta.device) * (1 - 1e-9)
    most = most.expand(len(delta)).view(length.shape)
    return torch.where(length > most, to_length(delta, most), delta)


def breaks(network: Function, x: Tensor, label: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
    """Whether perturbations prove that a label is not the prediction on the whole open ball.

    Each is evaluated again: it must be finite, shorter than the radius after its own rounding, and
    leave the label not the unique largest logit.

    Args:
        network: The function under attack: a folded network or, in a metric, what
            :meth:`robustcert.network.network.PlainNetwork.around` gives.
        x: Shape ``(N, *input_shape)``, float64.
        label: Classes, shape ``(N,)``.
        delta: Perturbations, of the shape of ``x``.
        radius: Shape ``(N,)``.

    Returns:
        Boolean, shape ``(N,)``.
    """
    point = x + delta
    # What the sum has moved is taken from the point itself. The factor covers the rounding of
    # differences, squares and their sum, the last term their underflow.
    moved = (point - x).flatten(1)
    distance = moved.norm(dim=1) * (1 + 1e-9) + moved.shape[1] * 2.0**-511
    inside = torch.isfinite(delta).flatten(1).all(1) & (distance < radius)
    with torch.no_grad():
        return inside & changed(smallest_margin(network(point), label))


def random_directions(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector for every sample, drawn on the CPU so that devices agree."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
    return to_length(noise, torch.ones_like(lengths(noise)))
