r"""Linear bounds of dense networks on l2 balls and boxes, many at once, rounding included.

Reference: Zhang et al., `Efficient neural network robustness certification with general activation
functions <https://arxiv.org/abs/1811.00866>`_, NeurIPS 2018 (CROWN).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.activation import Activation
from robustcert.network.bounds import shapes
from robustcert.network.linear import Affine, Dense, Flatten
from robustcert.network.local_error import gamma
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape
from robustcert.norms.scalars import UNIT_ROUNDOFF
from robustcert.relaxations.curves import Curve, Lines, curve_of

# Underflow allowance of a sum of fewer than 2^100 products, per unit of magnitude.
FLOOR = 2.0**-900
# Safety factor for a handful of roundings of nonnegative numbers.
SLACK = 1 + 1e-9

# Note [backward bounds]
# ~~~~~~~~~~~~~~~~~~~~~~
# Let z_t be the values before step t, on a ball around a sample. The claim is
#     f(x) >= a . z_t(x) + c - e    for every x in the ball,
# for rows a of any floats. It starts with a = the rows of interest, c = e = 0 at the last step and
# is pulled back to the input:
#  * Linear step z_{t+1} = M z_t + b. The new row is a' = fl(a M), with |a' - a M| <= g |a||M|
#    entrywise, g = gamma_k for sums of k products, and c' = fl(c + a . b). With |z_t| <= s known on
#    the ball, e' = e + g (|a| . (|M| s + |b|) + |c|) pays for both.
#  * Curve: where a_i > 0 the line below the graph is put in, where a_i < 0 the one above: the slope
#    times a_i is rounded once and the offsets are summed; e' = e + g (|a| . (|slope| s + |offset|)
#    + |c|).
#  * Input: a . x >= a . x0 - |a| r on the ball, a . x0 - |a| . h on a box of half-widths h.
# g is taken for 8 more terms than there are, and every sum of nonnegative numbers is multiplied by
# SLACK, so that the error of computing e itself is covered. FLOOR (1 + sum s) a step pays for
# underflow. Bounds before a curve come from the same procedure with the rows of the identity and
# their negatives, and so its lines hold on the ball.


@dataclass(frozen=True, eq=False)
class Linear(ABC):
    """A step ``z -> M z + b``; ``terms`` is the largest number of products that are summed."""

    terms: int

    @abstractmethod
    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """``rows M`` and ``rows . b`` for rows of shape ``(N, R, m)``."""

    @abstractmethod
    def size(self, magnitude: Tensor) -> Tensor:
        """``|M| s + |b|`` for s of shape ``(N, n)``."""

    @abstractmethod
    def homogeneous(self) -> "Linear":
        """The step ``z -> M z``."""


@dataclass(frozen=True, eq=False)
class Matrix(Linear):
    """A dense layer: weight ``(m, n)`` and bias ``(m,)``, float64."""

    weight: Tensor
    bias: Tensor

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        return rows @ self.weight, rows @ self.bias

    def size(self, magnitude: Tensor) -> Tensor:
        return magnitude @ self.weight.abs().mT + self.bias.abs()

    def homogeneous(self) -> Linear:
        return replace(self, bias=torch.zeros_like(self.bias))


@dataclass(frozen=True, eq=False)
class Diagonal(Linear):
    """A scale and a shift for every entry, shape ``(n,)``."""

    scale: Tensor
    shift: Tensor

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        return rows * self.scale, rows @ self.shift

    def size(self, magnitude: Tensor) -> Tensor:
        return magnitude * self.scale.abs() + self.shift.abs()

    def homogeneous(self) -> Linear:
        return replace(self, shift=torch.zeros_like(self.shift))


@dataclass(frozen=True, eq=False)
class Neighbours(Linear):
    """Pairs (a, b) to ``(a + b, b - a)``; ``back``: the inverse."""

    back: bool

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        first, second = rows[..., ::2], rows[..., 1::2]
        pulled = (first + second, second - first) if self.back else (first - second, first + second)
        return torch.stack(pulled, -1).flatten(-2) * (0.5 if self.back else 1.0), 0.0

    def size(self, magnitude: Tensor) -> Tensor:
        total = (magnitude[:, ::2] + magnitude[:, 1::2]) * (0.5 if self.back else 1.0)
        return total.repeat_interleave(2, 1)

    def homogeneous(self) -> Linear:
        return self


Step = Linear | Curve


def steps_of(network: PlainNetwork, device: torch.device | str = "cpu") -> list[Step]:
    """The network as linear steps and curves, on flat inputs, its constants on ``device``.

    Raises:
        UnsoundNetworkError: an operation is not covered; the message names it.
    """
    steps: list[Step] = []
    for operation, shape in shapes(network.owned().operations, network.input_shape):
        # By exact class: a subclass may compute something else.
        if type(operation) is Flatten:
            continue
        if type(operation) is Dense or type(operation) is Affine:
            steps.append(linear_step(operation, math.prod(shape)))
        elif type(operation) is Activation:
            steps += _steps_of_activation(operation, shape)
        else:
            raise _not_covered(operation)
    return [_moved(step, torch.device(device)) for step in steps]


def linear_step(operation: Dense | Affine, size: int) -> Matrix | Diagonal:
    """A dense or affine operation as a step on flat inputs of ``size`` entries."""
    if isinstance(operation, Affine):
        every = size // len(operation.scale)
        both = (c.double().repeat_interleave(every) for c in (operation.scale, operation.shift))
        return Diagonal(1, *both)
    weight = operation.weight.double()
    bias = weight.new_zeros(len(weight))
    if operation.bias is not None:
        bias = operation.bias.to(weight)
    return Matrix(size, weight, bias)


def _steps_of_activation(operation: Activation, shape: Shape) -> list[Step]:
    curve = curve_of(operation, shape[0])
    if curve.fixed.all():
        return []
    if len(shape) != 1:
        raise _not_covered(operation)
    if not curve.pairs:
        return [curve]
    return [Neighbours(2, back=False), curve, Neighbours(2, back=True)]


def _not_covered(operation: Operation) -> UnsoundNetworkError:
    return UnsoundNetworkError(
        f"linear bounds do not cover the operation {operation.kind}: they need dense layers. "
        "Use certifier=lipschitz",
        operation.label,
    )


def _moved(step: Step, device: torch.device) -> Step:
    tensors = {k: v.to(device) for k, v in vars(step).items() if isinstance(v, Tensor)}
    return replace(step, **tensors)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plane:
    """``f(x) >= rows . x + constant - error``: shapes ``(N, R, d)``, ``(N, R)``, ``(N, R)``."""

    rows: Tensor
    constant: Tensor
    error: Tensor

    def least(self, centre: Tensor, radius: Tensor) -> Tensor:
        """Lower bound of the right-hand side, shape ``(N, R)``; see :class:`Relaxation`."""
        value = (self.rows @ centre[:, :, None])[:, :, 0] + self.constant
        size = (self.rows.abs() @ centre.abs()[:, :, None])[:, :, 0] + self.constant.abs()
        wrong = gamma(centre.shape[1] + 8, UNIT_ROUNDOFF) * size + self.error
        if radius.dim() == 1:
            # The last term is for squares that underflow.
            length = self.rows.norm(dim=2) * SLACK + math.sqrt(centre.shape[1]) * 2.0**-511
            fall = length * radius[:, None]
        else:
            fall = (self.rows.abs() @ radius[:, :, None])[:, :, 0] * SLACK
        return value - (fall + wrong + FLOOR) * SLACK - value.abs() * 4 * UNIT_ROUNDOFF


class Relaxation:
    """Lines around every activation of a network on balls or boxes around samples.

    Args:
        steps: From :func:`steps_of`.
        centre: Samples, flat, shape ``(N, d)``, float64.
        radius: Of l2 balls, shape ``(N,)``; or half-widths of boxes, shape ``(N, d)``.
        sides: For every curve bounds that are assumed of its argument besides, ``(N, n)`` each.

    Attributes:
        bounds: For every curve the bounds of its argument, ``(N, n)`` each.
        lines: For every curve its lines.
        planes: For every curve the planes below its argument and below its negative; kept only
            where ``sides`` are given.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        centre: Tensor,
        radius: Tensor,
        sides: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.steps, self.centre, self.radius = steps, centre, radius
        self.bounds: list[tuple[Tensor, Tensor]] = []
        self.lines: list[Lines] = []
        self.planes: list[Plane] = []
        # Magnitudes of the values before every step, and after the last.
        self.sizes = [(centre.abs() + radius.view(len(centre), -1)) * SLACK]
        for place, step in enumerate(steps):
            size = self.sizes[-1]
            if isinstance(step, Linear):
                self.sizes.append(step.size(size) * SLACK)
                continue
            assumed = sides[len(self.lines)] if sides else None
            low, high = self._interval(place, size.shape[1], assumed)
            self.bounds.append((low, high))
            self.lines.append(step.lines(low, high))
            self.sizes[-1] = torch.maximum(low.abs(), high.abs())
            self.sizes.append((self.sizes[-1] + step.scale) * SLACK)

    def _interval(
        self, place: int, features: int, assumed: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        rows = torch.eye(features, dtype=torch.float64, device=self.centre.device)
        plane = self.plane(torch.cat([rows, -rows])[None], place)
        least = plane.least(self.centre, self.radius)
        low, high = least[:, :features], -least[:, features:]
        if assumed is None:
            return low, high
        self.planes.append(plane)
        return torch.maximum(low, assumed[0]), torch.minimum(high, assumed[1])

    def plane(
        self, rows: Tensor, place: int | None = None, trace: list[Tensor] | None = None
    ) -> Plane:
        """A plane below ``rows . z``, z the values before step ``place``: Note [backward bounds].

        Args:
            rows: Shape ``(N, R, n)`` or ``(1, R, n)``.
            place: The outputs by default.
            trace: Gets the rows at the output of every curve, from the last to the first.
        """
        place = len(self.steps) if place is None else place
        curve = sum(isinstance(step, Curve) for step in self.steps[:place])
        constant = rows.new_zeros(rows.shape[:2])
        error = torch.zeros_like(constant)
        for t in reversed(range(place)):
            step, size = self.steps[t], self.sizes[t]
            if isinstance(step, Linear):
                passed, terms = step.size(size), step.terms
                magnitude = rows.abs() @ passed[:, :, None]
                rows, more = step.pull(rows)
            else:
                curve, terms = curve - 1, size.shape[1]
                if trace is not None:
                    trace.append(rows)
                magnitude, rows, more = _through(self.lines[curve], rows, size)
            lost = gamma(max(terms, size.shape[1]) + 8, UNIT_ROUNDOFF) * (
                magnitude[:, :, 0] + constant.abs()
            )
            constant = constant + more
            error = (error + lost + FLOOR * (1 + size.sum(1, keepdim=True))) * SLACK
        count = len(self.centre)
        return Plane(*(t.expand(count, *t.shape[1:]) for t in (rows, constant, error)))


def _through(lines: Lines, rows: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Size of what is summed, the new rows, and what is added to the constant.
    up, down = rows.clamp(min=0), rows.clamp(max=0)
    pulled = up * lines.low_slope[:, None] + down * lines.high_slope[:, None]
    offset = up @ lines.low[:, :, None] + down @ lines.high[:, :, None]
    steepest = torch.maximum(lines.low_slope.abs(), lines.high_slope.abs()) * size
    furthest = torch.maximum(lines.low.abs(), lines.high.abs())
    magnitude = rows.abs() @ (steepest + furthest)[:, :, None]
    return magnitude, pulled, offset[:, :, 0]


def rival_rows(own: Tensor, classes: int) -> Tensor:
    """Rows that give the margin of class ``own`` over every class, shape ``(N, C, C)``."""
    identity = torch.eye(classes, dtype=torch.float64, device=own.device)
    return identity[own][:, None] - identity[None]


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of ``size`` that cover ``count`` samples."""
    return (slice(start, start + size) for start in range(0, count, size))
