r"""Activations entry by entry on intervals: lines around their graphs and ranges of their slopes.

What linear relaxations and local Lipschitz bounds know of an activation. Everything is rounded
outward: a line below the graph is below the real function on the whole interval.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcert.activations.absolute import absolute
from robustcert.activations.beta_abs import beta_abs
from robustcert.activations.group_sort import group_sort
from robustcert.activations.n_activation import n_activation
from robustcert.activations.relu import relu
from robustcert.activations.smooth_abs import smooth_abs
from robustcert.activations.smooth_maxmin import smooth_maxmin
from robustcert.activations.softplus import softplus
from robustcert.activations.tanh import tanh
from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation

# A value is within VALUE (|v| + |s(0)| + temperature) of the real function, a derivative within
# SLOPE of the real one: the functions of robustcert.activations document at most 12 units, and 24.
VALUE = 64 * 2.0**-53
SLOPE = 64 * 2.0**-53
# Above what underflow can lose.
FLOOR = 2.0**-900

# Note [lines] (why they enclose the graph)
# ~~~~~~~~~~~~
# For any slope p whatsoever, s(v) >= p v + q on [l, u] if q is at most the minimum of s(v) - p v.
#  * Piecewise linear: the minimum is at l, u or a fold between them; the maximum as well.
#  * Convex: the maximum of s(v) - p v is at an end. The tangent at a point m of [l, u] is below the
#    graph; a slope p that is wrong by at most delta costs delta (u - l) over the interval.
#  * tanh, across 0: its derivative is least at an end, at least p = min(tanh'(l), tanh'(u)), so
#    s(v) - p v increases: its minimum is at l, its maximum at u. On one side of 0 it is convex or
#    concave.
# So only offsets are rounded: outward, by VALUE (|s| + |p v| + scale) and FLOOR.


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
        fixed: Shape ``(n,)``, bool.
        scale: At least the temperature and the magnitude at 0 of every function, and above 0.
    """

    fixed: Tensor
    scale: float

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
        room = VALUE * (value.abs() + product.abs() + v.abs() + self.scale) + FLOOR
        return value - product - room, value - product + room


def _chord(curve: Curve, low: Tensor, high: Tensor) -> Tensor:
    # Any slope is sound; 0 / 0 is none.
    rise, run = curve.value(high) - curve.value(low), high - low
    return (rise / run.clamp(min=FLOOR)).clamp(-1, 1)


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
class Convex(Curve):
    r"""Smooth and convex: softplus, pseudo-Huber, or :math:`2 \tau \log(2 \cosh(v / 2 \tau))`.

    Attributes:
        temperature: Shape ``(n,)``, float64, positive.
        kind: ``softplus``, ``hypot`` or ``cosh``.
    """

    temperature: Tensor
    kind: str

    def value(self, v: Tensor) -> Tensor:
        t = self.temperature
        if self.kind == "hypot":
            return torch.hypot(v, t) - t
        excess = t * F.softplus(-v.abs() * (1 / t))
        return v.relu() + excess if self.kind == "softplus" else v.abs() + 2 * excess

    def derivative(self, v: Tensor) -> Tensor:
        t = self.temperature
        if self.kind == "softplus":
            return torch.sigmoid(v / t)
        return v / torch.hypot(v, t) if self.kind == "hypot" else torch.tanh(v / (2 * t))

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        return _convex_lines(self, low, high, self.derivative)

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        floor = 0.0 if self.kind == "softplus" else -1.0
        least = (self.derivative(low) - SLOPE).clamp(floor, 1)
        return least, (self.derivative(high) + SLOPE).clamp(floor, 1)


@dataclass(frozen=True, eq=False)
class Sigmoidal(Curve):
    """The hyperbolic tangent: convex below 0, concave above."""

    def value(self, v: Tensor) -> Tensor:
        return v.tanh()

    def derivative(self, v: Tensor) -> Tensor:
        return 1 - v.tanh().square()

    def free_lines(self, low: Tensor, high: Tensor) -> Lines:
        convex = _convex_lines(self, low, high, self.derivative)
        # tanh is odd: above 0 the lines are those of the mirror image, turned around.
        turned = _convex_lines(self, -high, -low, self.derivative)
        slope, _ = self.free_slopes(low, high)
        return Lines(
            _by_sign(low, high, convex.low_slope, turned.high_slope, slope),
            _by_sign(low, high, convex.low, -turned.high, self.excess(low, slope)[0]),
            _by_sign(low, high, convex.high_slope, turned.low_slope, slope),
            _by_sign(low, high, convex.high, -turned.low, self.excess(high, slope)[1]),
        )

    def free_slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least = torch.minimum(self.derivative(low), self.derivative(high)) - SLOPE
        nearest = torch.clamp(torch.zeros_like(low), low, high)
        return least.clamp(min=0), (self.derivative(nearest) + SLOPE).clamp(max=1)


def _by_sign(low: Tensor, high: Tensor, below: Tensor, above: Tensor, across: Tensor) -> Tensor:
    return torch.where(high <= 0, below, torch.where(low >= 0, above, across))


def _convex_lines(
    curve: Curve, low: Tensor, high: Tensor, derivative: Callable[[Tensor], Tensor]
) -> Lines:
    chord = _chord(curve, low, high)
    above = torch.maximum(curve.excess(low, chord)[1], curve.excess(high, chord)[1])
    middle = low + (high - low) / 2
    slope = derivative(middle)
    below = curve.excess(middle, slope)[0] - SLOPE * (high - low) * (1 + SLOPE)
    return Lines(slope, below, chord, above)


def curve_of(operation: Activation, features: int) -> tuple[Curve, bool]:
    """The activation's curve on ``features`` entries, and whether it acts on pairs.

    On pairs: neighbours (a, b) go to half of ``(s - h(d), s + h(d))``, where s = a + b and
    d = b - a; the curve is the identity on s and h on d, in turn.

    Raises:
        UnsoundNetworkError: its lines are not known.
    """
    function, constants = operation.function, operation.constants
    none = torch.zeros(features, dtype=torch.bool, device="cpu")
    zero = torch.zeros(1, features, dtype=torch.float64, device="cpu")
    # By exact function: a name may be anyone's.
    if function in (relu, torch.relu):
        return Folded(none, FLOOR, zero, "relu"), False
    if function is absolute:
        return Folded(none, FLOOR, zero, "abs"), False
    if function is beta_abs:
        kept = ~none
        kept[: _integer(constants["count"])] = False
        return Folded(kept, FLOOR, zero, "abs"), False
    if function is group_sort and constants["group_size"] == 2:
        return Folded(_even(features), FLOOR, zero, "abs"), True
    if function is n_activation:
        knots = _tensor(constants["corners"]).expand(2, features)
        return Folded(none, 4 * float(knots.abs().max()) + FLOOR, knots, "zigzag"), False
    if function is tanh:
        return Sigmoidal(none, 1.0), False
    if function is smooth_maxmin:
        t = _tensor(constants["temperature"]).expand(features // 2).repeat_interleave(2)
        return Convex(_even(features), 4 * float(t.max()), t, "cosh"), True
    if function in (softplus, smooth_abs):
        t = _tensor(constants["temperature"]).expand(features)
        kind = "softplus" if function is softplus else "hypot"
        return Convex(none, 2 * float(t.max()), t, kind), False
    raise UnsoundNetworkError(
        f"linear bounds do not cover the activation {function.__name__}: use certifier=lipschitz",
        operation.label,
    )


def _even(features: int) -> Tensor:
    return torch.arange(features, dtype=torch.int64, device="cpu") % 2 == 0


def _tensor(value: Tensor | int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def _integer(value: Tensor | int) -> int:
    return int(value)
