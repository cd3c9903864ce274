"""Whether a user's own activations keep the bounds that they state, as far as some pairs tell.

Nothing else holds a stated constant to the function that it is of. As :mod:`agreement` this is a
safeguard and no proof: it finds the constant of another function, not one that is exceeded in a
corner.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.fold import fold_for
from robustcert.network.overrides import class_of

# Multiples of inputs at which pairs are taken.
_FACTORS = (1.0, 10.0)
# Distances of the two inputs of a pair, in units of the largest entry and of 1.
_DISTANCES = (1e-4, 1e-2, 1.0)
# Largest number of inputs, and of their entries that are moved one by one.
MAX_INPUTS, MAX_ENTRIES = 16, 32
# What rounding in float64 may add to a quotient, relatively.
TOLERANCE = 1e-6


# Packages whose classes are tested.
_TESTED = ("robustcert", "torch")


def own_modules(module: nn.Module) -> dict[nn.Module, str]:
    """Modules in a module whose ``fold()`` a user wrote, with their paths."""
    return {
        m: path
        for path, m in module.named_modules()
        if hasattr(m, "fold") and class_of(m).__module__.partition(".")[0] not in _TESTED
    }


def require_stated_bounds(module: nn.Module, path: str, z: Tensor) -> None:
    """Measure an activation at pairs of inputs; nothing is asked of a module that is none.

    Args:
        module: The activation, in float64.
        path: Where it is, for the message.
        z: Inputs of it, shape ``(N, *)``.

    Raises:
        UnsoundNetworkError: a quotient exceeds the Lipschitz constant, or leaves the slopes, that
            its ``fold()`` states.
    """
    operation = fold_for(module, tuple(z.shape[1:]))
    if len(operation) != 1 or not isinstance(operation[0], Activation):
        return
    (activation,) = operation
    assert isinstance(activation, Activation)
    largest, low, high = 0.0, math.inf, -math.inf
    for start, end in _pairs(z[:MAX_INPUTS].double()):
        change, moved = activation(end) - activation(start), end - start
        quotient = change.flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1)
        largest = max(largest, float(quotient.nan_to_num(0.0).max()))
        if activation.slopes and not activation.slopes.pairs and change.shape == moved.shape:
            slope = (change / moved)[moved != 0]
            low, high = min(low, float(slope.min())), max(high, float(slope.max()))
    kind = class_of(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if largest > activation.lipschitz * (1 + TOLERANCE):
        raise UnsoundNetworkError(
            f"{name} states a Lipschitz constant of {activation.lipschitz:.4g}, but two inputs "
            f"were measured whose outputs are {largest:.4g} times as far apart as they are: correct"
            " the lipschitz of its fold()",
            path,
        )
    slopes = activation.slopes
    if slopes and (low < slopes.low - TOLERANCE or high > slopes.high + TOLERANCE):
        raise UnsoundNetworkError(
            f"{name} states slopes from {slopes.low:.4g} to {slopes.high:.4g}, but slopes from "
            f"{low:.4g} to {high:.4g} were measured: correct the slopes of its fold()",
            path,
        )


def _pairs(z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and larger ones, with others at several distances: at random, and along each entry."""
    generator = torch.Generator("cpu").manual_seed(0)
    flat = z.flatten(1)
    entries = torch.eye(flat.shape[1], dtype=z.dtype, device="cpu")[:MAX_ENTRIES]
    noise = torch.randn(len(z), flat.shape[1], generator=generator, dtype=z.dtype, device="cpu")
    largest = float(flat.abs().max()) if flat.numel() else 0.0
    for factor, distance in product(_FACTORS, _DISTANCES):
        start, step = factor * flat, distance * (1 + factor * largest)
        yield start.view_as(z), (start + step * noise).view_as(z)
        for row in start[:, None]:
            moved = (row + step * entries).reshape(-1, *z.shape[1:])
            yield row.expand_as(entries).reshape(-1, *z.shape[1:]), moved
