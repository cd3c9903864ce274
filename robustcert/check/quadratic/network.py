"""Radii of a network that ends in quadratics, proved by their dual."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robustcert.check.arithmetic import FLOAT64, SLACK, TINY, Arithmetic, norm
from robustcert.check.fixed_point import Floats, InexactError, to_integers
from robustcert.check.forward.exact import evaluate_exactly
from robustcert.check.forward.floating import evaluate
from robustcert.check.network.operation import Operation, walk
from robustcert.check.norms.metric import Metric
from robustcert.check.quadratic.dual import MAX_PAIR_VALUES, Pair, dual, exact_dual, guess
from robustcert.check.quadratic.moves import moves_of
from robustcert.check.quadratic.pieces import PIECE_ROUNDING, Pieces, exactly
from robustcert.check.radii import Comparison, Errors, where_of
from robustcert.check.reader import Row
from robustcert.check.report import Report


@dataclass(frozen=True, eq=False)
class QuadraticNetwork:
    """A network that ends in quadratics, with what proves its radii; see ``dual.py``.

    Attributes:
        operations: Operations, applied in turn; the last one is the quadratics.
        norms: Proved norms of the other operations by path, as floats that are not below them.
        deployed: Arithmetics of the deployed networks that the claim is about.
        metric: The metric of the radii; None for the l2 distance of inputs.
    """

    operations: Sequence[Operation]
    norms: dict[str, float]
    deployed: Sequence[Arithmetic]
    smooth: bool = False
    metric: Metric | None = None

    @cached_property
    def pieces(self) -> Pieces:
        """The quadratics of the last operation."""
        *before, last = self.operations
        metric = None if self.metric is None else self.metric.operation
        return Pieces(last, self.deployed, moves_of(metric, before))

    def compare(self, rows: list[Row], samples: Floats) -> tuple[Comparison, Errors]:
        """See :class:`robustcert.check.radii.Proving`."""
        pieces = self.pieces
        prediction = np.array([row.prediction for row in rows])
        arithmetics = [FLOAT64, *self.deployed]
        constants = None if self.metric is None else self.metric.constants
        found = evaluate(self.operations[:-1], samples, self.norms, arithmetics, constants)
        x, errors = found.values, Errors(found.centre, found.growth)
        doubt = found.centre[0] + found.centre[1:].max(axis=0, initial=0.0)
        with np.errstate(all="ignore"):
            balls = self._balls(rows, x, found.constant, errors, doubt)
            value, within = pieces.values(x)
            error = pieces.error(norm(x)[:, None], slice(None))
            logits = value.reshape(len(x), -1, value.shape[1] // (pieces.owner.max() + 1)).max(2)
            margin = logits[np.arange(len(x)), prediction][:, None] - logits
            rivals = np.arange(logits.shape[1]) != prediction[:, None]
            least = np.where(rivals, margin, math.inf).min(1)
            # Error of the difference of two logits, each evaluated here and by a deployed network.
            size = norm(x) + doubt
            moved = pieces.slopes(size[:, None], slice(None)).max(1) * doubt
            blur = 4 * error.max(1) + 2 * pieces.drift(size[:, None], slice(None)).max(1)
            blur = blur + 4 * moved
            # Error of the difference of two logits with respect to the real network alone.
            off = pieces.slopes((norm(x) + found.centre[0])[:, None], slice(None)).max(1)
            open_ = 4 * (error.max(1) + off * found.centre[0]) * SLACK + abs(least) * PIECE_ROUNDING
            proved, slack = self._prove(x, value, within, error, prediction, balls)
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

    def _balls(
        self, rows: list[Row], x: Floats, constant: float, errors: Errors, doubt: Floats
    ) -> "_Balls":
        # See `dual.py` and `moves.py`; the radius is 0 for rows without one.
        radius = np.array([row.radius for row in rows])
        growth, moves = errors.growth[1:].max(initial=0.0), self.pieces.moves
        if moves is None:
            reach = ((constant + growth) * radius * SLACK + doubt) * SLACK
            reach = np.where(radius > 0, reach, 0.0)
            return _Balls(reach, (norm(x) + reach) * SLACK, np.zeros(len(x)))
        off = ((growth + moves.loss) * radius * SLACK + doubt) * SLACK
        return _Balls(radius, (norm(x) + constant * radius + off) * SLACK, off)

    def _prove(
        self,
        x: Floats,
        value: Floats,
        within: Floats,
        error: Floats,
        prediction: NDArray[np.int64],
        balls: "_Balls",
    ) -> tuple[NDArray[np.bool_], Floats]:
        # Whether radii are proved, and the relative distance to the radius that is not.
        radius = balls.radius
        excess, pairs, rows = self._open(x, value, within, error, prediction, balls)
        square = np.concatenate([dual(self.pieces, pair) for pair in pairs] or [np.zeros(0)])
        more = square / radius[rows] ** 2 - 1
        slack = excess.copy()
        np.minimum.at(slack, rows, np.where(np.isnan(more), -math.inf, more))
        return (radius == 0) | (slack > PIECE_ROUNDING), slack

    def _open(
        self,
        x: Floats,
        value: Floats,
        within: Floats,
        error: Floats,
        prediction: NDArray[np.int64],
        balls: "_Balls",
    ) -> tuple[Floats, list[Pair], NDArray[np.int64]]:
        # The relative slack of pairs that gradients alone decide; the other pairs, and their rows.
        pieces, every, radius = self.pieces, np.arange(len(x)), balls.radius
        same = pieces.owner == prediction[:, None]
        own = np.where(same, value, -math.inf).argmax(1)
        drift = self._drift(balls, own)
        gradient = 2 * np.matmul(within.swapaxes(0, 1), pieces.frame) + pieces.slope[:, None]
        gradient = gradient.swapaxes(0, 1)
        turn = pieces.back(gradient[every, own][:, None] - gradient)
        sizes = pieces.slopes(norm(x)[:, None], slice(None))
        doubt = pieces.gamma * pieces.stretch * (sizes + sizes[every, own][:, None]) + TINY
        steep = np.sqrt((turn**2).sum(2)) * SLACK + doubt
        ahead = value[every, own][:, None] - value
        ahead = ahead - abs(ahead) * PIECE_ROUNDING - error - error[every, own][:, None] - drift
        reach = radius[:, None]
        excess = 1 - (steep * reach + (pieces.bound * reach) ** 2) * SLACK / ahead
        decided = same | ((ahead > 0) & (excess > PIECE_ROUNDING))
        rows, others = np.nonzero(~decided & (radius > 0)[:, None])
        step = max(1, MAX_PAIR_VALUES // max(pieces.frame[0].size, pieces.frames[0].size))
        chunks = [slice(k, k + step) for k in range(0, len(rows), step)]
        pairs = [
            guess(
                pieces,
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

    def _drift(self, balls: "_Balls", own: NDArray[np.int64]) -> Floats:
        # What two deployed logits may be off the quadratics of u, ``(N, P)``.
        pieces, far, off = self.pieces, balls.far, balls.off
        drift = pieces.drift(far[:, None], slice(None)) + pieces.drift(far, own)[:, None]
        if pieces.moves is None:
            return drift
        slopes = pieces.slopes(far[:, None], slice(None)) + pieces.slopes(far, own)[:, None]
        return (drift + slopes * off[:, None]) * SLACK

    def check_exactly(
        self,
        rows: list[Row],
        positions: NDArray[np.int64],
        samples: Floats,
        errors: Errors,
        report: Report,
    ) -> None:
        """Check rows in integers, with features rounded to float64."""
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
        if self.metric is not None:
            constant = self.metric.constants[-1] * SLACK
        balls = self._balls(chosen, x, constant, errors, doubt)
        for k, position in enumerate(positions.tolist()):
            row, where = rows[position], where_of(position)
            if row.certified:
                proved = self._proves(row.prediction, balls.of(k), x[k])
                report.expect(proved, f"{where}: radius {row.radius!r} is not proved exactly")
            else:
                largest = self._is_largest(row, x[k], float(doubt[k]))
                report.expect(largest, f"{where}: {row.prediction} is not the largest, exactly")
                proved = not row.correct or self._leads(row, x[k], float(own[k]))
                report.expect(proved, f"{where}: it is called correct, which is not proved exactly")

    def _proves(self, prediction: int, balls: "_Balls", x: Floats) -> bool:
        # Whether the pairs that gradients do not decide are proved in integers.
        radius = float(balls.radius[0])
        if not math.isfinite(radius):
            return False
        x = x[None]
        with np.errstate(all="ignore"):
            value, within = self.pieces.values(x)
            error = self.pieces.error(norm(x)[:, None], slice(None))
            excess, pairs, _ = self._open(x, value, within, error, np.array([prediction]), balls)
        square = Fraction(radius) ** 2
        return bool(excess[0] > 0) and all(
            exact_dual(self.pieces, pair, k) >= square
            for pair in pairs
            for k in range(len(pair.own))
        )

    def _is_largest(self, row: Row, x: Floats, doubt: float) -> bool:
        # Whether no logit is larger, up to the rounding of the deployed networks.
        size = norm(x[None])[:, None] + doubt
        drift = Fraction(float(self.pieces.drift(size, slice(None)).max()))
        ahead = self._ahead(row, x, 0.0)
        return ahead is None or ahead >= -2 * (drift + self._moved(x, doubt))

    def _leads(self, row: Row, x: Floats, doubt: float) -> bool:
        # Whether the real logit is the unique largest at all features within `doubt`.
        moved = 2 * self._moved(x, doubt)
        ahead = self._ahead(row, x, float(moved) * SLACK)
        return ahead is None or ahead > moved

    def _moved(self, x: Floats, doubt: float) -> Fraction:
        # Upper bound of the change of a piece within `doubt` of the features.
        size = norm(x[None])[:, None] + doubt
        return Fraction(float(self.pieces.slopes(size, slice(None)).max()) * doubt * SLACK)

    def _ahead(self, row: Row, x: Floats, room: float) -> Fraction | None:
        # The real margin at the features; None if float64 proves it to be above `room`.
        pieces = self.pieces
        value, _ = pieces.values(x[None])
        error = pieces.error(norm(x[None])[:, None], slice(None))
        own = pieces.owner == row.prediction
        # All other pieces are below the largest piece of the prediction by more than `room`.
        near = np.flatnonzero(~(value + error + room < (value - error)[:, own].max()))
        values = {p: exactly(pieces, p, to_integers(x))[0] for p in near.tolist()}
        rivals = [v for p, v in values.items() if not own[p]]
        return max(v for p, v in values.items() if own[p]) - max(rivals) if rivals else None


@dataclass(frozen=True)
class _Balls:
    """The balls of rows, among features or in u.

    Attributes:
        radius: Of the ball in the variable of the quadratics, 0 without a certificate.
        far: Bounds on the norms of features within.
        off: Bounds on what features of an input at u are off y + M u; 0 without a metric.
    """

    radius: Floats
    far: Floats
    off: Floats

    def of(self, row: int) -> "_Balls":
        """The ball of one row."""
        return _Balls(*(part[row : row + 1] for part in (self.radius, self.far, self.off)))


def covers(operations: Sequence[Operation]) -> bool:
    """Whether a network ends in quadratics, and has no others."""
    *before, last = operations
    return last.kind == "quadratics" and all(op.kind != "quadratics" for op in walk(before))
