"""Piecewise linear and piecewise isometric activations."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.activations.kind import (
    Constants,
    FixedPoint,
    Kind,
    Options,
    along,
    complex_product,
    corners_in_order,
    counted,
    group_count,
    grouped,
    halves,
    interleave,
    not_above_count,
    pair_count,
    rays_in_order,
    require,
    same_features,
    selecting,
    spline_slopes,
    unit_normals,
)
from robustcert.check.fixed_point import GRID_BITS, Floats, Integers, shift, to_integers


def _sorted(count: int, options: Options, constants: Constants) -> int:
    del constants
    group_count(count, options)
    return count


def _beta_abs(x: NDArray[Any], count: int) -> NDArray[Any]:
    return np.concatenate((abs(x[:, :count]), x[:, count:]), axis=1)


def _group_sort(x: NDArray[Any], group_size: int) -> NDArray[Any]:
    return np.sort(grouped(x, group_size), axis=2).reshape(x.shape)


def _n_activation(x: NDArray[Any], corners: NDArray[Any]) -> NDArray[Any]:
    low, high = along(corners[0], x), along(corners[1], x)
    return x - 2 * np.minimum(np.maximum(x, low), high)


def _n_exact(z: Integers, q: int, corners: Floats) -> FixedPoint:
    whole, places = to_integers(corners)
    grid = max(q, places)
    return _n_activation(shift(z, grid - q), shift(whole, grid - places)), grid, 0.0


def _n_rounding(corners: Floats) -> tuple[float, float]:
    return counted(1.0, 2 * float(abs(np.clip(0.0, corners[0], corners[1])).max()))


def _knot_values(slopes: NDArray[Any]) -> NDArray[Any]:
    half = slopes.shape[1] // 2
    left = -slopes[:, :half][:, ::-1].cumsum(1)[:, ::-1]
    return np.concatenate((left, slopes[:, :1] * 0, slopes[:, half:-1].cumsum(1)), axis=1)


def _pick(table: NDArray[Any], piece: NDArray[Any]) -> NDArray[Any]:
    row = along(np.arange(len(table)), piece) if len(table) > 1 else 0
    return table[row, piece]


def _linear_spline(x: Floats, slopes: Floats, step: Floats) -> Floats:
    pieces = slopes.shape[1]
    knots = np.arange(-(pieces // 2), pieces // 2, dtype=slopes.dtype)
    intercepts = step * (_knot_values(slopes) - slopes * knots)
    place = np.nan_to_num(np.floor(x / step + pieces // 2))
    piece = place.clip(0, pieces - 1).astype(np.int64)
    return _pick(slopes, piece) * x + _pick(intercepts, piece)


def _spline_exact(z: Integers, q: int, slopes: Floats, step: Floats) -> FixedPoint:
    pieces = slopes.shape[1]
    slope, q_slope = to_integers(slopes)
    (unit,), q_step = to_integers(step.reshape(1))
    knots = np.arange(-(pieces // 2), pieces // 2).astype(object)
    place = shift(z, q_step) // (unit << q) + pieces // 2
    piece = np.minimum(np.maximum(place, 0), pieces - 1).astype(np.int64)
    intercepts = (_knot_values(slope) - slope * knots) * unit
    grid = max(q, q_step)
    line = _pick(slope, piece) * shift(z, grid - q)
    return line + shift(_pick(intercepts, piece), grid - q_step), grid + q_slope, 0.0


def _spline_rounding(slopes: Floats, step: Floats) -> tuple[float, float]:
    half = slopes.shape[1] // 2
    return counted(2.0, (half + 11) * half * float(step))


def _householder(x: Floats, normal: Floats) -> Floats:
    a, b = halves(x)
    u, v = along(normal[0], a), along(normal[1], a)
    depth = 2 * np.minimum(u * a + v * b, 0) / (u * u + v * v)
    return interleave(a - depth * u, b - depth * v)


def _householder_exact(z: Integers, q: int, normal: Floats) -> FixedPoint:
    a, b = halves(z)
    whole, _ = to_integers(normal)  # the scale of the normal cancels
    u, v = along(whole[0], a), along(whole[1], a)
    up = max(GRID_BITS - q, 0)
    depth = shift(2 * np.minimum(u * a + v * b, 0), up)
    square = u * u + v * v
    a, b = shift(a, up) - depth * u // square, shift(b, up) - depth * v // square
    return interleave(a, b), q + up, math.ldexp(1.0, -q - up)


def _householder2(x: NDArray[Any], rays: NDArray[Any], up: int | None = None) -> NDArray[Any]:
    # Of floats; or of integers, with `up` more binary places in the result.
    z = halves(x)
    first, second, third = ((along(u, z[0]), along(v, z[0])) for u, v in rays)
    minus_first, conjugate = (-first[0], -first[1]), (second[0], -second[1])
    fourth = complex_product(complex_product(minus_first, conjugate), third)
    left = [ray[0] * z[1] >= ray[1] * z[0] for ray in (first, second, third, fourth)]
    scaled = z if up is None else (shift(z[0], up), shift(z[1], up))
    plain = up is None
    once, last = _mirror(scaled, second, plain), _mirror(scaled, first, plain)
    twice = _mirror(_mirror(scaled, third, plain), second, plain)
    in_second, in_third = left[1] & ~left[2], left[2] & ~left[3]
    results = []
    for k in (0, 1):
        value = np.where(in_second, once[k], scaled[k])
        value = np.where(in_third, twice[k], value)
        results.append(np.where(left[3] & ~left[0], last[k], value))
    return interleave(results[0], results[1])


def _mirror(z: tuple[Any, Any], ray: tuple[Any, Any], plain: bool) -> tuple[Any, Any]:
    u, v = ray
    along, square = 2 * (u * z[0] + v * z[1]), u * u + v * v
    if plain:
        return along / square * u - z[0], along / square * v - z[1]
    return along * u // square - z[0], along * v // square - z[1]


def _householder2_exact(z: Integers, q: int, rays: Floats) -> FixedPoint:
    up = max(GRID_BITS - q, 0)
    whole, _ = to_integers(rays)
    result = _householder2(z, whole, up)
    # A reflection is rounded in the last place; the next one carries on that error of sqrt 2
    # places.
    return result, q + up, math.ldexp(3.0, -q - up)


def _graft(count: int, options: Options, constants: Constants) -> int:
    require(options["pairs"] <= 1, f"pairs {options['pairs']} is not 0 or 1")
    units = pair_count(count) if options["pairs"] else count
    graft, slope, offset = (constants[key] for key in ("graft", "slope", "shift"))
    require(graft.shape == (units,), f"graft of shape {graft.shape} for {units} units")
    require(slope.shape == offset.shape == (count,), f"slope of shape {slope.shape}")
    known = np.isin(graft, (0, 1, 2) if options["pairs"] else (0, 1))
    require(bool(known.all()), "a graft that is not known")
    require(bool((abs(slope) <= 1).all()), "a slope outside [-1, 1]")
    return count


def _grafted(
    x: NDArray[Any], graft: Floats, slope: NDArray[Any], offset: NDArray[Any], pairs: int, one: int
) -> NDArray[Any]:
    # Integers x, slope and offset have a slope of 1 represented by `one`; floats have 1.
    if not pairs:
        units, folded, line = along(graft, x), np.maximum(x, 0), x
    else:
        first, second = halves(x)
        units, crossed = along(graft.repeat(2), x), along(graft == 2, first)
        folded = interleave(np.minimum(first, second), np.maximum(first, second))
        line = interleave(np.where(crossed, second, first), np.where(crossed, first, second))
    return np.where(units == 0, folded * one, line * along(slope, x) + along(offset, x))


def _graft_rounding(graft: Floats, slope: Floats, shift: Floats, pairs: int) -> tuple[float, float]:
    del slope, pairs
    return counted(2.0, float(abs(shift).max())) if graft.any() else (0.0, 0.0)


def _grafted_exact(
    z: Integers, q: int, graft: Floats, slope: Floats, offset: Floats, pairs: int
) -> FixedPoint:
    slopes, places = to_integers(slope)
    offsets, finer = to_integers(offset)
    grid = max(q + places, finer)
    up = grid - q - places
    return (
        _grafted(shift(z, up), graft, slopes, shift(offsets, grid - finer), pairs, 1 << places),
        grid,
        0.0,
    )


# Every activation of this file by its name.
PIECEWISE_LINEAR: Mapping[str, Kind] = {
    "relu": Kind(same_features, **selecting(lambda x: np.maximum(x, 0))),
    "absolute": Kind(same_features, **selecting(abs)),
    "identity": Kind(same_features, **selecting(lambda x: x)),
    "beta_abs": Kind(not_above_count, **selecting(_beta_abs), integers=("count",)),
    "group_sort": Kind(_sorted, **selecting(_group_sort), integers=("group_size",)),
    "n_activation": Kind(corners_in_order, _n_activation, _n_exact, _n_rounding, ("corners",)),
    "grafted": Kind(
        _graft,
        lambda x, graft, slope, shift, pairs: _grafted(x, graft, slope, shift, pairs, 1),
        lambda z, q, graft, slope, shift, pairs: _grafted_exact(z, q, graft, slope, shift, pairs),
        _graft_rounding,
        ("graft", "slope", "shift"),
        ("pairs",),
    ),
    "linear_spline": Kind(
        spline_slopes, _linear_spline, _spline_exact, _spline_rounding, ("slopes", "step")
    ),
    "householder": Kind(
        unit_normals, _householder, _householder_exact, lambda normal: counted(13.0), ("normal",)
    ),
    "householder2": Kind(
        rays_in_order, _householder2, _householder2_exact, lambda rays: counted(40.0), ("rays",)
    ),
}
