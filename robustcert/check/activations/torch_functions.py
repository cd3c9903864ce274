r"""Activations and max-pooling of torch, whose slopes may exceed 1.

Least upper bounds of their slopes:

* ``leaky_relu``: 1 and the magnitudes of ``slope``. ``elu``: 1 and :math:`|\alpha / w|`, as
  :math:`(\alpha / w) e^{x / w}` rises to it. ``sigmoid``: 1/4. ``hardswish``: x / 3 + 1 / 2 at 3.
* ``silu``, whose slope is :math:`s + x s (1 - s)`, s the sigmoid: stationary where
  :math:`x \tanh(x / 2) = 2`, and :math:`1/2 + x/4` there; 2.4 is beyond that x.
* ``gelu``, :math:`\Phi(x) + x \varphi(x)`: stationary at :math:`\pm \sqrt 2`. ``gelu_tanh``: within
  1e-9 of 0 or 1 beyond 8, enclosed on [-8, 8] by a test in ball arithmetic, as the others are.
* ``max_pool``: a maximum moves by at most the largest change in its window, so squares of changes
  sum to at most m times the square of the input's, if an entry is in at most m windows. Along one
  side windows of k that move by s share an entry :math:`\lceil k / s \rceil` at a time.
* The others have slopes from 0 to 1.

Roundings, counted like those of ``table.py``, with expm1 and erf within 4 ulp too:

* ``leaky_relu``: a product. ``elu``: a quotient t of at most 0 moves expm1 by u \|t\| e^t, which is
  at most u \|expm1\|; expm1 8 and a product.
* ``sigmoid``: exp 8, a sum and a quotient. ``silu``: those and a product with x. ``log_sigmoid``:
  exp 8, halved by log1p; log1p 8 log 2; a difference within \|x\| + log 2.
* ``gelu``: the argument 2, with 2 t erf'(t) < 1; erf 8, a sum of at most 2; all halved, a product
  with x. ``gelu_tanh``: the argument 6, with 6 t / cosh(t)^2 < 2.7; tanh 8, likewise.
* ``softsign``: a sum, a quotient. ``hardswish``: a sum within 6, a product, a quotient.
  ``softshrink``: a difference within \|x\|. ``tanhshrink``: tanh 8, a difference within \|x\|.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.activations.kind import (
    MAX_CONSTANT,
    Constants,
    FixedPoint,
    Kind,
    Options,
    along,
    ball_constants,
    counted,
    require,
    require_positive,
    same_features,
    selecting,
)
from robustcert.check.activations.smooth import SMOOTH
from robustcert.check.fixed_point import (
    GRID_BITS,
    Floats,
    Integers,
    balls,
    enclose,
    exponent,
    flint,
    shift,
    to_integers,
)
from robustcert.check.norms.scalars import root_up

# Least upper bounds of the slopes of SiLU, GELU and GELU by tanh, rounded up in the sixth place.
SILU_SLOPE, GELU_SLOPE, GELU_TANH_SLOPE = 1.09984, 1.128905, 1.128995
# Maximum number of entries that the windows of a max-pooling read of one sample.
MAX_POOL_READS = 2**27


def _number(value: Floats, name: str) -> None:
    require(value.shape == (), f"{name} of shape {value.shape}, not a number")
    require(bool(abs(value) <= MAX_CONSTANT), f"{name} of more than 2^24")


def _balls_of(function: Callable[..., Any]) -> Callable[..., FixedPoint]:
    """Exact values of a function of one ball and of balls of its constants."""

    def exact(z: Integers, q: int, **constants: Floats) -> FixedPoint:
        others = [ball_constants(value, z) for value in constants.values()]
        size = exponent(z, q)
        found = enclose(lambda *x: (function(*x),), 1, GRID_BITS, size, balls(z, q), *others)
        return np.broadcast_to(found[0], z.shape), GRID_BITS, math.ldexp(2.0, -GRID_BITS)

    return exact


def _leaky_features(count: int, options: Options, constants: Constants) -> int:
    slope = constants["slope"]
    require(slope.shape in ((), (count,)), f"slope of shape {slope.shape} for {count} features")
    require(bool((abs(slope) <= MAX_CONSTANT).all()), "a slope of more than 2^24")
    return same_features(count, options, constants)


def _leaky_relu(x: NDArray[Any], slope: NDArray[Any]) -> NDArray[Any]:
    return np.where(x > 0, x, along(slope, x) * x)


def _leaky_exact(z: Integers, q: int, slope: Floats) -> FixedPoint:
    whole, places = to_integers(slope)
    return np.where(z > 0, shift(z, places), along(whole, z) * z), q + places, 0.0


def _leaky_constant(slope: Floats) -> float:
    return max(1.0, float(abs(slope).max()))


def _elu_features(count: int, options: Options, constants: Constants) -> int:
    _number(constants["alpha"], "alpha")
    _number(constants["width"], "width")
    require_positive(constants["width"], count, "width")
    return same_features(count, options, constants)


def _elu(x: Floats, alpha: Floats, width: Floats) -> Floats:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width))


def _elu_ball(x: Any, alpha: Any, width: Any) -> Any:
    return x if x > 0 else alpha * (x / width).expm1()


def _elu_constant(alpha: Floats, width: Floats) -> Fraction:
    return max(Fraction(1), abs(Fraction(float(alpha)) / Fraction(float(width))))


def _elu_rounding(alpha: Floats, width: Floats) -> tuple[float, float]:
    return counted(10 * float(_elu_constant(alpha, width)))


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _sigmoid_ball(x: Any) -> Any:
    return 1 / (1 + (-x).exp())


def _log_sigmoid(x: Floats) -> Floats:
    return np.minimum(x, 0) - np.log1p(np.exp(-abs(x)))


def _log_sigmoid_ball(x: Any) -> Any:
    return -(-x).exp().log1p() if x > 0 else x - x.exp().log1p()


def _gelu(x: Floats) -> Floats:
    erf = np.frompyfunc(math.erf, 1, 1)(x * x.dtype.type(math.sqrt(0.5)))
    return x * (0.5 * (1 + np.asarray(erf, dtype=x.dtype)))


def _gelu_ball(x: Any) -> Any:
    return x * (1 + (x / flint().arb(2).sqrt()).erf()) / 2


def _gelu_tanh(x: Floats) -> Floats:
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * x * (1 + x.dtype.type(0.044715) * (x * x))
    return x * (0.5 * (1 + np.tanh(inner)))


def _gelu_tanh_ball(x: Any) -> Any:
    arb = flint().arb
    # 0.044715 and the root of 2 / pi are decimals and reals, which the floats are within u of.
    inner = (2 / arb.pi()).sqrt() * x * (1 + arb("0.044715") * x * x)
    return x * (1 + inner.tanh()) / 2


def _hardtanh_features(count: int, options: Options, constants: Constants) -> int:
    for name in ("low", "high"):
        _number(constants[name], name)
    require(bool(constants["low"] <= constants["high"]), "low above high")
    return same_features(count, options, constants)


def _hardtanh(x: NDArray[Any], low: Any, high: Any) -> NDArray[Any]:
    return np.minimum(np.maximum(x, low), high)


def _hardtanh_exact(z: Integers, q: int, low: Floats, high: Floats) -> FixedPoint:
    (least, most), places = to_integers(np.array([low, high]))
    grid = max(q, places)
    up = grid - places
    return _hardtanh(shift(z, grid - q), int(least) << up, int(most) << up), grid, 0.0


def _softsign(x: Floats) -> Floats:
    return x / (1 + abs(x))


def _softsign_exact(z: Integers, q: int) -> FixedPoint:
    return shift(z, GRID_BITS) // ((1 << q) + abs(z)), GRID_BITS, math.ldexp(1.0, -GRID_BITS)


def _hardswish(x: Floats) -> Floats:
    return x * np.minimum(np.maximum(x + 3, 0), 6) / 6


def _hardswish_exact(z: Integers, q: int) -> FixedPoint:
    grid = max(GRID_BITS, q)
    product = z * _hardtanh(z + (3 << q), 0, 6 << q)
    # Rounded down twice, by one place each at most.
    return shift(product, grid - 2 * q) // 6, grid, math.ldexp(2.0, -grid)


def _softshrink_features(count: int, options: Options, constants: Constants) -> int:
    _number(constants["width"], "width")
    require(bool(constants["width"] >= 0), "a width below 0")
    return same_features(count, options, constants)


def _softshrink(x: NDArray[Any], width: Any) -> NDArray[Any]:
    return x - _hardtanh(x, -width, width)


def _softshrink_exact(z: Integers, q: int, width: Floats) -> FixedPoint:
    (whole,), places = to_integers(width.reshape(1))
    grid = max(q, places)
    return _softshrink(shift(z, grid - q), int(whole) << (grid - places)), grid, 0.0


def _sides(options: Options) -> tuple[tuple[int, int, int], ...]:
    # Size of a window, how far it moves and how far the map is padded, along height and width.
    names = (("height", "down", "top"), ("width", "right", "left"))
    return tuple((options[k], options[s], options[p]) for k, s, p in names)


def _pooled_shape(shape: tuple[int, ...], options: Options) -> tuple[int, ...]:
    require(len(shape) == 3, f"windows in inputs {shape}")
    sides = []
    for size, (window, step, around) in zip(shape[1:], _sides(options), strict=True):
        require(window >= 1 and step >= 1, f"windows of {window} that move by {step}")
        fits = 2 * around <= window <= size + 2 * around and around <= size
        require(fits, f"windows of {window} in a side of {size} padded by {around}")
        sides.append((size + 2 * around - window) // step + 1)
    reads = shape[0] * math.prod(sides) * options["height"] * options["width"]
    require(reads <= MAX_POOL_READS, "its windows read too many entries")
    return shape[0], sides[0], sides[1]


def _max_pool(x: NDArray[Any], **options: int) -> NDArray[Any]:
    # Padded by the least entry of all, which is no maximum: every window has an entry of the map.
    least = x.min()
    for axis, (window, step, around) in zip((2, 3), _sides(options), strict=True):
        margins = [(0, 0)] * x.ndim
        margins[axis] = (around, around)
        padded = np.pad(x, margins, constant_values=least).swapaxes(0, axis)
        count = (len(padded) - window) // step + 1
        stops = [k + step * (count - 1) + 1 for k in range(window)]
        found = padded[0 : stops[0] : step]
        for k in range(1, window):
            found = np.maximum(found, padded[k : stops[k] : step])
        x = found.swapaxes(0, axis)
    return x


def _max_pool_constant(**options: int) -> Fraction:
    return root_up(Fraction(math.prod(-(-window // step) for window, step, _ in _sides(options))))


# Every function of this file by its name.
TORCH: Mapping[str, Kind] = {
    "leaky_relu": Kind(
        _leaky_features,
        _leaky_relu,
        _leaky_exact,
        lambda slope: counted(_leaky_constant(slope)),
        ("slope",),
        lipschitz=_leaky_constant,
    ),
    "elu": Kind(
        _elu_features,
        _elu,
        _balls_of(_elu_ball),
        _elu_rounding,
        ("alpha", "width"),
        lipschitz=_elu_constant,
    ),
    "silu": Kind(
        same_features,
        lambda x: x * _sigmoid(x),
        _balls_of(lambda x: x * _sigmoid_ball(x)),
        lambda: counted(11.0),
        lipschitz=lambda: SILU_SLOPE,
    ),
    "gelu": Kind(
        same_features,
        _gelu,
        _balls_of(_gelu_ball),
        lambda: counted(7.0),
        lipschitz=lambda: GELU_SLOPE,
    ),
    "gelu_tanh": Kind(
        same_features,
        _gelu_tanh,
        _balls_of(_gelu_tanh_ball),
        lambda: counted(8.0),
        squares=True,
        lipschitz=lambda: GELU_TANH_SLOPE,
    ),
    "hardtanh": Kind(
        _hardtanh_features, _hardtanh, _hardtanh_exact, lambda **_: (0.0, 0.0), ("low", "high")
    ),
    "sigmoid": Kind(
        same_features,
        _sigmoid,
        _balls_of(_sigmoid_ball),
        lambda: counted(0.0, 10.0),
        lipschitz=lambda: 0.25,
    ),
    "log_sigmoid": Kind(
        same_features, _log_sigmoid, _balls_of(_log_sigmoid_ball), lambda: counted(1.0, 10.3)
    ),
    # The same function with its temperature, for torch's softplus.
    "smooth_relu": SMOOTH["softplus"],
    "softsign": Kind(same_features, _softsign, _softsign_exact, lambda: counted(2.0)),
    "hardswish": Kind(
        same_features,
        _hardswish,
        _hardswish_exact,
        lambda: counted(3.0),
        squares=True,
        lipschitz=lambda: 1.5,
    ),
    "softshrink": Kind(
        _softshrink_features, _softshrink, _softshrink_exact, lambda width: counted(1.0), ("width",)
    ),
    "tanhshrink": Kind(
        same_features,
        lambda x: x - np.tanh(x),
        _balls_of(lambda x: x - x.tanh()),
        lambda: counted(9.0),
    ),
    "max_pool": Kind(
        same_features,
        **selecting(_max_pool),
        integers=("height", "width", "down", "right", "top", "left"),
        shape=_pooled_shape,
        lipschitz=_max_pool_constant,
    ),
}
