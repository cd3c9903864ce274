r"""Predictions and radii of rows, proved from margins of logits and constants of their differences.

Let m be the real margin of class c over class j at a sample, K the proved constant of the
difference of the two logits, and :math:`D + \beta r` the error of the deployed network within r.
The difference of two coordinates of a vector with error D has an error of at most
:math:`\sqrt 2 D`. So within r the deployed margin is positive if

.. math:: K r + \sqrt 2 (D + \beta r) < m,

and the real margin is positive if K r < m. In float64, m is known up to :math:`\sqrt 2 D_0`; in
exact arithmetic, it is known. A prediction that is called correct is proved in the same way, with r
= 0 and for the real network alone. Other predictions without a radius are compared up to the
rounding of all networks. Where the claim rests on gradients and the constants do not prove a
radius, the fall of the margin within r is bounded by its gradient and curvature (``curvature.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustcert.check import curvature
from robustcert.check.arithmetic import FLOAT64, Arithmetic
from robustcert.check.fixed_point import Floats, InexactError
from robustcert.check.forward.exact import Exact, trace_exactly
from robustcert.check.forward.floating import Evaluation, trace
from robustcert.check.network.operation import Operation
from robustcert.check.norms.metric import Metric
from robustcert.check.radii import Comparison, Errors, where_of
from robustcert.check.reader import Row
from robustcert.check.report import Report

# Upper bound of the square root of 2: as float64 it is 1.41421356237309514..., above the root.
ROOT2 = math.sqrt(2)
# Relative allowance for the rounding of a comparison of margins, which is about ten roundings.
MARGIN_ROUNDING = 2.0**-48


@dataclass(frozen=True)
class Network:
    """A network with what proves its radii: norms and pairwise constants, or gradients.

    Attributes:
        operations: Operations, applied in turn.
        norms: Proved norms by path, as floats that are not below them.
        pairwise: Claimed constants that have been proved, ``(C, C)``.
        deployed: Arithmetics of the deployed networks that the claim is about.
        smooth: Whether radii may rest on gradients.
        metric: The metric of the radii; None for the l2 distance of inputs.
    """

    operations: Sequence[Operation]
    norms: dict[str, float]
    pairwise: Floats
    deployed: Sequence[Arithmetic]
    smooth: bool = False
    metric: Metric | None = None

    @property
    def arithmetics(self) -> list[Arithmetic]:
        """float64, in which the check computes, and the deployed ones."""
        return [FLOAT64, *(a for a in self.deployed if a != FLOAT64)]

    def compare(self, rows: list[Row], samples: Floats) -> tuple[Comparison, Errors]:
        """See :class:`Proving`."""
        known = None if self.metric is None else self.metric.constants
        states = trace(
            self.operations, samples, self.norms, self.arithmetics, known, every=self.smooth
        )
        return _compare(rows, states, self), Errors(states[-1].centre, states[-1].growth)

    def check_exactly(
        self,
        rows: list[Row],
        positions: NDArray[np.int64],
        samples: Floats,
        errors: Errors,
        report: Report,
    ) -> None:
        """See :class:`Proving`."""
        where = where_of(int(positions[0]))
        try:
            states = trace_exactly(self.operations, samples, self.norms, every=self.smooth)
            for k, position in enumerate(positions.tolist()):
                where = where_of(position)
                _check_exactly(rows[position], position, states, k, errors, self, report)
        except InexactError as error:
            report.expect(False, f"{where}: no exact evaluation: {error}")


def _compare(chosen: list[Row], states: list[Evaluation], network: Network) -> Comparison:
    found = states[-1]
    logits = found.values
    prediction = np.array([row.prediction for row in chosen])
    radius = np.array([row.radius for row in chosen])
    rivals = np.arange(logits.shape[1]) != prediction[:, None]
    used = [network.arithmetics.index(a) for a in network.deployed]
    with np.errstate(all="ignore"):
        margin = logits[np.arange(len(chosen)), prediction][:, None] - logits
        own = (
            ROOT2 * found.centre[0][:, None] * (1 + MARGIN_ROUNDING) + abs(margin) * MARGIN_ROUNDING
        )
        centre = (
            ROOT2 * found.centre[used].max(axis=0, initial=0.0)[:, None] * (1 + MARGIN_ROUNDING)
        )
        growth = ROOT2 * found.growth[used].max(initial=0.0)
        constants = network.pairwise[prediction]
        fall = _times(constants + growth, radius) * (1 + MARGIN_ROUNDING)
        lost = _times(constants, radius) * (1 - MARGIN_ROUNDING)
        if network.smooth:
            open_ = rivals & ~(own + centre + fall < margin) & (radius > 0)[:, None]
            first = (margin - own - centre) / (constants + growth)
            fall = _curved(fall, open_, first, growth, prediction, radius, states, network)
            lost = np.zeros_like(lost)
        least = np.where(rivals, margin, math.inf).min(axis=1)
        finite = np.isfinite(logits).all(axis=1) & np.isfinite(found.centre).all(axis=0)
        return Comparison(
            finite=np.logical_and(finite, np.isfinite(found.growth).all()),
            proved=(~rivals | (own + centre + fall < margin)).all(axis=1),
            refuted=(rivals & (lost - own > margin)).any(axis=1),
            largest=(~rivals | (margin >= -(own + centre))).all(axis=1),
            decided=(~rivals | (own < margin)).all(axis=1),
            reach=found.reach[used].min(axis=0, initial=math.inf),
            least=least,
            # Margins are written with nine digits.
            tolerance=own.max(axis=1) + centre[:, 0] + 6e-9 * abs(least),
            slack=np.where(rivals, (margin - fall) / margin, math.inf).min(axis=1),
        )


def _curved(
    fall: Floats,
    pairs: NDArray[np.bool_],
    first: Floats,
    growth: float,
    prediction: NDArray[np.int64],
    radius: Floats,
    states: list[Evaluation],
    network: Network,
) -> Floats:
    # Bounds on the fall of margins, lowered for the given pairs where their curvature allows it.
    rows, others = np.nonzero(pairs)
    fall, unit = fall.copy(), np.eye(fall.shape[1])
    for start in range(0, len(rows), len(radius)):
        i, j = rows[start : start + len(radius)], others[start : start + len(radius)]
        ends = curvature.pieces(first[i, j], radius[i])
        direction = unit[prediction[i]] - unit[j]
        found = curvature.gradients(
            network.operations, states, network.norms, i, direction, ends, network.metric
        )
        constant = network.pairwise[prediction[i], j]
        least = curvature.fall(found, ends, constant, growth)
        fall[i, j] = np.where(least < fall[i, j], least, fall[i, j])
    return fall


def _times(constants: Floats, radius: Floats) -> Floats:
    # Where the margin never changes, it loses nothing, even within an infinite radius.
    return np.where(constants == 0, 0.0, constants * radius[:, None])


def _check_exactly(
    row: Row,
    position: int,
    states: list[Exact],
    k: int,
    errors: Errors,
    network: Network,
    report: Report,
) -> None:
    where, found = where_of(position), states[-1]
    own = Fraction(ROOT2) * Fraction(float(found.error[k]))
    logits = [Fraction(z, 1 << found.places) for z in found.values[k].tolist()]
    for j, logit in enumerate(logits):
        if j == row.prediction:
            continue
        # Lower bound of the margin of the real logits at the sample.
        margin = logits[row.prediction] - logit - own
        if not row.certified:
            blur = 2 * Fraction(ROOT2) * Fraction(float(errors.centre[:, position].max()))
            report.expect(
                margin >= -blur, f"{where}: {row.prediction} is not the largest logit, exactly"
            )
            proved = margin > 0 or not row.correct
            report.expect(proved, f"{where}: it is called correct, which is not proved exactly")
            continue
        proved = _proves(margin, row, j, position, errors, network) or (
            network.smooth
            and _proves_smoothly(margin, row, j, position, states, k, errors, network)
        )
        report.expect(proved, f"{where}: radius {row.radius!r} is not proved by the exact margin")


def _proves(
    margin: Fraction, row: Row, j: int, position: int, errors: Errors, network: Network
) -> bool:
    constant = float(network.pairwise[row.prediction, j])
    losses = [_fall(constant, Fraction(0), row.radius)]
    for centre, growth in _deployed(position, errors, network):
        fall = _fall(constant, growth, row.radius)
        losses.append(None if fall is None else fall + centre)
    return all(loss is not None and loss < margin for loss in losses)


def _deployed(position: int, errors: Errors, network: Network) -> list[tuple[Fraction, Fraction]]:
    # Errors of deployed margins at the sample, and what they gain per unit of distance.
    root, places = Fraction(ROOT2), [network.arithmetics.index(a) for a in network.deployed]
    return [
        (
            root * Fraction(float(errors.centre[k, position])),
            root * Fraction(float(errors.growth[k])),
        )
        for k in places
    ]


def _proves_smoothly(
    margin: Fraction,
    row: Row,
    j: int,
    position: int,
    states: list[Exact],
    k: int,
    errors: Errors,
    network: Network,
) -> bool:
    constant, radius = float(network.pairwise[row.prediction, j]), row.radius
    if not (margin > 0 and constant > 0 and radius < math.inf):
        return False
    ends = curvature.pieces(np.array([float(margin) / constant]), np.array([radius]))
    unit = np.eye(len(network.pairwise))
    found = curvature.gradients_exactly(
        network.operations,
        states,
        network.norms,
        k,
        unit[row.prediction] - unit[j],
        ends[:, 0],
        network.metric,
    )
    for centre, growth in [(Fraction(0), Fraction(0)), *_deployed(position, errors, network)]:
        drift = math.nextafter(float(growth), math.inf)
        loss = float(curvature.fall(found, ends, np.array([constant]), drift)[0])
        if not (math.isfinite(loss) and Fraction(loss) + centre < margin):
            return False
    return True


def _fall(constant: float, growth: Fraction, radius: float) -> Fraction | None:
    # The fall of a margin within a radius; None if it has no bound.
    slope = Fraction(constant) + growth
    if slope == 0:
        return Fraction(0)
    return None if math.isinf(radius) else slope * Fraction(radius)
