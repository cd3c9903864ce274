r"""Bounds on the fall of a margin within a radius, from its gradient and its curvature.

Let f be a difference of two logits of a smooth network with operations T_1 ... T_n, x the sample,
J_l(y) the Jacobian of T_l at the point that y is mapped to, :math:`u_l` the gradient of f at x with
respect to the output of T_l, and P_l a Lipschitz constant of everything before T_l. Replacing one
factor of the product of Jacobians at a time, from the first on,

.. math:: \nabla f(y) - \nabla f(x) =
    \sum_l J_1(y)^\top \cdots J_{l-1}(y)^\top [J_l(y) - J_l(x)]^\top u_l .

The factors at y have a product of norm at most P_l. Linear operations have no term. An activation
changes its Jacobian unit by unit (``activation_curvature.py``), by at most a chord :math:`c_k`
times the change of the unit, and the changes of all units together have norm at most :math:`P_l |y
- x|`. Hence for :math:`|y - x| \le s`

.. math:: |\nabla f(y) - \nabla f(x)| \le s M(s), \quad
    M(s) = \sum_l P_l^2 \max_k |u_{l,k}|\, c_k(P_l s),

and along a ray f falls no faster than :math:`G(s) = \min(K, |\nabla f(x)| + s M(s))`. M does not
fall with s: for any partition of [0, r], the values of M at the ends of the pieces bound the
integral of G. The point where the minimum changes from one bound to the other need not be exact,
because both bounds hold everywhere.

Rounding. The computed :math:`u_l` has an error of norm at most E_l. With N_l the proved norm of an
operation, M_l the Lipschitz constant of its Jacobian, :math:`D_l` the error of its input and
:math:`\rho` the rounding of a product,

.. math:: E_{l-1} \le N_l E_l + (M_l D_l + \rho) |u_l|,

and E_l is added to every unit. In float64 slopes are within 48 units of roundoff, a unit is turned
by at most ten operations, groups of g by 8 g units more, and t is a sum of two products, or of an
entry and a corner, or a length, within 2^-43 of their magnitudes. In exact arithmetic products are
integers, activations and chords balls.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np

from robustcert.check.activation_curvature import (
    ActivationCurvature,
    Balls,
    Reals,
    constants_of,
    curvature_of,
    units,
)
from robustcert.check.activations.kind import along
from robustcert.check.arithmetic import FLOAT64, SLACK, TINY, norm, product
from robustcert.check.fixed_point import (
    GRID_BITS,
    Floats,
    Integers,
    balls,
    enclose,
    exponent,
    flint,
    to_integers,
)
from robustcert.check.forward.exact import Exact, adjoint_exactly, shortened
from robustcert.check.forward.floating import Evaluation
from robustcert.check.forward.linear import absolute_norm, adjoint
from robustcert.check.network.operation import Operation
from robustcert.check.norms.metric import Metric

# Ends of the pieces of [0, r], in multiples of the radius that the constants alone prove. Every
# choice is sound.
PIECE_ENDS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
# Maximum number of features that one unit of an activation may read.
MAX_UNIT_SIZE = 16
# Kinds of operations whose Jacobian is the same everywhere.
LINEAR = ("dense", "convolution", "affine", "flatten")


@dataclass(frozen=True)
class Gradient:
    """Upper bounds for P pairs of a sample and a difference of logits.

    Attributes:
        norm: Norm of the gradient at the sample, ``(P,)``.
        turns: M(s) at S distances for each pair, ``(S, P)``.
    """

    norm: Floats
    turns: Floats


def uncovered(operations: Sequence[Operation]) -> Operation | None:
    """An operation through which gradients cannot be bounded; None if there is none."""
    for operation in operations:
        large = operation.options.get("group_size", 1) > MAX_UNIT_SIZE
        if operation.kind not in LINEAR and (curvature_of(operation) is None or large):
            return operation
    return None


def pieces(first: Floats, radius: Floats) -> Floats:
    """Ends of pieces of [0, radius], ``(S, P)``; the constants prove the radii ``first``."""
    ends = [np.nan_to_num(factor * first).clip(0.0) for factor in PIECE_ENDS]
    return np.stack([*(np.minimum(end, radius) for end in ends if (end < radius).any()), radius])


def fall(gradient: Gradient, ends: Floats, constant: Floats, drift: float) -> Floats:
    """Upper bound of the integral of G + ``drift`` over [0, ends[-1]], ``(P,)``."""
    total, start = drift * ends[-1], np.zeros_like(constant)
    with np.errstate(all="ignore"):
        for end, turn in zip(ends, gradient.turns, strict=True):
            steep = (constant - gradient.norm) / turn
            middle = np.nan_to_num(steep, nan=0.0, posinf=math.inf).clip(start, end)
            rising = (middle - start) * (gradient.norm + turn * (middle + start) / 2)
            total = total + rising + constant * (end - middle)
            start = end
    return total * SLACK


def gradients(
    operations: Sequence[Operation],
    states: Sequence[Evaluation],
    norms: Mapping[str, float],
    rows: Any,
    direction: Floats,
    ends: Floats,
    metric: Metric | None = None,
) -> Gradient:
    """Bound gradients, in float64.

    Args:
        operations: Operations of the network, in which :func:`uncovered` finds none.
        states: Evaluations before each operation, and that of the logits.
        norms: Proved norms by path.
        rows: Row of the sample of each pair, ``(P,)``.
        direction: Coefficients of the logits in the difference, ``(P, C)``, exact.
        ends: Distances ``(S, P)``.
        metric: In which gradients and distances are; None for the l2 distance of inputs.
    """
    u, error, turns = direction, np.zeros(len(direction)), np.zeros_like(ends)
    with np.errstate(all="ignore"):
        for operation, state in zip(reversed(operations), reversed(states[:-1]), strict=True):
            size, doubt = norm(u), state.centre[0, rows]
            activation, own = curvature_of(operation), np.zeros_like(error)
            if activation is None:
                u, relative = _transpose(operation, u)
                own += relative
            else:
                z = state.values[rows]
                parts = units(operation, activation, z)
                c = [along(constant, parts[0]) for constant in constants_of(operation)]
                # Error of t, from the error of the input and from its own evaluation.
                largest = max((float(abs(k).max()) for k in c), default=0.0)
                doubt = doubt + 2.0**-42 * (abs(z).reshape(len(z), -1).max(1) + largest)
                pulled = units(operation, activation, u, outputs=True)
                weight = _weight(activation, pulled, c, error)
                for i, end in enumerate(ends):
                    d = _each(product(end, state.constant) * SLACK, parts[0])
                    chord = activation.chord(Reals, parts, c, _each(doubt, parts[0]), d)
                    most = (chord * weight).reshape(len(u), -1).max(1)
                    square = product(state.constant, state.constant)
                    turns[i] += product(square, most) * SLACK
                u = _joined(activation.pull(Reals, parts, pulled, c), z.shape)
                own += (
                    float(np.max(activation.steepest(*c))) * doubt
                    + (64 + 8 * len(parts)) * FLOAT64.unit
                )
            error = (norms[operation.path] * error + own * size + TINY) * SLACK
        if metric is not None:
            size = norm(u)
            u, relative = _transpose(metric.operation, u)
            error = (metric.constants[0] * error + relative * size + TINY) * SLACK
    return Gradient((norm(u) + error) * SLACK, turns * SLACK)


def _weight(
    activation: ActivationCurvature, pulled: tuple[Floats, ...], c: Any, error: Floats
) -> Floats:
    # The share of each unit, with allowances for rounding and for the error of u.
    share = activation.share(Reals, pulled, c)
    slight = 2.0**-44 * sum(abs(part) for part in pulled)
    return (share + slight + _each(error, share)) * SLACK


def _each(value: Floats, like: Floats) -> Floats:
    return value.reshape(-1, *(1,) * (like.ndim - 1))


def _joined(parts: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    return np.stack(parts, axis=2).reshape(shape)


def _transpose(operation: Operation, u: Floats) -> tuple[Floats, float]:
    # The transpose of a linear operation times u, and the relative error of the product.
    if operation.kind in ("dense", "convolution"):
        weight = operation.wide("weight")
        gamma = FLOAT64.gamma(weight.shape[0] * math.prod(weight.shape[2:]) + 1)
        return adjoint(operation, u, weight), gamma * absolute_norm(operation)
    if operation.kind == "affine":
        scale = along(operation.wide("scale"), u)
        return u * scale, 2 * FLOAT64.unit * float(abs(scale).max())
    return u.reshape(len(u), *operation.input_shape), 0.0


# The same in exact arithmetic.


def gradients_exactly(
    operations: Sequence[Operation],
    states: Sequence[Exact],
    norms: Mapping[str, float],
    row: int,
    direction: Floats,
    ends: Floats,
    metric: Metric | None = None,
) -> Gradient:
    """Bound the gradient of one pair, in integers and balls; ``ends`` are distances ``(S,)``.

    Raises:
        InexactError: a value cannot be enclosed.
    """
    u = Exact(*to_integers(direction[None]), np.zeros(1))
    turns = np.zeros((len(ends), 1))
    constants: Iterable[float] = accumulate(
        (norms[op.path] for op in operations),
        lambda p, n: float(product(p, n)) * SLACK,
        initial=1.0,
    )
    if metric is not None:
        constants = metric.constants
    before = zip(operations, states, constants, strict=False)
    for operation, state, constant in reversed(list(before)):
        activation, size = curvature_of(operation), _length(u)
        error = norms[operation.path] * u.error * SLACK
        if activation is None:
            values, places = _transpose_exactly(operation, u)
        else:
            z = Exact(state.values[row : row + 1], state.places, state.error[row : row + 1])
            parts = units(operation, activation, z.values)
            c = [_balls_of(k, parts[0]) for k in constants_of(operation)]
            for i, end in enumerate(ends):
                reach = float(product(end, constant)) * SLACK
                most = _most(operation, activation, z, u, c, reach)
                turns[i] += product(product(constant, constant), most) * SLACK
            values, places = _pull(operation, activation, z, u, c), GRID_BITS
            steepest = float(np.max(activation.steepest(*constants_of(operation)))) * SLACK
            lost = math.ldexp(math.sqrt(values.size), 1 - GRID_BITS)
            error = error + steepest * z.error * size * SLACK + lost
        u = shortened(Exact(values, places, error * SLACK))
    if metric is not None:
        error = metric.constants[0] * u.error * SLACK
        u = shortened(Exact(*_transpose_exactly(metric.operation, u), error * SLACK))
    return Gradient((_length(u) + u.error) * SLACK, turns * SLACK)


def _length(u: Exact) -> float:
    square = sum(int(v) ** 2 for v in u.values.ravel())
    return float(Fraction(math.isqrt(square) + 1, 1 << u.places)) * SLACK


def _transpose_exactly(operation: Operation, u: Exact) -> tuple[Integers, int]:
    if operation.kind in ("dense", "convolution"):
        return adjoint_exactly(operation, u)
    if operation.kind == "affine":
        scale, finer = to_integers(operation.wide("scale"))
        return u.values * along(scale, u.values), u.places + finer
    return u.values.reshape(1, *operation.input_shape), u.places


def _balls_of(constant: Floats, like: Integers) -> Integers:
    return along(balls(*to_integers(constant)), like)


def _pull(
    operation: Operation, activation: ActivationCurvature, z: Exact, u: Exact, c: Any
) -> Integers:
    parts = [balls(part, z.places) for part in units(operation, activation, z.values)]
    pulled = [
        balls(part, u.places) for part in units(operation, activation, u.values, outputs=True)
    ]
    count = len(parts)

    def pull(*values: Any) -> Any:
        return activation.pull(
            Balls,
            values[:count],
            values[count : count + len(pulled)],
            values[count + len(pulled) :],
        )

    size = max(exponent(z.values, z.places), exponent(u.values, u.places))
    found = enclose(pull, count, GRID_BITS, size, *parts, *pulled, *c)
    return _joined(found, z.values.shape)


def _most(
    operation: Operation, activation: ActivationCurvature, z: Exact, u: Exact, c: Any, reach: float
) -> float:
    # Upper bound of the largest product of a share and a chord.
    arb = flint().arb
    parts = [balls(part, z.places) for part in units(operation, activation, z.values)]
    pulled = [
        balls(part, u.places) for part in units(operation, activation, u.values, outputs=True)
    ]
    doubt, d, more = arb(float(z.error[0])), arb(reach), arb(float(u.error[0]))
    count, others = len(parts), len(pulled)

    def product(*values: Any) -> float:
        constants = values[count + others :]
        share = activation.share(Balls, values[count : count + others], constants) + more
        ball = share * activation.chord(Balls, values[:count], constants, doubt, d)
        return math.nextafter(float(ball.upper()), math.inf) if ball.is_finite() else math.nan

    with flint().ctx.workprec(128):
        found = np.frompyfunc(product, count + others + len(c), 1)(*parts, *pulled, *c)
    return float(np.max(found.astype(np.float64)))
