"""Pairs of inputs whose outputs are far apart: global robustness from below, never a proof."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustcert.attacks.gradient import to_length
from robustcert.network.network import PlainNetwork

# A pair is not further apart than this share of delta, so that rounding cannot help it.
INSIDE = 1 - 1e-12
# The share of the tries that go on by gradients.
CHOSEN = 0.1


def largest_changes(
    network: PlainNetwork,
    low: Tensor,
    high: Tensor,
    delta: float,
    norm: Literal["linf", "l2"],
    rows: Tensor,
    *,
    tries: int = 10_000,
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    r"""The largest :math:`|a \cdot (f(x') - f(x))|` seen, for rows a of shape ``(R, C)``.

    Pairs are drawn in the box, half of them at its corners, at distance ``delta`` in random
    directions; a tenth of them, for every row the best ones, climb by signed gradients (l2: by
    normalised ones) of both points, back into the box and the distance after every step.

    Args:
        network: The network; evaluated in float64.
        low: Least input, flat, shape ``(d,)``, float64.
        high: Greatest input.
        delta: Largest distance of a pair.
        norm: In which it is measured.
        rows: float64.
        tries: Pairs that are drawn.
        steps: Gradient steps.
        seed: Of the draws.

    Returns:
        Shape ``(R,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (tries, len(low))
    unit = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    unit[::2] = unit[::2].round()
    x = low + unit * (high - low)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    reach = delta * INSIDE
    step = (
        direction.sign() * reach if norm == "linf" else to_length(direction, low.new_tensor(reach))
    )

    def fit(x: Tensor, other: Tensor) -> Tensor:
        # The box holds x, so that going back into it does not lead away from x.
        moved = other - x
        if norm == "linf":
            moved = moved.clamp(-reach, reach)
        else:
            moved = moved * (reach / moved.norm(dim=1, keepdim=True).clamp_min(reach))
        return torch.minimum(torch.maximum(x + moved, low), high)

    def outputs(x: Tensor) -> Tensor:
        return network(x.view(-1, *network.input_shape)) @ rows.mT

    other = fit(x, x + step)
    gap = (outputs(other) - outputs(x)).nan_to_num(nan=0.0)
    best = gap.abs().amax(0)
    chosen = gap.abs().topk(max(1, int(CHOSEN * tries)), dim=0).indices
    for j, own in enumerate(chosen.unbind(1)):
        upward = gap[own, j, None] >= 0
        first, second = (
            torch.where(upward, x[own], other[own]),
            torch.where(upward, other[own], x[own]),
        )
        best[j] = max(best[j], _climb(outputs, fit, first, second, j, reach, norm, steps))
    return best


def _climb(
    outputs: Callable[[Tensor], Tensor],
    fit: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    other: Tensor,
    j: int,
    reach: float,
    norm: str,
    steps: int,
) -> Tensor:
    """The largest rise of output j from x to other, by ascent on both."""
    best = torch.tensor(-math.inf, dtype=torch.float64, device="cpu")
    for k in range(steps):
        with torch.enable_grad():
            pair = [p.detach().requires_grad_() for p in (x, other)]
            rise = outputs(pair[1])[:, j] - outputs(pair[0])[:, j]
            down, up = torch.autograd.grad(rise.sum(), pair)
        best = torch.maximum(best, rise.detach().nan_to_num(nan=-math.inf).max())
        size = 2 * reach * (1 - k / steps)
        if norm == "linf":
            down, up = down.sign() * size, up.sign() * size
        else:
            down, up = (to_length(side, x.new_tensor(size)) for side in (down, up))
        # The first point moves in the box alone, the second follows it.
        x = fit(x, x + down.nan_to_num(nan=0.0))
        other = fit(x, other + up.nan_to_num(nan=0.0))
    return torch.maximum(best, (outputs(other) - outputs(x))[:, j].nan_to_num(nan=-math.inf).max())
