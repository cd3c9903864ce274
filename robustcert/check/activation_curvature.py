r"""Jacobians of smooth activations, and bounds on how fast they change around a point.

An activation acts on units of one or more neighbouring features, and its Jacobian on a unit changes
through one number only, or through one unit vector:

* ``tanh``, ``softplus``, ``smooth_abs``, ``smooth_n``: the slope at t. ``smooth_n`` has the slope
  :math:`1 + \tanh((t - h) / 2 \tau) + \tanh((l - t) / 2 \tau)`.
* ``smooth_maxmin``: the half sum is kept, and :math:`t = (a - b) / \sqrt 2` goes through a
  function of slope :math:`\tanh(t / \sqrt 2 \tau)`.
* ``smooth_householder``: :math:`t = n \cdot z`, \|n\| = 1, goes through a smooth absolute value.
* ``norm_pair``: the Jacobian is :math:`(z / r)^\top`, :math:`r^2 = |z|^2 + \tau^2`.

A chord is the slope of that number between two points: its change over the change of t. Let p be a
function whose slope is even and falls with the distance to 0, and t > 0. Over intervals of length l
that end in t, the mean of p' is the chord downwards, the steeper one. For l up to 2 t it falls with
t; beyond, it is below that for 2 t, and no interval of that length has a larger mean than [-t, t].
So the steepest chord no longer than d falls with \|t\|. For l up to t it grows with l; between t
and d it is at most the rise over d, divided by t: in all at most :math:`(p(t) - p(t - d)) / \min(t,
d)`, and at most p'(0). ``smooth_n`` has two such terms, of which one falls while the other rises.
Unit vectors of x and y are at most :math:`2 |x - y| / (|x| + |y|)` apart (Dunkl and Williams 1964):
with the temperature for another entry, that bounds the chord of ``norm_pair``.

Functions are written once for two kinds of numbers, arrays of floats and single balls. Their
argument ``m`` is the class that has the operations of the kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustcert.check.activations.kind import grouped
from robustcert.check.fixed_point import Floats, flint
from robustcert.check.network.operation import Operation

Parts = tuple[Any, ...]


class Reals:
    """Operations on arrays of floats; ``slack`` bounds the error of a difference of slopes."""

    tanh, hypot, minimum, maximum = np.tanh, np.hypot, np.minimum, np.maximum
    slack = 2.0**-44

    @staticmethod
    def quotient(rise: Any, run: Any) -> Any:
        """Quotient; infinite where the divisor is not positive."""
        return np.where(run > 0, rise / np.where(run > 0, run, 1.0), np.inf)


class Balls:
    """Operations on balls of python-flint, which carry their errors themselves."""

    slack = 0

    @staticmethod
    def tanh(x: Any) -> Any:
        """Hyperbolic tangent."""
        return x.tanh()

    @staticmethod
    def hypot(x: Any, y: Any) -> Any:
        """Root of the sum of two squares."""
        return (x * x + y * y).sqrt()

    @staticmethod
    def minimum(x: Any, y: Any) -> Any:
        """Minimum."""
        return x.min(y)

    @staticmethod
    def maximum(x: Any, y: Any) -> Any:
        """Maximum."""
        return x.max(y)

    @staticmethod
    def quotient(rise: Any, run: Any) -> Any:
        """Quotient; infinite where the divisor may not be positive."""
        return rise / run if run > 0 else flint().arb.pos_inf()


@dataclass(frozen=True)
class ActivationCurvature:
    """How the Jacobian of one activation changes, unit by unit.

    Attributes:
        pull: ``(m, z, u, constants)``: the transpose of the Jacobian at z times u.
        share: ``(m, u, constants)``: size of the part of u that a change of the Jacobian acts on.
        chord: ``(m, z, constants, doubt, d)``: the steepest chord of length up to d from any t
            within ``doubt`` of the t at z.
        steepest: ``(constants)``: the steepest chord of all.
        inputs: Number of input features of a unit; 0 stands for ``group_size``.
        outputs: Number of output features of a unit.
    """

    pull: Callable[..., Parts]
    share: Callable[..., Any]
    chord: Callable[..., Any]
    steepest: Callable[..., Any]
    inputs: int = 1
    outputs: int = 1


def curvature_of(operation: Operation) -> ActivationCurvature | None:
    """The curvature of an operation; None if it is no smooth activation that is known here."""
    return CURVATURES.get(operation.options["function"]) if operation.kind == "activation" else None


def units(
    operation: Operation, activation: ActivationCurvature, x: Any, *, outputs: bool = False
) -> Parts:
    """First, second, ... features of all units of an input or output of shape ``(N, C, *)``."""
    size = activation.outputs if outputs else activation.inputs or operation.options["group_size"]
    split = grouped(x, size)
    return tuple(split[:, :, k] for k in range(size))


def constants_of(operation: Operation) -> list[Floats]:
    """The constants of an operation: corners or normals one by one, then the temperature."""
    found = [operation.wide(key) for key in sorted(operation.tensors)]
    return [row for value in found for row in (value if value.ndim == 2 else [value])]


def _bump(m: Any, t: Any, p: Callable[[Any], Any], doubt: Any, d: Any) -> Any:
    near = m.maximum(abs(t) - doubt, 0 * d)
    return m.quotient(p(near) - p(near - d) + m.slack, m.minimum(near, d))


def _own(_m: Any, u: Parts, _c: Parts) -> Any:
    return abs(u[0])


# Activations that act on each entry.


def _abs_slope(m: Any, t: Any, tau: Any) -> Any:
    return t / m.hypot(t, tau)


def _abs_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    (tau,) = c
    return m.minimum(_bump(m, z[0], lambda t: _abs_slope(m, t, tau), doubt, d), 1 / tau)


def _sigmoid(m: Any, t: Any, tau: Any) -> Any:
    return (1 + m.tanh(t / (2 * tau))) / 2


def _sigmoid_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    (tau,) = c
    return m.minimum(_bump(m, z[0], lambda t: _sigmoid(m, t, tau), doubt, d), 1 / (4 * tau))


def _n_pull(m: Any, z: Parts, u: Parts, c: Parts) -> Parts:
    low, high, tau = c
    slope = 1 + m.tanh((z[0] - high) / (2 * tau)) + m.tanh((low - z[0]) / (2 * tau))
    return (slope * u[0],)


def _n_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    low, high, tau = c
    above = _sigmoid_chord(m, (z[0] - high,), (tau,), doubt, d)
    return 2 * m.maximum(above, _sigmoid_chord(m, (low - z[0],), (tau,), doubt, d))


def _tanh_pull(m: Any, z: Parts, u: Parts, _: Parts) -> Parts:
    tanh = m.tanh(z[0])
    return ((1 - tanh * tanh) * u[0],)


def _tanh_steepest(*_: Any) -> float:
    # The slope of 1 - tanh^2 is steepest where tanh^2 = 1/3: 4 / 27^(1/2) = 0.76980035891...
    return 0.7698003590


def _tanh_chord(_m: Any, z: Parts, *_: Any) -> Any:
    return 0 * abs(z[0]) + _tanh_steepest()


# Activations that act on pairs and groups.


def _maxmin_pull(m: Any, z: Parts, u: Parts, c: Parts) -> Parts:
    # tanh(t / sqrt 2 tau) for t = (a - b) / sqrt 2. The second output is the larger one.
    kept, apart = (u[0] + u[1]) / 2, (u[1] - u[0]) / 2
    turned = m.tanh((z[0] - z[1]) / (2 * c[0])) * apart
    return kept + turned, kept - turned


def _maxmin_share(_m: Any, u: Parts, _c: Parts) -> Any:
    # The factor is above the root of 1/2.
    return abs(u[1] - u[0]) * 0.70710679


def _maxmin_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    # In terms of x = a - b = sqrt 2 t: d and doubt are larger, and chords less steep, by sqrt 2.
    (tau,) = c
    bump = _bump(m, z[0] - z[1], lambda x: m.tanh(x / (2 * tau)), doubt * 1.4142136, d * 1.4142136)
    return m.minimum(bump, 1 / (2 * tau)) * 1.4142136


def _mirror_pull(m: Any, z: Parts, u: Parts, c: Parts) -> Parts:
    p, q, tau = c
    length = m.hypot(p, q)
    p, q = p / length, q / length
    turned = (_abs_slope(m, p * z[0] + q * z[1], tau) - 1) * (p * u[0] + q * u[1])
    return u[0] + turned * p, u[1] + turned * q


def _mirror_share(m: Any, u: Parts, c: Parts) -> Any:
    p, q, _ = c
    return abs(p * u[0] + q * u[1]) / m.hypot(p, q)


def _mirror_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    p, q, tau = c
    return _abs_chord(m, ((p * z[0] + q * z[1]) / m.hypot(p, q),), (tau,), doubt, d)


def _length(m: Any, z: Parts, tau: Any) -> Any:
    total = tau
    for part in z:
        total = m.hypot(part, total)
    return total


def _norm_pull(m: Any, z: Parts, u: Parts, c: Parts) -> Parts:
    length = _length(m, z, c[0])
    return tuple(part / length * u[0] for part in z)


def _norm_chord(m: Any, z: Parts, c: Parts, doubt: Any, d: Any) -> Any:
    (tau,) = c
    here = m.maximum(_length(m, z, tau) - doubt, tau)
    return 2 / (here + m.maximum(here - d, tau))


def _inverse(*constants: Any) -> Any:
    return 1 / constants[-1]


# The curvature of every smooth activation.
CURVATURES: Mapping[str, ActivationCurvature] = {
    "norm_pair": ActivationCurvature(_norm_pull, _own, _norm_chord, _inverse, inputs=0),
    "smooth_abs": ActivationCurvature(
        lambda m, z, u, c: (_abs_slope(m, z[0], c[0]) * u[0],), _own, _abs_chord, _inverse
    ),
    "smooth_householder": ActivationCurvature(
        _mirror_pull, _mirror_share, _mirror_chord, _inverse, inputs=2, outputs=2
    ),
    "smooth_maxmin": ActivationCurvature(
        _maxmin_pull,
        _maxmin_share,
        _maxmin_chord,
        lambda tau: 0.70710679 / tau,
        inputs=2,
        outputs=2,
    ),
    "smooth_n": ActivationCurvature(_n_pull, _own, _n_chord, lambda low, high, tau: 0.5 / tau),
    "softplus": ActivationCurvature(
        lambda m, z, u, c: (_sigmoid(m, z[0], c[0]) * u[0],),
        _own,
        _sigmoid_chord,
        lambda tau: 0.25 / tau,
    ),
    "tanh": ActivationCurvature(_tanh_pull, _own, _tanh_chord, _tanh_steepest),
}
