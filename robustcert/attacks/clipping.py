"""Attacks within what inputs can be: clipped to the ranges that the data state."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork


def clips_columns(network: PlainNetwork) -> bool:
    """Whether attacks are clipped to ranges of columns.

    In a metric that is a matrix they are not: what is clipped there may be further away.
    """
    space = network.space
    return space.ranges is not None and not isinstance(space.metric, Dense)


def around_clipped(network: PlainNetwork, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """As :meth:`PlainNetwork.around`, of the network at inputs clipped to the stated ranges.

    Where x is in the ranges, and S is diagonal, a clipped input is no further from x than the
    input was, so that what is found in a ball is at an input of the ball.
    """
    if not clips_columns(network):
        return network.around(x)
    point, centre = network.balls(x)
    ranges = torch.tensor(network.space.ranges, dtype=x.dtype, device=x.device).view(
        -1, 2, *(1,) * (x.dim() - 2)
    )
    low, high = ranges.unbind(1)
    return lambda u: network(torch.minimum(torch.maximum(point(u), low), high)), centre


def limits(network: PlainNetwork) -> str:
    """What attacks are clipped to, in words."""
    if clips_columns(network):
        return "clipped to the stated ranges of columns"
    if network.space.metric is not None:
        return "of u in x + S u, not clipped"
    return "clipped to [0, 1]" if network.space.kind == "images" else "not clipped"
