r"""Radii of quadratic logits, by the dual of the distance to where another class is as large.

The logit of a class is the largest of its pieces :math:`u_p(y) = |W_p y - o_p|^2 + a_p y + b_p`.
Let i be a piece of the predicted class and j one of another. With any multiplier :math:`0 \le
\lambda < 1 / K_j^2`, where :math:`K_j \ge \lVert W_j \rVert`, and any point z, the function
:math:`\varphi(y) = |y - x|^2 + \lambda (u_i(y) - u_j(y) - e)` has Hessians of at least :math:`2 \mu
= 2 (1 - \lambda K_j^2)`, hence

.. math:: \varphi(y) \ge \varphi(z) - |\nabla \varphi(z)|^2 / 4 \mu .

Where j is within e of i or ahead of it, :math:`\varphi(y) \le |y - x|^2`: so no such y is nearer
than the root of the right-hand side. A radius is proved if this holds for all j, e being what
rounding can take off the difference of two deployed logits at any point within the radius.

Multipliers and points are found here, in float64, and need not be the best ones. Most pairs need
none: with g the gradient of :math:`u_i - u_j` at x, the difference falls by at most :math:`|g| s +
K_j^2 s^2` within s.

A piece evaluated at a point of norm s, in any order, has the error :math:`\gamma T(s)` at most, T
being the sum of the sizes of its terms, each of which is rounded :math:`2 D + m + 5` times at most;
its gradient has :math:`\gamma N(s)`.

Before the quadratics there may be a network of features, with constant L and the errors of
``forward.py``. All of this then speaks of the features computed here in place of x, and of

.. math:: \rho = (L + \beta) r + D_0 + D

in place of r: the features of any input within r, real or deployed, are within that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robustcert.check.fixed_point import Floats, InexactError, Integers, to_integers
from robustcert.check.forward import (
    FLOAT64,
    Arithmetic,
    evaluate,
    evaluate_exactly,
    norm,
    walk,
)
from robustcert.check.network import Operation
from robustcert.check.norms import find
from robustcert.check.radii import Comparison, Errors, where_of
from robustcert.check.reader import Row, UnreadableError
from robustcert.check.report import Report

# Covers the rounding of sums of nonnegative terms, and that of a comparison.
SLACK, COMPARED = 1 + 2.0**-26, 2.0**-45
TINY = 2.0**-500
CHUNK = 2**20
HALVINGS = 60
# Points are on this grid, so that exact arithmetic has not too many places.
GRID = 2.0**48


@dataclass(frozen=True, eq=False)
class Pieces:
    """The quadratic pieces, as float64.

    Attributes:
        operation: That they are of.
        deployed: Arithmetics of the deployed networks that are spoken of.
    """

    operation: Operation
    deployed: Sequence[Arithmetic]
    frame: Floats = field(init=False)  # (P, m, D)
    offset: Floats = field(init=False)  # (P, m)
    slope: Floats = field(init=False)  # (P, D)
    shift: Floats = field(init=False)  # (P,)
    length: Floats = field(init=False)  # of the frames' rows, (P, m)

    def __post_init__(self) -> None:
        for key in ("frame", "offset", "slope", "shift"):
            object.__setattr__(self, key, self.operation.wide(key))
        count, rank, _ = self.frame.shape
        lengths = norm(self.frame.reshape(count * rank, -1)).reshape(count, rank)
        object.__setattr__(self, "length", lengths)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The class of each piece."""
        count = len(self.shift)
        return np.arange(count) // (count // self.operation.options["classes"])

    @property
    def gamma(self) -> float:
        """Of gradients, in float64."""
        return FLOAT64.gamma(sum(self.frame.shape[1:]) + 8)

    @cached_property
    def bound(self) -> Floats:
        """Proved bounds of the norms of the frames, ``(P,)``."""
        found = [
            find(Operation("dense", "", "", {}, {"weight": frame}, (), ())) for frame in self.frame
        ]
        if not np.isfinite(found).all():
            raise UnreadableError(f"{self.operation.label}: no bound of a frame can be proved here")
        return np.array(found)

    def hessians(self, own: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Of pairs' Hessians, halved, eigenvectors in products with both frames; eigenvalues.

        Good to some digits; no proof rests on them.
        """
        rank = self.frame.shape[1]
        frames = np.concatenate([self.frame[own], self.frame[other]], axis=1)
        blocks = np.matmul(frames, frames.swapaxes(1, 2))
        ridge = 1e-10 * np.trace(blocks, axis1=1, axis2=2)[:, None, None] + 1e-100
        lower = np.linalg.cholesky(blocks + ridge * np.eye(2 * rank))
        signs = np.repeat([1.0, -1.0], rank)[:, None]
        values, vectors = np.linalg.eigh(lower.swapaxes(1, 2) @ (signs * lower))
        return np.linalg.solve(lower.swapaxes(1, 2), vectors).swapaxes(1, 2), values

    def terms(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """T: the sizes of all terms of pieces at points of a norm, added up."""
        length, offset = self.length[piece], abs(self.offset[piece])
        squares = ((length * size[..., None] + offset) ** 2).sum(-1)
        return (squares + norm(self.slope)[piece] * size + abs(self.shift[piece])) * SLACK

    def slopes(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """N: the same of gradients."""
        length, offset = self.length[piece], abs(self.offset[piece])
        products = (length * (length * size[..., None] + offset)).sum(-1)
        return (2 * products + norm(self.slope)[piece]) * SLACK

    def error(
        self, size: Floats, piece: NDArray[np.int64] | slice, arithmetic: Arithmetic = FLOAT64
    ) -> Floats:
        """What rounding can do to pieces at points of a norm; infinite where they may overflow."""
        _, rank, width = self.frame.shape
        terms = self.terms(size, piece)
        gamma = arithmetic.gamma(2 * width + rank + 8)
        found = gamma * terms + arithmetic.least * 2.0**30 * width * rank
        return np.where(terms < math.sqrt(arithmetic.safe), found * SLACK, math.inf)

    def drift(self, size: Floats, piece: NDArray[np.int64] | slice) -> Floats:
        """The same of the deployed networks, the largest."""
        found = [self.error(size, piece, arithmetic) for arithmetic in self.deployed]
        return np.maximum.reduce([np.zeros_like(found[0]), *found]) if found else 0 * size

    def values(self, x: Floats) -> tuple[Floats, Floats]:
        """Every piece ``(N, P)``, and what it squares ``(N, P, m)``."""
        count, rank, _ = self.frame.shape
        within = (x @ self.frame.reshape(count * rank, -1).T).reshape(-1, count, rank) - self.offset
        return (within**2).sum(2) + x @ self.slope.T + self.shift, within


@dataclass(frozen=True)
class Pair:
    """Pairs of pieces at samples: K of them, with a guess of what proves each."""

    x: Floats  # (K, D)
    own: NDArray[np.int64]
    other: NDArray[np.int64]
    drift: Floats
    multiplier: Floats
    point: Floats  # (K, D)


@dataclass(frozen=True, eq=False)
class QuadricNetwork:
    """A network that ends in quadratic pieces, whose radii the dual proves; see the module.

    Attributes:
        operations: Applied in turn, the quadratics last.
        norms: Proved norms of those before by path, as floats that are not below them.
        deployed: Arithmetics of the deployed networks that are spoken of.
    """

    operations: Sequence[Operation]
    norms: dict[str, float]
    deployed: Sequence[Arithmetic]
    smooth: bool = False

    @cached_property
    def pieces(self) -> Pieces:
        """Of the last operation."""
        return Pieces(self.operations[-1], self.deployed)

    def compare(self, rows: list[Row], samples: Floats) -> tuple[Comparison, Errors]:
        """What float64 knows of every row."""
        pieces = self.pieces
        prediction = np.array([row.prediction for row in rows])
        arithmetics = [FLOAT64, *self.deployed]
        found = evaluate(self.operations[:-1], samples, self.norms, arithmetics)
        x, errors = found.values, Errors(found.centre, found.growth)
        doubt = found.centre[0] + found.centre[1:].max(axis=0, initial=0.0)
        with np.errstate(all="ignore"):
            radius = _among_features(rows, found.constant, errors, doubt)
            value, within = pieces.values(x)
            error = pieces.error(norm(x)[:, None], slice(None))
            logits = value.reshape(len(x), -1, value.shape[1] // (pieces.owner.max() + 1)).max(2)
            margin = logits[np.arange(len(x)), prediction][:, None] - logits
            rivals = np.arange(logits.shape[1]) != prediction[:, None]
            least = np.where(rivals, margin, math.inf).min(1)
            # Of the difference of two logits, evaluated twice.
            size = norm(x) + doubt
            moved = pieces.slopes(size[:, None], slice(None)).max(1) * doubt
            blur = 4 * error.max(1) + 2 * pieces.drift(size[:, None], slice(None)).max(1)
            blur = blur + 4 * moved
            # Of the real network alone.
            off = pieces.slopes((norm(x) + found.centre[0])[:, None], slice(None)).max(1)
            open_ = 4 * (error.max(1) + off * found.centre[0]) * SLACK + abs(least) * COMPARED
            proved, slack = self._prove(x, value, within, error, prediction, radius)
            nothing = np.zeros(len(x), np.bool_)
            known = Comparison(
                finite=np.isfinite(logits).all(1) & np.isfinite(error).all(1) & np.isfinite(doubt),
                proved=proved,
                refuted=nothing,
                largest=least >= -blur,
                decided=least > open_,
                reach=found.reach.min(0),
                least=least,
                tolerance=blur + 6e-9 * abs(least),
                slack=slack,
            )
        return known, errors

    def _prove(
        self,
        x: Floats,
        value: Floats,
        within: Floats,
        error: Floats,
        prediction: NDArray[np.int64],
        radius: Floats,
    ) -> tuple[NDArray[np.bool_], Floats]:
        # Whether radii are proved, and by how much, relatively.
        excess, pairs, rows = self._open(x, value, within, error, prediction, radius)
        square = np.concatenate([self._dual(pair) for pair in pairs] or [np.zeros(0)])
        more = square / radius[rows] ** 2 - 1
        slack = excess.copy()
        np.minimum.at(slack, rows, np.where(np.isnan(more), -math.inf, more))
        return (radius == 0) | (slack > COMPARED), slack

    def _open(
        self,
        x: Floats,
        value: Floats,
        within: Floats,
        error: Floats,
        prediction: NDArray[np.int64],
        radius: Floats,
    ) -> tuple[Floats, list[Pair], NDArray[np.int64]]:
        # Pairs that gradients alone do not decide, with the row of each; what the others leave.
        pieces, every = self.pieces, np.arange(len(x))
        same = pieces.owner == prediction[:, None]
        own = np.where(same, value, -math.inf).argmax(1)
        far = (norm(x) + radius) * SLACK
        drift = pieces.drift(far[:, None], slice(None)) + pieces.drift(far, own)[:, None]
        gradient = 2 * np.matmul(within.swapaxes(0, 1), pieces.frame) + pieces.slope[:, None]
        gradient = gradient.swapaxes(0, 1)
        turn = gradient[every, own][:, None] - gradient
        sizes = pieces.slopes(norm(x)[:, None], slice(None))
        doubt = pieces.gamma * (sizes + sizes[every, own][:, None])
        steep = np.sqrt((turn**2).sum(2)) * SLACK + doubt
        ahead = value[every, own][:, None] - value
        ahead = ahead - abs(ahead) * COMPARED - error - error[every, own][:, None] - drift
        reach = radius[:, None]
        excess = 1 - (steep * reach + (pieces.bound * reach) ** 2) * SLACK / ahead
        decided = same | ((ahead > 0) & (excess > COMPARED))
        rows, others = np.nonzero(~decided & (radius > 0)[:, None])
        step = max(1, CHUNK // pieces.frame[0].size)
        chunks = [slice(k, k + step) for k in range(0, len(rows), step)]
        pairs = [
            self._guess(
                x[rows[c]],
                own[rows[c]],
                others[c],
                drift[rows[c], others[c]],
                ahead[rows[c], others[c]],
                turn[rows[c], others[c]],
            )
            for c in chunks
        ]
        least = np.where(decided & ~same, excess, math.inf).min(1)
        return least, pairs, rows

    def _guess(
        self,
        x: Floats,
        own: NDArray[np.int64],
        other: NDArray[np.int64],
        drift: Floats,
        ahead: Floats,
        turn: Floats,
    ) -> Pair:
        # The multiplier at which the dual is largest, by bisection of its slope, and its point.
        pieces = self.pieces
        pairs, place = np.unique(np.stack([own, other]), axis=1, return_inverse=True)
        vectors, values = (part[place.ravel()] for part in pieces.hessians(*pairs))
        frames = np.concatenate([pieces.frame[own], pieces.frame[other]], axis=1)
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
        point = np.rint((x - low[:, None] / 2 * step) * GRID) / GRID
        return Pair(x, own, other, drift, low, point)

    def _dual(self, pair: Pair) -> Floats:
        # Proved squares of distances, in float64.
        pieces, z, multiplier = self.pieces, pair.point, pair.multiplier
        delta, size = z - pair.x, norm(z)
        gamma, values, slopes = pieces.gamma, [], []
        for piece in (pair.own, pair.other):
            frame = pieces.frame[piece]
            within = np.matmul(frame, z[..., None])[..., 0] - pieces.offset[piece]
            linear = (pieces.slope[piece] * z).sum(1) + pieces.shift[piece]
            values.append((within**2).sum(1) + linear)
            back = np.matmul(within[:, None], frame)[:, 0]
            slopes.append(2 * back + pieces.slope[piece])
        lost = pieces.error(size, pair.own) + pieces.error(size, pair.other) + pair.drift
        steep = np.sqrt(((2 * delta + multiplier[:, None] * (slopes[0] - slopes[1])) ** 2).sum(1))
        grown = pieces.slopes(size, pair.own) + pieces.slopes(size, pair.other)
        steep = steep * SLACK + 2 * gamma * (2 * norm(delta) + multiplier * grown) + TINY
        convexity = 1 - multiplier * pieces.bound[pair.other] ** 2 * SLACK
        charge = steep**2 / (4 * convexity) * SLACK
        square = (delta**2).sum(1)
        value = square + multiplier * (values[0] - values[1] - lost) - charge
        sizes = square + multiplier * (abs(values[0]) + abs(values[1]) + lost) + charge
        value = value - COMPARED * sizes - 4 * gamma * square - TINY
        return np.where((multiplier >= 0) & (convexity > 1e-9), value, -math.inf)

    def check_exactly(
        self,
        rows: list[Row],
        positions: NDArray[np.int64],
        samples: Floats,
        errors: Errors,
        report: Report,
    ) -> None:
        """Check rows in integers, features being within half a unit of float64 of theirs."""
        try:
            found = evaluate_exactly(self.operations[:-1], samples, self.norms)
        except InexactError as error:
            where = where_of(int(positions[0]))
            report.expect(False, f"{where}: no exact evaluation: {error}")
            return
        chosen = [rows[position] for position in positions]
        x = np.array(
            [[float(Fraction(v, 1 << found.places)) for v in row] for row in found.values.tolist()]
        )
        own = found.error + norm(x) * 2.0**-52 + TINY
        doubt = own + errors.centre[1:, positions].max(axis=0, initial=0.0)
        constant = math.prod(self.norms[op.path] for op in self.operations[:-1]) * SLACK
        radius = _among_features(chosen, constant, errors, doubt)
        for k, position in enumerate(positions.tolist()):
            row, where = rows[position], where_of(position)
            if row.certified:
                proved = self._proves(row.prediction, float(radius[k]), x[k])
                report.expect(proved, f"{where}: radius {row.radius!r} is not proved exactly")
            else:
                largest = self._is_largest(row, x[k], float(doubt[k]))
                report.expect(largest, f"{where}: {row.prediction} is not the largest, exactly")
                proved = not row.correct or self._leads(row, x[k], float(own[k]))
                report.expect(proved, f"{where}: it is called correct, which is not proved exactly")

    def _proves(self, prediction: int, radius: float, x: Floats) -> bool:
        # Rivals that gradients do not exclude, in integers.
        if not math.isfinite(radius):
            return False
        x = x[None]
        with np.errstate(all="ignore"):
            value, within = self.pieces.values(x)
            error = self.pieces.error(norm(x)[:, None], slice(None))
            excess, pairs, _ = self._open(
                x, value, within, error, np.array([prediction]), np.array([radius])
            )
        square = Fraction(radius) ** 2
        return bool(excess[0] > 0) and all(
            _exact_dual(self.pieces, pair, k) >= square
            for pair in pairs
            for k in range(len(pair.own))
        )

    def _is_largest(self, row: Row, x: Floats, doubt: float) -> bool:
        # Up to the rounding of the deployed networks.
        size = norm(x[None])[:, None] + doubt
        drift = Fraction(float(self.pieces.drift(size, slice(None)).max()))
        ahead = self._ahead(row, x, 0.0)
        return ahead is None or ahead >= -2 * (drift + self._moved(x, doubt))

    def _leads(self, row: Row, x: Floats, doubt: float) -> bool:
        # Whether the real logit is the unique largest, at features within doubt.
        moved = 2 * self._moved(x, doubt)
        ahead = self._ahead(row, x, float(moved) * SLACK)
        return ahead is None or ahead > moved

    def _moved(self, x: Floats, doubt: float) -> Fraction:
        # What a piece changes by at most within doubt of the features.
        size = norm(x[None])[:, None] + doubt
        return Fraction(float(self.pieces.slopes(size, slice(None)).max()) * doubt * SLACK)

    def _ahead(self, row: Row, x: Floats, room: float) -> Fraction | None:
        # The real margin at features; None where it is surely above `room`.
        pieces = self.pieces
        value, _ = pieces.values(x[None])
        error = pieces.error(norm(x[None])[:, None], slice(None))
        own = pieces.owner == row.prediction
        # Others are surely below the prediction's best one, by more than that.
        near = np.flatnonzero(~(value + error + room < (value - error)[:, own].max()))
        values = {p: _exactly(pieces, p, x)[0] for p in near.tolist()}
        rivals = [v for p, v in values.items() if not own[p]]
        return max(v for p, v in values.items() if own[p]) - max(rivals) if rivals else None


def _among_features(rows: list[Row], constant: float, errors: Errors, doubt: Floats) -> Floats:
    # How far features can be from those computed here, within a row's radius; 0 without one.
    steep = constant + errors.growth[1:].max(initial=0.0)
    radius = np.array([row.radius for row in rows])
    return np.where(radius > 0, (steep * radius * SLACK + doubt) * SLACK, 0.0)


def _exactly(pieces: Pieces, piece: int, z: Floats) -> tuple[Fraction, Integers, int]:
    # A piece at z; its gradient there as integers, and their places.
    parts = [part[piece] for part in (pieces.frame, pieces.offset, pieces.slope, pieces.shift)]
    scaled = [to_integers(np.asarray(part)) for part in (z, *parts)]
    places = max(finer for _, finer in scaled)
    point, frame, offset, slope, shift = (
        np.asarray(v << (places - finer), dtype=object).reshape(np.shape(part))
        for (v, finer), part in zip(scaled, (z, *parts), strict=True)
    )
    within = frame @ point - (offset << places)
    total = (within @ within) + ((slope @ point) << 2 * places) + (shift.item() << 3 * places)
    gradient = 2 * (within @ frame) + (slope << 2 * places)
    return Fraction(int(total), 1 << 4 * places), gradient, 3 * places


def _exact_dual(pieces: Pieces, pair: Pair, k: int) -> Fraction:
    # The square of a distance that is proved, without rounding but for the deployed network's.
    if not (math.isfinite(pair.drift[k]) and np.isfinite(pair.point[k]).all()):
        return Fraction(-1)
    multiplier = Fraction(float(pair.multiplier[k]))
    convexity = 1 - multiplier * Fraction(float(pieces.bound[pair.other[k]])) ** 2
    if multiplier < 0 or convexity <= 0:
        return Fraction(-1)
    z = pair.point[k]
    first, mine, fine = _exactly(pieces, int(pair.own[k]), z)
    second, theirs, finer = _exactly(pieces, int(pair.other[k]), z)
    both, places = to_integers(np.stack([z, pair.x[k]]))
    delta, most = both[0] - both[1], max(places, fine, finer)
    turn = (mine << (most - fine)) - (theirs << (most - finer))
    over, under = multiplier.numerator, multiplier.denominator
    steep = (2 * under * delta << (most - places)) + over * turn
    square = Fraction(int(delta @ delta), 1 << 2 * places)
    charge = Fraction(int(steep @ steep), under**2 << 2 * most) / (4 * convexity)
    ahead = first - second - Fraction(float(pair.drift[k]))
    return square + multiplier * ahead - charge


def covers(operations: Sequence[Operation]) -> bool:
    """Whether a network ends in quadratics, and has no others."""
    *before, last = operations
    return last.kind == "quadratics" and all(op.kind != "quadratics" for op in walk(before))
