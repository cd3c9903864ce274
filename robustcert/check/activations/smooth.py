"""Smooth activations, with exact values from square roots of integers or from balls."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from robustcert.check.activations.kind import (
    TAU,
    FixedPoint,
    Kind,
    along,
    ball_constants,
    circle_features,
    corners_in_order,
    counted,
    each_entry,
    each_group,
    each_pair,
    grouped,
    halves,
    integer_root,
    interleave,
    same_features,
)
from robustcert.check.fixed_point import (
    GRID_BITS,
    Floats,
    Integers,
    balls,
    enclose,
    exponent,
    shift,
    to_integers,
)


def _norm_pair(x: Floats, temperature: Floats, group_size: int) -> Floats:
    groups = grouped(x, group_size)
    norm = tau = along(temperature, groups[:, :, 0])
    for k in range(group_size):
        norm = np.hypot(groups[:, :, k], norm)
    return norm - tau


def _norm_pair_exact(z: Integers, q: int, temperature: Floats, group_size: int) -> FixedPoint:
    tau, places = to_integers(temperature)
    grid = max(GRID_BITS, q, places)
    groups = grouped(shift(z, grid - q), group_size)
    tau = along(shift(tau, grid - places), groups[:, :, 0])
    root = integer_root((groups * groups).sum(2) + tau * tau)
    return root - tau, grid, math.ldexp(1.0, -grid)


def _norm_pair_rounding(temperature: Floats, group_size: int) -> tuple[float, float]:
    hypots = 8.0 * group_size
    return counted(hypots + 1, hypots * float(temperature.max()))


def _smooth_abs(x: Floats, temperature: Floats) -> Floats:
    return _norm_pair(x, temperature, 1)


def _smooth_abs_exact(z: Integers, q: int, temperature: Floats) -> FixedPoint:
    return _norm_pair_exact(z, q, temperature, 1)


def _smooth_abs_rounding(temperature: Floats) -> tuple[float, float]:
    return _norm_pair_rounding(temperature, 1)


def _smooth_householder(x: Floats, normal: Floats, temperature: Floats) -> Floats:
    a, b = halves(x)
    u, v = (along(n, a) for n in normal / np.hypot(normal[0], normal[1]))
    tau = along(temperature, a)
    depth = u * a + v * b
    change = np.hypot(depth, tau) - tau - depth
    return interleave(a + change * u, b + change * v)


def _smooth_householder_exact(
    z: Integers, q: int, normal: Floats, temperature: Floats
) -> FixedPoint:
    a, b = halves(balls(z, q))

    def fold(a: Any, b: Any, u: Any, v: Any, tau: Any) -> tuple[Any, Any]:
        length = (u * u + v * v).sqrt()
        along = (u * a + v * b) / length
        change = ((along * along + tau * tau).sqrt() - tau - along) / length
        return a + change * u, b + change * v

    mirrors = (ball_constants(normal[0], a), ball_constants(normal[1], a))
    tau = ball_constants(temperature, a)
    first, second = enclose(fold, 2, GRID_BITS, exponent(z, q), a, b, *mirrors, tau)
    return interleave(first, second), GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _soft_excess(depth: Floats, temperature: Floats) -> Floats:
    # temperature * log(1 + exp(depth / temperature)) for depth at most 0.
    return temperature * np.log1p(np.exp(depth / temperature))


def _excess_ball(depth: Any, tau: Any) -> Any:
    return tau * (depth / tau).exp().log1p()


def _excess_exact(depth: Integers, q: int, temperature: Floats, grid: int) -> Integers:
    tau = ball_constants(temperature, depth)
    size = exponent(depth, q)
    found = enclose(lambda d, t: (_excess_ball(d, t),), 1, grid, size, balls(depth, q), tau)
    return np.broadcast_to(found[0], depth.shape)


def _smooth_maxmin(x: Floats, temperature: Floats) -> Floats:
    a, b = halves(x)
    low, high = np.minimum(a, b), np.maximum(a, b)
    excess = _soft_excess(low - high, along(temperature, low))
    return interleave(low - excess, high + excess)


def _smooth_maxmin_exact(z: Integers, q: int, temperature: Floats) -> FixedPoint:
    a, b = halves(z)
    low, high = np.minimum(a, b), np.maximum(a, b)
    grid = max(GRID_BITS, q)
    excess = _excess_exact(low - high, q, temperature, grid)
    low, high = shift(low, grid - q) - excess, shift(high, grid - q) + excess
    return interleave(low, high), grid, math.ldexp(2.0, -grid)


def _softplus(x: Floats, temperature: Floats) -> Floats:
    return np.maximum(x, 0) + _soft_excess(-abs(x), along(temperature, x))


def _softplus_exact(z: Integers, q: int, temperature: Floats) -> FixedPoint:
    grid = max(GRID_BITS, q)
    excess = _excess_exact(-abs(z), q, temperature, grid)
    return shift(np.maximum(z, 0), grid - q) + excess, grid, math.ldexp(2.0, -grid)


def _log_sum_rounding(temperature: Floats) -> tuple[float, float]:
    return counted(1.0, 11.8 * float(temperature.max()))


def _smooth_n(x: Floats, corners: Floats, temperature: Floats) -> Floats:
    low, high = along(corners[0], x), along(corners[1], x)
    return 2 * _softplus(x - high, temperature) - 2 * _softplus(low - x, temperature) - x


def _smooth_n_exact(z: Integers, q: int, corners: Floats, temperature: Floats) -> FixedPoint:
    whole, places = to_integers(corners)
    grid = max(q, places)
    z, whole = shift(z, grid - q), shift(whole, grid - places)
    above, fine, error = _softplus_exact(z - along(whole[1], z), grid, temperature)
    below, _, _ = _softplus_exact(along(whole[0], z) - z, grid, temperature)
    return 2 * above - 2 * below - shift(z, fine - grid), fine, 4 * error


def _smooth_n_rounding(corners: Floats, temperature: Floats) -> tuple[float, float]:
    offset = max(0.0, float(corners[0].max()), float(-corners[1].min()))
    return counted(7.0, 8 * offset + 52 * float(temperature.max()))


def _tanh_exact(z: Integers, q: int) -> FixedPoint:
    found = enclose(lambda x: (x.tanh(),), 1, GRID_BITS, exponent(z, q), balls(z, q))
    return found[0], GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _sin_cos(x: Floats, frequency: Floats) -> Floats:
    omega = along(frequency, x)
    phase = omega * x
    return interleave(np.cos(phase) / omega, np.sin(phase) / omega)


def _sin_cos_exact(z: Integers, q: int, frequency: Floats) -> FixedPoint:
    def wind(x: Any, omega: Any) -> tuple[Any, Any]:
        sine, cosine = (omega * x).sin_cos()
        return cosine / omega, sine / omega

    omega = ball_constants(frequency, z)
    found = enclose(wind, 2, GRID_BITS, exponent(z, q), balls(z, q), omega)
    return interleave(found[0], found[1]), GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _sin_cos_rounding(frequency: Floats) -> tuple[float, float]:
    return counted(1.0, 6.4 / float(frequency.min()))


# Every activation of this file by its name.
SMOOTH: Mapping[str, Kind] = {
    "norm_pair": Kind(
        each_group, _norm_pair, _norm_pair_exact, _norm_pair_rounding, TAU, ("group_size",)
    ),
    "smooth_abs": Kind(each_entry, _smooth_abs, _smooth_abs_exact, _smooth_abs_rounding, TAU),
    "smooth_householder": Kind(
        each_pair,
        _smooth_householder,
        _smooth_householder_exact,
        lambda normal, temperature: counted(54.0, 5.7 * float(temperature.max())),
        ("normal", "temperature"),
    ),
    "smooth_maxmin": Kind(each_pair, _smooth_maxmin, _smooth_maxmin_exact, _log_sum_rounding, TAU),
    "softplus": Kind(each_entry, _softplus, _softplus_exact, _log_sum_rounding, TAU),
    "smooth_n": Kind(
        corners_in_order, _smooth_n, _smooth_n_exact, _smooth_n_rounding, ("corners", "temperature")
    ),
    "sin_cos": Kind(circle_features, _sin_cos, _sin_cos_exact, _sin_cos_rounding, ("frequency",)),
    "tanh": Kind(same_features, np.tanh, _tanh_exact, lambda: counted(8.0)),
}
