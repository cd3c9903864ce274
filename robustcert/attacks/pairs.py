"""Pairs of inputs whose outputs are far apart: global robustness from below, never a proof."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
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
    metric: Tensor | None = None,
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
        metric: S, as its diagonal ``(d,)`` or as a matrix ``(d, k)``: pairs are x and x + S u, up
            to the rounding of the sum, with u within ``delta``. None: S is the identity.
        tries: Pairs that are drawn.
        steps: Gradient steps.
        seed: Of the draws.

    Returns:
        Shape ``(R,)``.
    """
    pairs = _Pairs(low, high, delta * SHARE_OF_DELTA, norm, metric)
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
    """The pairs of inputs of a box at most ``reach`` apart, in a metric by u of x + S u."""

    low: Tensor
    high: Tensor
    reach: float
    norm: Literal["linf", "l2"]
    metric: Tensor | None = None

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
        pulled = self._pulled(direction)
        if self.norm == "linf":
            return self._change(pulled.sign() * size)
        return self._change(to_length(pulled, self.low.new_tensor(size)))

    def fit(self, x: Tensor, other: Tensor) -> Tensor:
        """The second point, back within reach of the first and into the box."""
        u = self._least(other - x)
        if self.norm == "linf":
            u = u.clamp(-self.reach, self.reach)
        else:
            u = u * (self.reach / u.norm(dim=1, keepdim=True).clamp_min(self.reach))
        # The box holds x, so that going back into it does not lead away from x.
        return torch.minimum(
            torch.maximum(x + self._inside(x, self._change(u)), self.low), self.high
        )

    def _change(self, u: Tensor) -> Tensor:
        """S u."""
        if self.metric is None:
            return u
        return u * self.metric if self.metric.dim() == 1 else u @ self.metric.mT

    def _pulled(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to u."""
        if self.metric is None:
            return gradient
        return gradient * self.metric if self.metric.dim() == 1 else gradient @ self.metric

    def _least(self, moved: Tensor) -> Tensor:
        """The least u whose S u is nearest to a change of the input."""
        if self.metric is None:
            return moved
        if self.metric.dim() == 1:
            return torch.where(self.metric == 0, 0.0, moved / self.metric)
        return moved @ self._inverse.mT

    @cached_property
    def _inverse(self) -> Tensor:
        assert self.metric is not None
        return torch.linalg.pinv(self.metric)

    def _inside(self, x: Tensor, moved: Tensor) -> Tensor:
        """As much of a change as stays in the box, where single entries cannot stay behind."""
        if self.metric is None or self.metric.dim() == 1:
            return moved
        room = torch.where(moved > 0, self.high - x, x - self.low) / moved.abs()
        return moved * room.nan_to_num(nan=1.0).amin(1, keepdim=True).clamp(max=1.0)


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
