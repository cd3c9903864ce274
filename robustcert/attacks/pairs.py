"""Pairs of inputs whose outputs are far apart: global robustness from below, never a proof."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustcert.attacks.gradient import to_length
from robustcert.network.network import PlainNetwork

# A pair is not further apart than this share of delta, so that rounding cannot help it.
SHARE_OF_DELTA = 1 - 1e-12
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
    pairs = _Pairs(low, high, delta * SHARE_OF_DELTA, norm)
    x, other = pairs.draw(tries, seed)

    def outputs(x: Tensor) -> Tensor:
        return network(x.view(-1, *network.input_shape)) @ rows.mT

    gap = (outputs(other) - outputs(x)).nan_to_num(nan=0.0)
    best = gap.abs().amax(0)
    chosen = gap.abs().topk(max(1, int(CHOSEN * tries)), dim=0).indices
    for j, own in enumerate(chosen.unbind(1)):
        upward = gap[own, j, None] >= 0
        first, second = (
            torch.where(upward, x[own], other[own]),
            torch.where(upward, other[own], x[own]),
        )
        best[j] = max(best[j], _climb(outputs, pairs, first, second, j, steps))
    return best


@dataclass(frozen=True)
class _Pairs:
    """The pairs of inputs of a box at most ``reach`` apart."""

    low: Tensor
    high: Tensor
    reach: float
    norm: Literal["linf", "l2"]

    def draw(self, tries: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random pairs at distance ``reach``, but for the box; half of the first are corners."""
        generator = torch.Generator().manual_seed(seed)
        shape = (tries, len(self.low))
        unit = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        unit[::2] = unit[::2].round()
        x = self.low + unit * (self.high - self.low)
        direction = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return x, self.fit(x, x + self.step(direction, self.reach))

    def step(self, direction: Tensor, size: float) -> Tensor:
        """The steepest step of a size along a direction."""
        if self.norm == "linf":
            return direction.sign() * size
        return to_length(direction, self.low.new_tensor(size))

    def fit(self, x: Tensor, other: Tensor) -> Tensor:
        """The second point, back within reach of the first and into the box."""
        # The box holds x, so that going back into it does not lead away from x.
        moved = other - x
        if self.norm == "linf":
            moved = moved.clamp(-self.reach, self.reach)
        else:
            moved = moved * (self.reach / moved.norm(dim=1, keepdim=True).clamp_min(self.reach))
        return torch.minimum(torch.maximum(x + moved, self.low), self.high)


def _climb(
    outputs: Callable[[Tensor], Tensor],
    pairs: _Pairs,
    x: Tensor,
    other: Tensor,
    j: int,
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
        size = 2 * pairs.reach * (1 - k / steps)
        down, up = pairs.step(down, size), pairs.step(up, size)
        # The first point moves in the box alone, the second follows it.
        x = pairs.fit(x, x + down.nan_to_num(nan=0.0))
        other = pairs.fit(x, other + up.nan_to_num(nan=0.0))
    return torch.maximum(best, (outputs(other) - outputs(x))[:, j].nan_to_num(nan=-math.inf).max())
