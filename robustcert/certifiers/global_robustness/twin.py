r"""How far outputs can move apart when an input does: linear bounds of two copies of a network.

References: Wang, Huang and Zhu, `Efficient global robustness certification of neural networks via
interleaving twin-network encoding <https://arxiv.org/abs/2203.14141>`_, DATE 2022 (the differences
as variables of their own); Wang et al., `GROCET <https://arxiv.org/abs/2208.07289>`_ (symbolic
bounds of them).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.relaxations.backward import (
    FLOOR,
    SLACK,
    Diagonal,
    Linear,
    Matrix,
    Relaxation,
    Step,
)
from robustcert.relaxations.curves import Curve, Lines

# Note [twin] (why the differences are those of a network)
# ~~~~~~~~~~~
# Let x and x' be two inputs of a box whose difference d_0 = x' - x is small, and d_t = z_t' - z_t
# the differences of the values before step t.
#  * Linear step: d_{t+1} = M d_t; the bias cancels.
#  * Curve: d_{t+1} = s(z + d) - s(z) = q d entry by entry, with a quotient q between the least and
#    the greatest slope that s has on the interval in which both z and z' lie. With m in the middle
#    of these and h half of what is between them, |d_{t+1} - m d| <= h |d| <= h max |d|: two
#    parallel lines around the graph of a function of d alone. ReLU has m = h = 1/2 where its fold
#    is inside the interval.
# So the differences are those of a network of the same linear steps without bias and of such
# curves, on the box or ball of d_0, and the backward bounds of robustcert.relaxations.backward hold
# of it, rounding included. The pair (x', x) is as good as (x, x'), so that the differences lie
# symmetrically around 0 and one side says all.
#
# In a metric S the pairs are (x, x + S u) with u on a box or ball, so that d_0 = S u is one linear
# step more, before the others, of the network of differences. Inputs x are those of the box as
# before: S measures how far apart two of them are, not where they lie. Where S = diag(s), the box
# bounds u too: |s_i u_i| = |x_i' - x_i| is at most its width w_i, so |u_i| <= w_i / s_i, and where
# s_i = 0 nothing depends on u_i, which may be 0. A matrix S may be singular, and gives no bound of
# u by that of S u: there u is on the whole box or ball.


@dataclass(frozen=True)
class Domain:
    r"""Pairs of inputs of a box at distance of at most ``delta`` from each other.

    Attributes:
        low: Least input, flat, shape ``(d,)``, float64.
        high: Greatest input, shape ``(d,)``.
        delta: Largest distance, in input units, or in those of u.
        norm: In which it is measured, ``linf`` or ``l2``.
        metric: S as a step without bias, where pairs are x and x + S u with u of at most this norm;
            None where u is the difference itself.
    """

    low: Tensor
    high: Tensor
    delta: float
    norm: Literal["linf", "l2"] = "linf"
    metric: Diagonal | Matrix | None = None

    @cached_property
    def centre(self) -> Tensor:
        """A point in the middle, up to rounding."""
        return self.low + (self.high - self.low) / 2

    @cached_property
    def half(self) -> Tensor:
        """Half-widths around the centre that cover the box."""
        wide = torch.maximum(self.high - self.centre, self.centre - self.low)
        return torch.nextafter(wide, torch.full_like(wide, math.inf))

    @cached_property
    def width(self) -> Tensor:
        """Bounds on the sides of the box, shape ``(d,)``."""
        width = self.high - self.low
        return torch.nextafter(width, torch.full_like(width, math.inf))

    @cached_property
    def spread(self) -> Tensor:
        """Bounds on the entries of u, shape ``(k,)``: Note [twin]."""
        if isinstance(self.metric, Matrix):
            return self.low.new_full((self.metric.weight.shape[1],), self.delta)
        if self.metric is None:
            return self.width.clamp(max=self.delta)
        scale = self.metric.scale.abs()
        # The floor is for a quotient that underflows.
        most = (self.width / scale * SLACK + FLOOR).clamp(max=self.delta)
        return torch.where(scale > 0, most, 0.0)

    @cached_property
    def shift(self) -> Tensor:
        """Bounds on the differences of single entries, shape ``(d,)``."""
        if self.metric is None:
            return self.spread
        moved = self.metric.size(self.spread[None])[0] * SLACK
        still = self.metric.size(torch.ones_like(self.spread)[None])[0] == 0
        return torch.where(still, 0.0, torch.minimum(self.width, moved + FLOOR))

    def distance(self, norm: Literal["linf", "l2"]) -> float:
        r"""Largest distance of a pair in a norm, in a metric that of u, rounded up.

        :math:`\lVert d \rVert_2 \le \sqrt n\, \delta` for linf, and at most the box's diagonal.
        """
        if norm == "linf":
            return float(self.spread.max())
        length = float(self.spread.norm()) * SLACK + math.sqrt(len(self.spread)) * 2.0**-511
        return min(self.delta, length) if self.norm == "l2" else length


@dataclass(frozen=True, eq=False)
class Quotient(Curve):
    """The change of an activation, of which only the slopes are known: Note [twin].

    Attributes:
        least: Least difference quotients, shape ``(n,)``.
        greatest: Greatest ones.
    """

    least: Tensor
    greatest: Tensor

    def value(self, v: Tensor) -> Tensor:
        return (self.least + self.greatest) / 2 * v

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.least.expand_as(low), self.greatest.expand_as(low)

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        middle = ((self.least + self.greatest) / 2).expand_as(low)
        half = torch.maximum(self.greatest - middle, middle - self.least) * SLACK
        most = half * torch.maximum(low.abs(), high.abs()) * SLACK + FLOOR
        most = torch.where(half > 0, most, 0.0)
        return Lines(middle, -most, middle, most)


@dataclass(frozen=True)
class Known:
    """Bounds of the arguments of a curve: values and absolute changes, each ``(n,)``."""

    low: Tensor
    high: Tensor
    change: Tensor


class Twin:
    """Symbolic bounds of values and of differences of two copies of a network.

    Args:
        steps: From :func:`robustcert.relaxations.backward.steps_of`.
        domain: Of the pairs of inputs.
        known: What is proved besides of the arguments of the first curves, in turn.

    Attributes:
        values: Of one copy, on the box.
        changes: Of the network of differences.

    Raises:
        UnsoundNetworkError: a bound is not finite.
    """

    def __init__(self, steps: Sequence[Step], domain: Domain, known: Sequence[Known] = ()) -> None:
        self.steps, self.domain = steps, domain
        curves = [step for step in steps if isinstance(step, Curve)]
        sides, moved = [], []
        for k, curve in enumerate(curves):
            most = torch.full((1, len(curve.fixed)), math.inf, dtype=torch.float64, device="cpu")
            own = known[k] if k < len(known) else Known(-most[0], most[0], most[0])
            sides.append((own.low[None], own.high[None]))
            moved.append((-own.change[None], own.change[None]))
        self.values = Relaxation(steps, domain.centre[None], domain.half[None], sides)
        slopes = [
            curve.slopes(*bounds) for curve, bounds in zip(curves, self.values.bounds, strict=True)
        ]
        quotients = iter(slopes)
        # The metric's step is the first of the differences alone.
        differences: list[Step] = [] if domain.metric is None else [domain.metric]
        self._before = len(differences)
        for step in steps:
            if isinstance(step, Linear):
                differences.append(step.homogeneous())
            else:
                least, greatest = next(quotients)
                differences.append(Quotient(step.fixed, FLOOR, least[0], greatest[0]))
        start = torch.zeros_like(domain.spread)[None]
        reach = (
            domain.spread[None]
            if domain.norm == "linf"
            else torch.tensor([domain.delta], dtype=torch.float64, device="cpu")
        )
        self._start, self._reach = start, reach
        self.changes = Relaxation(differences, start, reach, moved)
        for bounds in (*self.values.bounds, *self.changes.bounds):
            if not all(torch.isfinite(side).all() for side in bounds):
                raise UnsoundNetworkError("the network overflows on the domain: no bound is known")

    @property
    def known(self) -> list[Known]:
        """Bounds of the arguments of every curve."""
        return [
            Known(value[0][0], value[1][0], torch.maximum(-change[0][0], change[1][0]))
            for value, change in zip(self.values.bounds, self.changes.bounds, strict=True)
        ]

    def sizes(self, t: int) -> tuple[Tensor, Tensor]:
        """Magnitudes of the values and of the differences before step t, each ``(n,)``."""
        return self.values.sizes[t][0], self.changes.sizes[t + self._before][0]

    def change(self, rows: Tensor) -> Tensor:
        r"""Bounds on :math:`|a \cdot (f(x') - f(x))|` for rows a of shape ``(R, C)``."""
        plane = self.changes.plane(rows.double()[None])
        return -plane.least(self._start, self._reach)[0]

    def value(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        r"""Bounds on :math:`a \cdot f(x)` for rows a of shape ``(R, C)``."""
        both = torch.cat([rows, -rows]).double()[None]
        least = self.values.plane(both).least(self.values.centre, self.values.radius)[0]
        return least[: len(rows)], -least[len(rows) :]
