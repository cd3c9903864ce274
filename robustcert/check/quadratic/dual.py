r"""Lower bounds on the distance to where another class has as large a quadratic logit, by duality.

The logit of a class is the largest of its pieces :math:`u_p(y) = |W_p y - o_p|^2 + a_p y + b_p`.
Let i be a piece of the predicted class and j one of another. With any multiplier :math:`0 \le
\lambda < 1 / K_j^2`, where :math:`K_j \ge \lVert W_j \rVert`, and any point z, the function
:math:`\varphi(y) = |y - x|^2 + \lambda (u_i(y) - u_j(y) - e)` has Hessians of at least :math:`2 \mu
= 2 (1 - \lambda K_j^2)`, hence

.. math:: \varphi(y) \ge \varphi(z) - |\nabla \varphi(z)|^2 / 4 \mu .

Where :math:`u_i - u_j \le e`, :math:`\varphi(y) \le |y - x|^2`: so no such y is nearer to x than
the root of the right-hand side. A radius is proved if this distance is larger for all j. Here e
bounds the rounding errors of the difference of two deployed logits at any point within the radius.

Multipliers and points are chosen here, in float64; any choice gives a bound. Most pairs need
none: with g the gradient of :math:`u_i - u_j` at x, the difference falls by at most :math:`|g| s +
K_j^2 s^2` within s.

A piece evaluated at a point of norm s, in any order, has an error of at most :math:`\gamma T(s)`. T
is the sum of the sizes of its terms, each of which is rounded :math:`2 D + m + 5` times at most.
The error of its gradient is at most :math:`\gamma N(s)`; N is the sum of the sizes of the terms of
the gradient.

Before the quadratics there may be a network of features, with constant L and the errors of
``forward``. Then x stands for the features computed here, and the radius r is replaced by

.. math:: \rho = (L + \beta) r + D_0 + D .

The features of any input within r, real or deployed, are within that distance of x. In a metric,
with features that are affine in the input, the variable is u instead, see ``moves.py``: W M takes
the place of W, radii are as they are, and e counts also what features are off, times the slopes.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import SLACK, TINY, norm
from robustcert.check.fixed_point import Floats, Integers, to_integers
from robustcert.check.quadratic.pieces import PIECE_ROUNDING, Pieces, exactly

# Maximum number of entries of the frames of pairs that are treated at once.
MAX_PAIR_VALUES = 2**20
# Number of halvings of the interval of multipliers.
HALVINGS = 60
# Points are multiples of its inverse, so that exact arithmetic does not have too many places.
POINT_GRID = 2.0**48


@dataclass(frozen=True)
class Pair:
    """K pairs of pieces at samples, with a multiplier and a point for the proof of each."""

    x: Floats  # (K, D)
    own: NDArray[np.int64]
    other: NDArray[np.int64]
    drift: Floats
    multiplier: Floats
    point: Floats  # z, (K, D), or u in a metric, (K, k)


def guess(
    pieces: Pieces,
    x: Floats,
    own: NDArray[np.int64],
    other: NDArray[np.int64],
    drift: Floats,
    ahead: Floats,
    turn: Floats,
) -> Pair:
    """Pairs with the multiplier that makes the dual largest, by bisection of its slope."""
    pairs, place = np.unique(np.stack([own, other]), axis=1, return_inverse=True)
    vectors, values = (part[place.ravel()] for part in pieces.hessians(*pairs))
    frames = np.concatenate([pieces.frames[own], pieces.frames[other]], axis=1)
    along = np.matmul(vectors, np.matmul(frames, turn[..., None]))[..., 0]
    across = np.maximum((turn**2).sum(1) - (along**2).sum(1), 0)
    low, high = np.zeros(len(x)), (1 - 1e-6) / (pieces.bound[other] ** 2 + TINY)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        move = -middle[:, None] / 2 * along / (1 + middle[:, None] * values)
        rising = ahead + (along * move + values * move**2).sum(1) > middle / 2 * across
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    bent = low[:, None] * values
    back = np.matmul(vectors.swapaxes(1, 2), (along * bent / (1 + bent))[..., None])
    step = turn - np.matmul(back.swapaxes(1, 2), frames)[:, 0]
    point, grid = -low[:, None] / 2 * step, np.full((len(x), 1), POINT_GRID)
    if pieces.moves is None:
        point = x + point
    else:
        grid = np.ldexp(grid, -np.frexp(abs(point).max(axis=1, keepdims=True))[1])
    return Pair(x, own, other, drift, low, np.rint(point * grid) / grid)


def dual(pieces: Pieces, pair: Pair) -> Floats:
    """Proved squares of distances ``(K,)``, in float64; minus infinity without a proof."""
    z, multiplier = pair.point, pair.multiplier
    delta, size = z - pair.x if pieces.moves is None else z, norm(z)
    if pieces.moves is not None:
        z, size = pieces.moves.place(pair.x, z)
    gamma, values, slopes = pieces.gamma, [], []
    for piece in (pair.own, pair.other):
        frame = pieces.frame[piece]
        within = np.matmul(frame, z[..., None])[..., 0] - pieces.offset[piece]
        linear = (pieces.slope[piece] * z).sum(1) + pieces.shift[piece]
        values.append((within**2).sum(1) + linear)
        back = np.matmul(within[:, None], frame)[:, 0]
        slopes.append(2 * back + pieces.slope[piece])
    lost = pieces.error(size, pair.own) + pieces.error(size, pair.other) + pair.drift
    turn = pieces.back(slopes[0] - slopes[1])
    steep = np.sqrt(((2 * delta + multiplier[:, None] * turn) ** 2).sum(1))
    grown = pieces.stretch * (pieces.slopes(size, pair.own) + pieces.slopes(size, pair.other))
    steep = steep * SLACK + 2 * gamma * (2 * norm(delta) + multiplier * grown) + TINY
    convexity = 1 - multiplier * pieces.bound[pair.other] ** 2 * SLACK
    charge = steep**2 / (4 * convexity) * SLACK
    square = (delta**2).sum(1)
    value = square + multiplier * (values[0] - values[1] - lost) - charge
    sizes = square + multiplier * (abs(values[0]) + abs(values[1]) + lost) + charge
    value = value - PIECE_ROUNDING * sizes - 4 * gamma * square - TINY
    return np.where((multiplier >= 0) & (convexity > 1e-9), value, -math.inf)


def exact_dual(pieces: Pieces, pair: Pair, k: int) -> Fraction:
    """A proved square of a distance, in rationals, for pair k; -1 without a proof."""
    if not (math.isfinite(pair.drift[k]) and np.isfinite(pair.point[k]).all()):
        return Fraction(-1)
    multiplier = Fraction(float(pair.multiplier[k]))
    convexity = 1 - multiplier * Fraction(float(pieces.bound[pair.other[k]])) ** 2
    if multiplier < 0 or convexity <= 0:
        return Fraction(-1)
    z, delta, places = _place(pieces, pair.x[k], pair.point[k])
    first, mine, fine = exactly(pieces, int(pair.own[k]), z)
    second, theirs, finer = exactly(pieces, int(pair.other[k]), z)
    most = max(fine, finer)
    turn = (mine << (most - fine)) - (theirs << (most - finer))
    if pieces.moves is not None:
        turn, most = pieces.moves.back_exactly(turn, most)
    turn, most = turn << max(0, places - most), max(places, most)
    over, under = multiplier.numerator, multiplier.denominator
    steep = (2 * under * delta << (most - places)) + over * turn
    square = Fraction(int(delta @ delta), 1 << 2 * places)
    charge = Fraction(int(steep @ steep), under**2 << 2 * most) / (4 * convexity)
    ahead = first - second - Fraction(float(pair.drift[k]))
    return square + multiplier * ahead - charge


def _place(pieces: Pieces, x: Floats, point: Floats) -> tuple[tuple[Integers, int], Integers, int]:
    # The features at a point of a pair, and the variable there less that of the sample.
    if pieces.moves is not None:
        u, places = to_integers(point)
        return pieces.moves.place_exactly(x, point), u, places
    both, places = to_integers(np.stack([point, x]))
    return (both[0], places), both[0] - both[1], places
