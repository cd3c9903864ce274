r"""Activations entry by entry on intervals: lines around their graphs and ranges of their slopes.

What linear relaxations and local Lipschitz bounds know of an activation. Everything is rounded
outward: a line below the graph is below the real function on the whole interval.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.norms.scalars import UNIT_ROUNDOFF

# Error of a computed value, in multiples of |v| + |s(v)| + scale. What activations document is at
# most 12 units.
VALUE_ERROR = 64 * UNIT_ROUNDOFF
# Error of a computed derivative. What activations document is at most 24 units.
DERIVATIVE_ERROR = 64 * UNIT_ROUNDOFF
# Underflow allowance of a value.
UNDERFLOW = 2.0**-900

# Note [lines] (why they enclose the graph)
# ~~~~~~~~~~~~
# For any slope p whatsoever, s(v) >= p v + q on [l, u] if q is at most the minimum of s(v) - p v.
#  * Piecewise linear: the minimum is at l, u or a fold between them; the maximum as well.
#  * Convex: the maximum of s(v) - p v is at an end. The tangent at a point m of [l, u] is below the
#    graph; a slope p that is wrong by at most delta costs delta (u - l) over the interval.
#  * Sigmoidal, across 0: its derivative is least at an end, at least p = min(s'(l), s'(u)), so
#    s(v) - p v increases: its minimum is at l, its maximum at u. On one side of 0 it is convex or
#    concave.
# So only offsets are rounded: outward, by VALUE_ERROR (|s| + |p v| + |v| + scale) and UNDERFLOW.


@dataclass(frozen=True)
class Lines:
    """``low_slope v + low <= s(v) <= high_slope v + high`` on an interval, shapes ``(N, n)``."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Curve(ABC):
    """A function of one number for each of n coordinates; the identity where ``fixed``.

    Attributes:
        fixed: Shape ``(n,)``, bool, on the CPU.
        scale: At least the temperature and the magnitude at 0 of every function, and above 0.
        pairs: Whether it acts on neighbours (a, b), which go to half of ``(s - h(d), s + h(d))``
            with s = a + b and d = b - a: the curve is the identity on s and h on d, in turn.
    """

    fixed: Tensor
    scale: float
    pairs: bool = field(default=False, kw_only=True)

    @abstractmethod
    def value(self, v: Tensor) -> Tensor:
        """The function on ``(N, n)``, in float64."""

    @abstractmethod
    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        """Lines around the graph between ``low`` and ``high``, where not fixed."""

    @abstractmethod
    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest difference quotients between ``low`` and ``high``."""

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Lines around the graph between ``low`` and ``high``, each ``(N, n)``."""
        found = self.free_lines(low, high)
        slope, offset = self.fixed.to(low), torch.zeros_like(low)
        return Lines(
            torch.where(self.fixed, slope, found.low_slope),
            torch.where(self.fixed, offset, found.low),
            torch.where(self.fixed, slope, found.high_slope),
            torch.where(self.fixed, offset, found.high),
        )

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest difference quotients between ``low`` and ``high``, ``(N, n)``."""
        least, greatest = self.free_slopes(low, high)
        one = torch.ones_like(low)
        return torch.where(self.fixed, one, least), torch.where(self.fixed, one, greatest)

    def excess(self, v: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of ``s(v) - slope v``, rounding included."""
        value, product = self.value(v), slope * v
        room = VALUE_ERROR * (value.abs() + product.abs() + v.abs() + self.scale) + UNDERFLOW
        return value - product - room, value - product + room


def _chord(curve: Curve, low: Tensor, high: Tensor) -> Tensor:
    # Any slope is sound; 0 / 0 is none.
    rise, run = curve.value(high) - curve.value(low), high - low
    return (rise / run.clamp(min=UNDERFLOW)).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class Folded(Curve):
    """Piecewise linear with slopes in [-1, 1].

    Attributes:
        knots: Where it folds, shape ``(K, n)``.
        kind: ``relu``, ``abs`` (both with the fold at 0) or ``zigzag``.
    """

    knots: Tensor
    kind: str

    def value(self, v: Tensor) -> Tensor:
        if self.kind == "relu":
            return v.relu()
        if self.kind == "abs":
            return v.abs()
        return v - 2 * torch.clamp(v, self.knots[0], self.knots[1])

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        chord = _chord(self, low, high)
        slope = chord
        if self.kind != "zigzag":
            # Convex: the side that reaches further is followed, which leaves the smaller area.
            slope = self.value(torch.sign(high + low))
            slope = torch.where(high + low < 0, -slope, slope)
        points = [low, high, *(torch.clamp(knot, low, high) for knot in self.knots)]
        below = [self.excess(v, slope)[0] for v in points]
        above = [self.excess(v, chord)[1] for v in points]
        return Lines(slope, torch.stack(below).amin(0), chord, torch.stack(above).amax(0))

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "zigzag":
            outside = (high <= self.knots[0]) | (low >= self.knots[1])
            inside = (low >= self.knots[0]) & (high <= self.knots[1])
            one = torch.ones_like(low)
            return torch.where(outside, one, -1.0), torch.where(inside, -one, 1.0)
        left = torch.full_like(low, 0.0 if self.kind == "relu" else -1.0)
        return (
            torch.where(low >= 0, 1.0, left),
            torch.where(high <= 0, left, 1.0),
        )


@dataclass(frozen=True, eq=False)
class Smooth(Curve):
    """A curve with a derivative."""

    @abstractmethod
    def derivative(self, v: Tensor) -> Tensor:
        """The derivative on ``(N, n)``, in float64."""


@dataclass(frozen=True, eq=False)
class Convex(Smooth):
    """Smooth and convex, with a temperature.

    Attributes:
        temperature: Shape ``(n,)``, float64, positive.
        flattest: Infimum of the derivative.
    """

    flattest: ClassVar[float]
    temperature: Tensor

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        return _convex_lines(self, low, high)

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least = (self.derivative(low) - DERIVATIVE_ERROR).clamp(self.flattest, 1)
        return least, (self.derivative(high) + DERIVATIVE_ERROR).clamp(self.flattest, 1)


@dataclass(frozen=True, eq=False)
class Sigmoidal(Smooth):
    """Smooth, odd and increasing with a slope of at most 1, convex below 0 and concave above."""

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        convex = _convex_lines(self, low, high)
        # It is odd: above 0 the lines are those of the mirror image, turned around.
        turned = _convex_lines(self, -high, -low)
        slope, _ = self.free_slopes(low, high)
        return Lines(
            _by_sign(low, high, convex.low_slope, turned.high_slope, slope),
            _by_sign(low, high, convex.low, -turned.high, self.excess(low, slope)[0]),
            _by_sign(low, high, convex.high_slope, turned.low_slope, slope),
            _by_sign(low, high, convex.high, -turned.low, self.excess(high, slope)[1]),
        )

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least = torch.minimum(self.derivative(low), self.derivative(high)) - DERIVATIVE_ERROR
        nearest = torch.clamp(torch.zeros_like(low), low, high)
        return least.clamp(min=0), (self.derivative(nearest) + DERIVATIVE_ERROR).clamp(max=1)


def _by_sign(low: Tensor, high: Tensor, below: Tensor, above: Tensor, across: Tensor) -> Tensor:
    return torch.where(high <= 0, below, torch.where(low >= 0, above, across))


def _convex_lines(curve: Smooth, low: Tensor, high: Tensor) -> Lines:
    chord = _chord(curve, low, high)
    above = torch.maximum(curve.excess(low, chord)[1], curve.excess(high, chord)[1])
    middle = low + (high - low) / 2
    slope = curve.derivative(middle)
    wrong = DERIVATIVE_ERROR * (high - low) * (1 + DERIVATIVE_ERROR)
    return Lines(slope, curve.excess(middle, slope)[0] - wrong, chord, above)


def all_free(features: int) -> Tensor:
    """``fixed`` of a curve that bends at every entry."""
    return torch.zeros(features, dtype=torch.bool, device="cpu")


def even_fixed(features: int) -> Tensor:
    """``fixed`` of a curve on the sums and differences of pairs."""
    return torch.arange(features, dtype=torch.int64, device="cpu") % 2 == 0


def kink_at_zero(fixed: Tensor, kind: str, *, pairs: bool = False) -> Folded:
    """The ``relu`` or the ``abs`` of all entries that are not fixed."""
    knots = torch.zeros(1, len(fixed), dtype=torch.float64, device="cpu")
    return Folded(fixed, UNDERFLOW, knots, kind, pairs=pairs)


def relu_relaxation(_: Activation, features: int) -> Curve:
    """ReLU, also torch's own, which has no file among the activations."""
    return kink_at_zero(all_free(features), "relu")


def curve_of(operation: Activation, features: int) -> Curve:
    """The curve of an activation on ``features`` entries.

    Raises:
        UnsoundNetworkError: its lines are not known.
        TypeError: its relaxation gave something else.
    """
    name, relaxation = operation.function.__name__, operation.relaxation
    if operation.function is torch.relu:
        relaxation = relu_relaxation
    if relaxation is None:
        raise UnsoundNetworkError(
            f"linear bounds do not cover the activation {name}: its fold() states no relaxation "
            "(robustcert/activations/tanh.py is an example). Use certifier=lipschitz",
            operation.label,
        )
    curve = relaxation(operation, features)
    if not isinstance(curve, Curve) or curve.fixed.shape != (features,):
        raise TypeError(
            f"relaxation of the activation {name}: expected a Curve on {features} entries, got "
            f"{curve!r}"
        )
    return curve
