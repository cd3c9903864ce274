r"""What an activation is: its constants, its formula, its rounding, its exact values.

Every function in the table is 1-Lipschitz for the constants that ``features`` lets pass:

* ``relu``, ``absolute``, ``identity``, ``beta_abs``, ``n_activation`` (for corners in order) and
  ``linear_spline`` (for slopes in [-1, 1]) act on each entry by a continuous function with slopes
  in [-1, 1]; so do ``tanh``, ``softplus`` (a sigmoid), ``smooth_abs`` (:math:`x / \sqrt{x^2 +
  \tau^2}`) and ``smooth_n``, whose slope is :math:`2 \sigma(p) + 2 \sigma(q) - 1` with
  :math:`p + q = (t_1 - t_2) / \tau \le 0`, hence in [-1, 1].
* ``grafted``: of disjoint units, some are ReLUs or sorted pairs and the others lines, or exchanged
  pairs of lines, with slopes in [-1, 1].
* ``group_sort``: sorted lists are the closest pairing of two lists. ``smooth_maxmin``: its Jacobian
  is a convex combination of the identity and the exchange, ``norm_pair``: that of each output is
  :math:`z / \sqrt{|z|^2 + \tau^2}` and groups are disjoint. ``sin_cos``: a curve of unit speed.
* ``householder`` and ``smooth_householder`` leave the component across the normal alone and apply
  the (smooth) absolute value to the one along it, whatever the normal's length.
* ``norm_pool``: the norm of each of some disjoint windows is 1-Lipschitz in that window.
* ``householder2`` is an isometry on each of four sectors and continuous: with rays at angles t1 <
  t2 < t3 < t4 = t1 - t2 + t3 + pi, both compositions of reflections agree on every ray. That needs
  the sectors to be between 0 and pi wide, which is checked exactly.

Rounding. ``rounding`` returns (a, b) such that the formula, evaluated with unit roundoff u, stays
within :math:`u (a |z| + b \sqrt n)` of the real function in the l2 norm, n being the number of
outputs. It is assumed that exp, log1p, tanh, cos, sin and hypot are within 4 ulp, that is 8u.
The counts below are of first order: factors 1 + d, \|d\| <= c u, of all roundings, K being the
sum of their c. Within those ranges no derivative by a d, taken with the sizes of values that are
counted here, grows by more than (1 + u)^{2 K}, or by 1 + 2^-15 besides where an exponential's
argument is wrong relatively (3 u times at most 104 in float32, 745 in float64, beyond which it
underflows). For K u <= 2^-6 that is below 1.032, so 17/16 of the count bounds all orders; no
constants pass ``features`` with more than 2^18 roundings, which is that for u = 2^-24.

* ``grafted``: a product within \|x\| and a sum within \|x\| + \|b\|.
* ``n_activation``: one rounding of an output within \|z\| + \|N(0)\|. ``tanh``: 8.
* ``householder``: inner product 2, squared length 2, quotient 1, doubled and times the normal: 10;
  the product with the normal 2, the difference 1. ``householder2``: 13 for each of two reflections,
  and 14 for a point in the wrong sector: the fourth ray is wrong by 5.7, a comparison by 1, and two
  isometries that agree on a ray differ by twice the distance to it.
* ``linear_spline`` with m pieces on each side and radius R: the value at a knot m - 1, slope times
  knot 1, their difference and its product with the step 2 each, a wrong piece 6, all times R; 2
  \|x\| for the last product and sum.
* ``softplus``: the exponent is wrong by 1 (2 in ``smooth_maxmin``), which moves the result by at
  most 0.28 for each; exp 8, halved by log1p; log1p 8 log 2; product and sum log 2 each, all times
  tau; \|x\| for the sum. ``smooth_n``: that twice, doubled, with arguments that are rounded
  themselves, then two differences: 7 \|x\| + 8 c + 52 tau, c being the corners' distance to 0.
* ``smooth_abs``: hypot 8 (\|x\| + tau), difference \|x\|. ``norm_pair``: 8 for each hypot.
* ``norm_pool``, of n entries: squares 1, sums n, which the root halves, and 1 for itself; scaling
  for another 2. Squares that underflow, sqrt n 2^-511 or, in float32, sqrt n 2^-63: 2^-38 sqrt n.
* ``sin_cos``: phase \|x\|, cos and sin 8 and quotient 1, over omega and both outputs together.
* ``smooth_householder``: the unit normal 9, the inner product with it 11; 33 \|z\| + 8 tau for the
  change along it, 20 \|z\| for the product with the normal, 1 for the sum.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.fixed import (
    GRID_BITS,
    Floats,
    Integers,
    balls,
    enclose,
    exponent,
    shift,
    to_integers,
)

Constants = dict[str, Floats]
Options = dict[str, int]
Exact = tuple[Integers, int, float]

SMALLEST, LARGEST = 2.0**-24, 2.0**24


@dataclass(frozen=True)
class Kind:
    """One activation.

    Attributes:
        features: Number of output features for C input features; ``ValueError`` for constants with
            which the function would not be known to be 1-Lipschitz.
        apply: The formula in float64, on ``(N, C, *)``.
        exact: ``(z, q)`` to ``(z', q', error)``: values on ``z * 2**-q``, every entry of the result
            within ``error``.
        rounding: ``(a, b)``, see above.
        tensors: Names of the constants.
        integers: Names of the integer options.
        shape: Output shape for an input shape, where more than the number of features changes;
            raises ``ValueError`` like ``features``.
        squares: Whether the square of an input is computed, which overflows earlier.
    """

    features: Callable[[int, Options, Constants], int]
    apply: Callable[..., Floats]
    exact: Callable[..., Exact]
    rounding: Callable[..., tuple[float, float]] = lambda: (0.0, 0.0)
    tensors: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    shape: Callable[[tuple[int, ...], Options], tuple[int, ...]] | None = None
    squares: bool = False


# Slopes of those that act on each entry.
SLOPES = {
    "relu": (0.0, 1.0),
    "softplus": (0.0, 1.0),
    "tanh": (0.0, 1.0),
    "absolute": (-1.0, 1.0),
    "smooth_abs": (-1.0, 1.0),
    "n_activation": (-1.0, 1.0),
    "smooth_n": (-1.0, 1.0),
    "identity": (1.0, 1.0),
}


def slopes_of(function: str, constants: Constants) -> tuple[float, float] | None:
    """Least and largest slope of an activation on each entry; None for others."""
    if function == "linear_spline":
        slopes = constants["slopes"]
        return float(slopes.min()), float(slopes.max())
    return SLOPES.get(function)


def _counted(relative: float, absolute: float = 0.0) -> tuple[float, float]:
    """Bounds of all orders from counts of first order, for at most 2^18 roundings: see above."""
    return 17 / 16 * relative, 17 / 16 * absolute


# Conditions on the constants.


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _same(count: int, options: Options, constants: Constants) -> int:
    del options, constants
    return count


def _positive(value: Floats, count: int, name: str) -> None:
    _require(value.shape in ((), (count,)), f"{name} of shape {value.shape} for {count} values")
    inside = (value >= SMALLEST) & (value <= LARGEST)
    _require(bool(inside.all()), f"{name} is not between 2^-24 and 2^24")


def _pairs(count: int) -> int:
    _require(count % 2 == 0, f"{count} features are not made of pairs")
    return count // 2


def _groups(count: int, options: Options) -> int:
    size = options["group_size"]
    _require(size >= 1 and count % size == 0, f"{count} features are not made of groups of {size}")
    return count // size


def _count(count: int, options: Options, constants: Constants) -> int:
    del constants
    _require(options["count"] <= count, f"count {options['count']} exceeds {count} features")
    return count


def _sorted(count: int, options: Options, constants: Constants) -> int:
    del constants
    _groups(count, options)
    return count


def _normals(count: int, options: Options, constants: Constants) -> int:
    del options
    normal = constants["normal"]
    _require(normal.shape == (2, _pairs(count)), f"normal of shape {normal.shape}")
    length = (normal**2).sum(0)
    _require(bool((abs(length - 1) < 0.01).all()), "a normal is not of length 1, even roughly")
    return count


def _rays(count: int, options: Options, constants: Constants) -> int:
    del options
    rays = constants["rays"]
    _require(rays.shape == (3, 2, _pairs(count)), f"rays of shape {rays.shape}")
    _require(bool((abs((rays**2).sum(1) - 1) < 0.01).all()), "a ray is not of length 1")
    # In float64, with room to spare: sectors are between 2^-10 and pi - 2^-10 wide.
    for first, second in ((rays[0], rays[1]), (rays[1], rays[2])):
        cross = first[0] * second[1] - first[1] * second[0]
        _require(bool((cross > 2.0**-10).all()), "rays are not in order, or too close")
    return count


def _spline(count: int, options: Options, constants: Constants) -> int:
    del options
    slopes, step = constants["slopes"], constants["step"]
    fits = slopes.ndim == 2 and slopes.shape[0] in (1, count)
    _require(fits, f"slopes of shape {slopes.shape} for {count} features")
    pieces = slopes.shape[1]
    _require(2 <= pieces <= 2**16 and pieces % 2 == 0, f"{pieces} pieces")
    _require(bool((abs(slopes) <= 1).all()), "a slope outside [-1, 1]")
    _require(step.shape == (), f"step of shape {step.shape}")
    _positive(step, 1, "step")
    return count


def _corners(count: int, options: Options, constants: Constants) -> int:
    del options
    corners = constants["corners"]
    _require(corners.shape == (2, count), f"corners of shape {corners.shape}")
    _require(bool((corners[0] <= corners[1]).all()), "corners are not in order")
    if "temperature" in constants:
        _positive(constants["temperature"], count, "temperature")
    return count


def _each(count: int, options: Options, constants: Constants) -> int:
    del options
    _positive(constants["temperature"], count, "temperature")
    return count


def _each_pair(count: int, options: Options, constants: Constants) -> int:
    _positive(constants["temperature"], _pairs(count), "temperature")
    return _normals(count, options, constants) if "normal" in constants else count


def _each_group(count: int, options: Options, constants: Constants) -> int:
    _positive(constants["temperature"], _groups(count, options), "temperature")
    _require(options["group_size"] < 2**15, "groups of too many features for its rounding")
    return _groups(count, options)


def _circle(count: int, options: Options, constants: Constants) -> int:
    del options
    _positive(constants["frequency"], count, "frequency")
    return 2 * count


# Layout: features lie along dimension 1.


def along(value: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """A constant of every feature, so that it broadcasts."""
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (x.ndim - 2))


def grouped(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Features in groups of neighbours, which are a dimension of their own."""
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _halves(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    both = grouped(x, 2)
    return both[:, :, 0], both[:, :, 1]


def _interleave(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    both = np.stack((first, second), axis=2)
    return both.reshape(first.shape[0], -1, *first.shape[2:])


# Piecewise linear and piecewise isometric ones.


def _beta_abs(x: NDArray[Any], count: int) -> NDArray[Any]:
    return np.concatenate((abs(x[:, :count]), x[:, count:]), axis=1)


def _group_sort(x: NDArray[Any], group_size: int) -> NDArray[Any]:
    return np.sort(grouped(x, group_size), axis=2).reshape(x.shape)


def _n_activation(x: NDArray[Any], corners: NDArray[Any]) -> NDArray[Any]:
    low, high = along(corners[0], x), along(corners[1], x)
    return x - 2 * np.minimum(np.maximum(x, low), high)


def _n_exact(z: Integers, q: int, corners: Floats) -> Exact:
    whole, places = to_integers(corners)
    grid = max(q, places)
    return _n_activation(shift(z, grid - q), shift(whole, grid - places)), grid, 0.0


def _n_rounding(corners: Floats) -> tuple[float, float]:
    return _counted(1.0, 2 * float(abs(np.clip(0.0, corners[0], corners[1])).max()))


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


def _spline_exact(z: Integers, q: int, slopes: Floats, step: Floats) -> Exact:
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
    return _counted(2.0, (half + 11) * half * float(step))


def _householder(x: Floats, normal: Floats) -> Floats:
    a, b = _halves(x)
    u, v = along(normal[0], a), along(normal[1], a)
    depth = 2 * np.minimum(u * a + v * b, 0) / (u * u + v * v)
    return _interleave(a - depth * u, b - depth * v)


def _householder_exact(z: Integers, q: int, normal: Floats) -> Exact:
    a, b = _halves(z)
    whole, _ = to_integers(normal)  # its scale cancels
    u, v = along(whole[0], a), along(whole[1], a)
    up = max(GRID_BITS - q, 0)
    depth = shift(2 * np.minimum(u * a + v * b, 0), up)
    square = u * u + v * v
    a, b = shift(a, up) - depth * u // square, shift(b, up) - depth * v // square
    return _interleave(a, b), q + up, math.ldexp(1.0, -q - up)


def _householder2(x: NDArray[Any], rays: NDArray[Any], up: int | None = None) -> NDArray[Any]:
    # Integers where `up` says by how many places results are finer; else floats.
    z = _halves(x)
    first, second, third = ((along(u, z[0]), along(v, z[0])) for u, v in rays)
    minus_first, conjugate = (-first[0], -first[1]), (second[0], -second[1])
    fourth = _times(_times(minus_first, conjugate), third)
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
    return _interleave(results[0], results[1])


def _times(z: tuple[Any, Any], w: tuple[Any, Any]) -> tuple[Any, Any]:
    return z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]


def _mirror(z: tuple[Any, Any], ray: tuple[Any, Any], plain: bool) -> tuple[Any, Any]:
    u, v = ray
    along, square = 2 * (u * z[0] + v * z[1]), u * u + v * v
    if plain:
        return along / square * u - z[0], along / square * v - z[1]
    return along * u // square - z[0], along * v // square - z[1]


def _householder2_exact(z: Integers, q: int, rays: Floats) -> Exact:
    up = max(GRID_BITS - q, 0)
    whole, _ = to_integers(rays)
    result = _householder2(z, whole, up)
    # One reflection rounds by one place; an error of sqrt 2 places may turn into the next.
    return result, q + up, math.ldexp(3.0, -q - up)


def _graft(count: int, options: Options, constants: Constants) -> int:
    _require(options["pairs"] <= 1, f"pairs {options['pairs']} is not 0 or 1")
    units = _pairs(count) if options["pairs"] else count
    graft, slope, offset = (constants[key] for key in ("graft", "slope", "shift"))
    _require(graft.shape == (units,), f"graft of shape {graft.shape} for {units} units")
    _require(slope.shape == offset.shape == (count,), f"slope of shape {slope.shape}")
    known = np.isin(graft, (0, 1, 2) if options["pairs"] else (0, 1))
    _require(bool(known.all()), "a graft that is not known")
    _require(bool((abs(slope) <= 1).all()), "a slope outside [-1, 1]")
    return count


def _grafted(
    x: NDArray[Any], graft: Floats, slope: NDArray[Any], offset: NDArray[Any], pairs: int, one: int
) -> NDArray[Any]:
    # In units of which there are `one` to 1, where x, slope and offset are integers.
    if not pairs:
        units, folded, line = along(graft, x), np.maximum(x, 0), x
    else:
        first, second = _halves(x)
        units, crossed = along(graft.repeat(2), x), along(graft == 2, first)
        folded = _interleave(np.minimum(first, second), np.maximum(first, second))
        line = _interleave(np.where(crossed, second, first), np.where(crossed, first, second))
    return np.where(units == 0, folded * one, line * along(slope, x) + along(offset, x))


def _graft_rounding(graft: Floats, slope: Floats, shift: Floats, pairs: int) -> tuple[float, float]:
    del slope, pairs
    return _counted(2.0, float(abs(shift).max())) if graft.any() else (0.0, 0.0)


def _grafted_exact(
    z: Integers, q: int, graft: Floats, slope: Floats, offset: Floats, pairs: int
) -> Exact:
    slopes, places = to_integers(slope)
    offsets, finer = to_integers(offset)
    grid = max(q + places, finer)
    up = grid - q - places
    return (
        _grafted(shift(z, up), graft, slopes, shift(offsets, grid - finer), pairs, 1 << places),
        grid,
        0.0,
    )


# Smooth ones, with exact values from square roots of integers or from balls.


def _root(square: Integers) -> Integers:
    return np.asarray(np.frompyfunc(lambda n: math.isqrt(int(n)), 1, 1)(square), dtype=object)


def _norm_pair(x: Floats, temperature: Floats, group_size: int) -> Floats:
    groups = grouped(x, group_size)
    norm = tau = along(temperature, groups[:, :, 0])
    for k in range(group_size):
        norm = np.hypot(groups[:, :, k], norm)
    return norm - tau


def _norm_pair_exact(z: Integers, q: int, temperature: Floats, group_size: int) -> Exact:
    tau, places = to_integers(temperature)
    grid = max(GRID_BITS, q, places)
    groups = grouped(shift(z, grid - q), group_size)
    tau = along(shift(tau, grid - places), groups[:, :, 0])
    root = _root((groups * groups).sum(2) + tau * tau)
    return root - tau, grid, math.ldexp(1.0, -grid)


def _norm_pair_rounding(temperature: Floats, group_size: int) -> tuple[float, float]:
    hypots = 8.0 * group_size
    return _counted(hypots + 1, hypots * float(temperature.max()))


def _smooth_abs(x: Floats, temperature: Floats) -> Floats:
    return _norm_pair(x, temperature, 1)


def _smooth_abs_exact(z: Integers, q: int, temperature: Floats) -> Exact:
    return _norm_pair_exact(z, q, temperature, 1)


def _smooth_abs_rounding(temperature: Floats) -> tuple[float, float]:
    return _norm_pair_rounding(temperature, 1)


def _smooth_householder(x: Floats, normal: Floats, temperature: Floats) -> Floats:
    a, b = _halves(x)
    u, v = (along(n, a) for n in normal / np.hypot(normal[0], normal[1]))
    tau = along(temperature, a)
    depth = u * a + v * b
    change = np.hypot(depth, tau) - tau - depth
    return _interleave(a + change * u, b + change * v)


def _ball_constants(value: Floats, z: Integers) -> Integers:
    whole, places = to_integers(value)
    return along(balls(whole, places), z)


def _smooth_householder_exact(z: Integers, q: int, normal: Floats, temperature: Floats) -> Exact:
    a, b = _halves(balls(z, q))

    def fold(a: Any, b: Any, u: Any, v: Any, tau: Any) -> tuple[Any, Any]:
        length = (u * u + v * v).sqrt()
        along = (u * a + v * b) / length
        change = ((along * along + tau * tau).sqrt() - tau - along) / length
        return a + change * u, b + change * v

    mirrors = (_ball_constants(normal[0], a), _ball_constants(normal[1], a))
    tau = _ball_constants(temperature, a)
    first, second = enclose(fold, 2, GRID_BITS, exponent(z, q), a, b, *mirrors, tau)
    return _interleave(first, second), GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _soft_excess(depth: Floats, temperature: Floats) -> Floats:
    # temperature * log(1 + exp(depth / temperature)) for depth at most 0.
    return temperature * np.log1p(np.exp(depth / temperature))


def _excess_ball(depth: Any, tau: Any) -> Any:
    return tau * (depth / tau).exp().log1p()


def _excess_exact(depth: Integers, q: int, temperature: Floats, grid: int) -> Integers:
    tau = _ball_constants(temperature, depth)
    size = exponent(depth, q)
    found = enclose(lambda d, t: (_excess_ball(d, t),), 1, grid, size, balls(depth, q), tau)
    return np.broadcast_to(found[0], depth.shape)


def _smooth_maxmin(x: Floats, temperature: Floats) -> Floats:
    a, b = _halves(x)
    low, high = np.minimum(a, b), np.maximum(a, b)
    excess = _soft_excess(low - high, along(temperature, low))
    return _interleave(low - excess, high + excess)


def _smooth_maxmin_exact(z: Integers, q: int, temperature: Floats) -> Exact:
    a, b = _halves(z)
    low, high = np.minimum(a, b), np.maximum(a, b)
    grid = max(GRID_BITS, q)
    excess = _excess_exact(low - high, q, temperature, grid)
    low, high = shift(low, grid - q) - excess, shift(high, grid - q) + excess
    return _interleave(low, high), grid, math.ldexp(2.0, -grid)


def _softplus(x: Floats, temperature: Floats) -> Floats:
    return np.maximum(x, 0) + _soft_excess(-abs(x), along(temperature, x))


def _softplus_exact(z: Integers, q: int, temperature: Floats) -> Exact:
    grid = max(GRID_BITS, q)
    excess = _excess_exact(-abs(z), q, temperature, grid)
    return shift(np.maximum(z, 0), grid - q) + excess, grid, math.ldexp(2.0, -grid)


def _log_sum_rounding(temperature: Floats) -> tuple[float, float]:
    return _counted(1.0, 11.8 * float(temperature.max()))


def _smooth_n(x: Floats, corners: Floats, temperature: Floats) -> Floats:
    low, high = along(corners[0], x), along(corners[1], x)
    return 2 * _softplus(x - high, temperature) - 2 * _softplus(low - x, temperature) - x


def _smooth_n_exact(z: Integers, q: int, corners: Floats, temperature: Floats) -> Exact:
    whole, places = to_integers(corners)
    grid = max(q, places)
    z, whole = shift(z, grid - q), shift(whole, grid - places)
    above, fine, error = _softplus_exact(z - along(whole[1], z), grid, temperature)
    below, _, _ = _softplus_exact(along(whole[0], z) - z, grid, temperature)
    return 2 * above - 2 * below - shift(z, fine - grid), fine, 4 * error


def _smooth_n_rounding(corners: Floats, temperature: Floats) -> tuple[float, float]:
    offset = max(0.0, float(corners[0].max()), float(-corners[1].min()))
    return _counted(7.0, 8 * offset + 52 * float(temperature.max()))


def _tanh_exact(z: Integers, q: int) -> Exact:
    found = enclose(lambda x: (x.tanh(),), 1, GRID_BITS, exponent(z, q), balls(z, q))
    return found[0], GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _sin_cos(x: Floats, frequency: Floats) -> Floats:
    omega = along(frequency, x)
    phase = omega * x
    return _interleave(np.cos(phase) / omega, np.sin(phase) / omega)


def _sin_cos_exact(z: Integers, q: int, frequency: Floats) -> Exact:
    def wind(x: Any, omega: Any) -> tuple[Any, Any]:
        sine, cosine = (omega * x).sin_cos()
        return cosine / omega, sine / omega

    omega = _ball_constants(frequency, z)
    found = enclose(wind, 2, GRID_BITS, exponent(z, q), balls(z, q), omega)
    return _interleave(found[0], found[1]), GRID_BITS, math.ldexp(2.0, -GRID_BITS)


def _sin_cos_rounding(frequency: Floats) -> tuple[float, float]:
    return _counted(1.0, 6.4 / float(frequency.min()))


def _pooled(shape: tuple[int, ...], options: Options) -> tuple[int, ...]:
    size = options["size"]
    _require(len(shape) == 3 and size >= 1, f"windows of {size} in inputs {shape}")
    _require(size < 2**9, f"windows of {size} have too many entries for their rounding")
    fits = shape[1] % size == 0 and shape[2] % size == 0
    _require(fits, f"windows of {size} do not fill maps {shape[1:]}")
    return shape[0], shape[1] // size, shape[2] // size


def _windows(x: NDArray[Any], size: int) -> NDArray[Any]:
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // size, size, width // size, size)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:3], width // size, size * size)


def _norm_pool(x: Floats, size: int) -> Floats:
    return np.sqrt((_windows(x, size) ** 2).sum(4))


def _norm_pool_exact(z: Integers, q: int, size: int) -> Exact:
    grid = max(GRID_BITS, q)
    windows = _windows(shift(z, grid - q), size)
    return _root((windows * windows).sum(4)), grid, math.ldexp(1.0, -grid)


def _on_maps(shape: tuple[int, ...], options: Options) -> tuple[int, ...]:
    del options
    _require(len(shape) == 3, f"rolled along height and width, but inputs are {shape}")
    return shape


def _shifted(count: int, options: Options, constants: Constants) -> int:
    _require(0 <= 4 * options["moved"] <= count, f"4 groups of {options['moved']} of {count}")
    return _same(count, options, constants)


def _circular_shift(x: NDArray[Any], moved: int) -> NDArray[Any]:
    # Four groups of channels go down, up, right and left on a torus: a permutation.
    x = x.copy()
    for group, (step, axis) in enumerate(((1, 2), (-1, 2), (1, 3), (-1, 3))):
        channels = slice(group * moved, (group + 1) * moved)
        x[:, channels] = np.roll(x[:, channels], step, axis)
    return x


def _selecting(function: Callable[..., Any]) -> dict[str, Any]:
    # Only selects, negates and reorders: the same code on floats and on integers, no rounding.
    def exact(z: Integers, q: int, **options: int) -> Exact:
        return function(z, **options), q, 0.0

    return {"apply": function, "exact": exact, "rounding": lambda **_: (0.0, 0.0)}


_TAU = ("temperature",)

KINDS: Mapping[str, Kind] = {
    "relu": Kind(_same, **_selecting(lambda x: np.maximum(x, 0))),
    "absolute": Kind(_same, **_selecting(abs)),
    "identity": Kind(_same, **_selecting(lambda x: x)),
    "beta_abs": Kind(_count, **_selecting(_beta_abs), integers=("count",)),
    "circular_shift": Kind(
        _shifted, **_selecting(_circular_shift), integers=("moved",), shape=_on_maps
    ),
    "group_sort": Kind(_sorted, **_selecting(_group_sort), integers=("group_size",)),
    "n_activation": Kind(_corners, _n_activation, _n_exact, _n_rounding, ("corners",)),
    "grafted": Kind(
        _graft,
        lambda x, graft, slope, shift, pairs: _grafted(x, graft, slope, shift, pairs, 1),
        lambda z, q, graft, slope, shift, pairs: _grafted_exact(z, q, graft, slope, shift, pairs),
        _graft_rounding,
        ("graft", "slope", "shift"),
        ("pairs",),
    ),
    "linear_spline": Kind(
        _spline, _linear_spline, _spline_exact, _spline_rounding, ("slopes", "step")
    ),
    "householder": Kind(
        _normals, _householder, _householder_exact, lambda normal: _counted(13.0), ("normal",)
    ),
    "householder2": Kind(
        _rays, _householder2, _householder2_exact, lambda rays: _counted(40.0), ("rays",)
    ),
    "norm_pair": Kind(
        _each_group, _norm_pair, _norm_pair_exact, _norm_pair_rounding, _TAU, ("group_size",)
    ),
    "norm_pool": Kind(
        _same,
        _norm_pool,
        _norm_pool_exact,
        lambda size: _counted(size**2 / 2 + 3, 2.0**-39 * size),
        integers=("size",),
        shape=_pooled,
        squares=True,
    ),
    "smooth_abs": Kind(_each, _smooth_abs, _smooth_abs_exact, _smooth_abs_rounding, _TAU),
    "smooth_householder": Kind(
        _each_pair,
        _smooth_householder,
        _smooth_householder_exact,
        lambda normal, temperature: _counted(54.0, 5.7 * float(temperature.max())),
        ("normal", "temperature"),
    ),
    "smooth_maxmin": Kind(
        _each_pair, _smooth_maxmin, _smooth_maxmin_exact, _log_sum_rounding, _TAU
    ),
    "softplus": Kind(_each, _softplus, _softplus_exact, _log_sum_rounding, _TAU),
    "smooth_n": Kind(
        _corners, _smooth_n, _smooth_n_exact, _smooth_n_rounding, ("corners", "temperature")
    ),
    "sin_cos": Kind(_circle, _sin_cos, _sin_cos_exact, _sin_cos_rounding, ("frequency",)),
    "tanh": Kind(_same, np.tanh, _tanh_exact, lambda: _counted(8.0)),
}
