"""The description of an activation, and conditions on constants under which it is bounded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcert.check.fixed_point import Floats, Integers, balls, to_integers

Constants = dict[str, Floats]
Options = dict[str, int]
FixedPoint = tuple[Integers, int, float]

# Range of temperatures, frequencies and steps.
MIN_CONSTANT, MAX_CONSTANT = 2.0**-24, 2.0**24


@dataclass(frozen=True)
class Kind:
    """One activation: its formula, its exact values and its rounding.

    Attributes:
        features: Number of output features for C input features; ``ValueError`` for constants with
            which ``lipschitz`` would not be known to bound the function.
        apply: The formula in float64, on ``(N, C, *)``.
        exact: ``(z, q)`` to ``(z', q', error)``: values on ``z * 2**-q``, every entry of the result
            within ``error``.
        rounding: ``(a, b)``, which bound the rounding of the formula as ``table.py`` says.
        tensors: Names of the constants.
        integers: Names of the integer options.
        shape: Output shape for an input shape, where more than the number of features changes;
            raises ``ValueError`` like ``features``.
        squares: Whether the square of an input is computed, which overflows earlier.
        lipschitz: Upper bound on the Lipschitz constant, for constants that ``features`` accepts.
    """

    features: Callable[[int, Options, Constants], int]
    apply: Callable[..., Floats]
    exact: Callable[..., FixedPoint]
    rounding: Callable[..., tuple[float, float]] = lambda: (0.0, 0.0)
    tensors: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    shape: Callable[[tuple[int, ...], Options], tuple[int, ...]] | None = None
    squares: bool = False
    lipschitz: Callable[..., float | Fraction] = lambda **_: 1


# Least and largest slope of activations that act on each entry.
SLOPES = {
    "relu": (0.0, 1.0),
    "softplus": (0.0, 1.0),
    "tanh": (0.0, 1.0),
    "absolute": (-1.0, 1.0),
    "smooth_abs": (-1.0, 1.0),
    "n_activation": (-1.0, 1.0),
    "smooth_n": (-1.0, 1.0),
    "identity": (1.0, 1.0),
    "hardtanh": (0.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "log_sigmoid": (0.0, 1.0),
    "smooth_relu": (0.0, 1.0),
    "softsign": (0.0, 1.0),
    "softshrink": (0.0, 1.0),
    "tanhshrink": (0.0, 1.0),
}


def slopes_of(function: str, constants: Constants) -> tuple[float, float] | None:
    """Least and largest slope, within [-1, 1], of an activation on each entry; None for others."""
    if function == "linear_spline":
        slopes = constants["slopes"]
        return float(slopes.min()), float(slopes.max())
    if function == "leaky_relu":
        slope = constants["slope"]
        low, high = min(1.0, float(slope.min())), max(1.0, float(slope.max()))
        return (low, high) if low >= -1 and high <= 1 else None
    return SLOPES.get(function)


def counted(relative: float, absolute: float = 0.0) -> tuple[float, float]:
    """Bounds of all orders from counts of first order, as ``table.py`` derives them."""
    return 17 / 16 * relative, 17 / 16 * absolute


def require(condition: bool, message: str) -> None:
    """Refuse constants with a message unless a condition holds."""
    if not condition:
        raise ValueError(message)


def same_features(count: int, options: Options, constants: Constants) -> int:
    """As many features as the input has, without conditions."""
    del options, constants
    return count


def require_positive(value: Floats, count: int, name: str) -> None:
    """Refuse constants that are not one or ``count`` numbers from 2^-24 to 2^24."""
    require(value.shape in ((), (count,)), f"{name} of shape {value.shape} for {count} values")
    inside = (value >= MIN_CONSTANT) & (value <= MAX_CONSTANT)
    require(bool(inside.all()), f"{name} is not between 2^-24 and 2^24")


def pair_count(count: int) -> int:
    """Number of pairs of neighbouring features."""
    require(count % 2 == 0, f"{count} features are not made of pairs")
    return count // 2


def group_count(count: int, options: Options) -> int:
    """Number of groups of neighbouring features."""
    size = options["group_size"]
    require(size >= 1 and count % size == 0, f"{count} features are not made of groups of {size}")
    return count // size


def not_above_count(count: int, options: Options, constants: Constants) -> int:
    """The features, if the number of rectified ones is not larger."""
    del constants
    require(options["count"] <= count, f"count {options['count']} exceeds {count} features")
    return count


def unit_normals(count: int, options: Options, constants: Constants) -> int:
    """The features, for one normal of length 1 a pair."""
    del options
    normal = constants["normal"]
    require(normal.shape == (2, pair_count(count)), f"normal of shape {normal.shape}")
    length = (normal**2).sum(0)
    require(bool((abs(length - 1) < 0.01).all()), "a normal is not of length 1, even roughly")
    return count


def rays_in_order(count: int, options: Options, constants: Constants) -> int:
    """The features, for three rays of length 1 a pair, in order."""
    del options
    rays = constants["rays"]
    require(rays.shape == (3, 2, pair_count(count)), f"rays of shape {rays.shape}")
    require(bool((abs((rays**2).sum(1) - 1) < 0.01).all()), "a ray is not of length 1")
    # In float64, which is accurate enough: sectors are between 2^-10 and pi - 2^-10 wide.
    for first, second in ((rays[0], rays[1]), (rays[1], rays[2])):
        cross = first[0] * second[1] - first[1] * second[0]
        require(bool((cross > 2.0**-10).all()), "rays are not in order, or too close")
    return count


def spline_slopes(count: int, options: Options, constants: Constants) -> int:
    """The features, for slopes in [-1, 1] and a positive step."""
    del options
    slopes, step = constants["slopes"], constants["step"]
    fits = slopes.ndim == 2 and slopes.shape[0] in (1, count)
    require(fits, f"slopes of shape {slopes.shape} for {count} features")
    pieces = slopes.shape[1]
    require(2 <= pieces <= 2**16 and pieces % 2 == 0, f"{pieces} pieces")
    require(bool((abs(slopes) <= 1).all()), "a slope outside [-1, 1]")
    require(step.shape == (), f"step of shape {step.shape}")
    require_positive(step, 1, "step")
    return count


def corners_in_order(count: int, options: Options, constants: Constants) -> int:
    """The features, for two corners each, in order."""
    del options
    corners = constants["corners"]
    require(corners.shape == (2, count), f"corners of shape {corners.shape}")
    require(bool((corners[0] <= corners[1]).all()), "corners are not in order")
    if "temperature" in constants:
        require_positive(constants["temperature"], count, "temperature")
    return count


def each_entry(count: int, options: Options, constants: Constants) -> int:
    """The features, for a positive temperature of each."""
    del options
    require_positive(constants["temperature"], count, "temperature")
    return count


def each_pair(count: int, options: Options, constants: Constants) -> int:
    """The features, for a positive temperature of each pair."""
    require_positive(constants["temperature"], pair_count(count), "temperature")
    return unit_normals(count, options, constants) if "normal" in constants else count


def each_group(count: int, options: Options, constants: Constants) -> int:
    """Number of groups, for a positive temperature of each."""
    require_positive(constants["temperature"], group_count(count, options), "temperature")
    require(options["group_size"] < 2**15, "groups of too many features for its rounding")
    return group_count(count, options)


def circle_features(count: int, options: Options, constants: Constants) -> int:
    """Twice the features, for a positive frequency of each."""
    del options
    require_positive(constants["frequency"], count, "frequency")
    return 2 * count


def along(value: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """A constant of every feature, so that it broadcasts."""
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (x.ndim - 2))


def grouped(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Features in groups of neighbours, with a dimension of their own for the group."""
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def halves(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """First and second features of every pair."""
    both = grouped(x, 2)
    return both[:, :, 0], both[:, :, 1]


def interleave(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Features from the first and second ones of every pair."""
    both = np.stack((first, second), axis=2)
    return both.reshape(first.shape[0], -1, *first.shape[2:])


def complex_product(z: tuple[Any, Any], w: tuple[Any, Any]) -> tuple[Any, Any]:
    """Product of two complex numbers, each given by its parts."""
    return z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]


def integer_root(square: Integers) -> Integers:
    """Square roots of integers, rounded down."""
    return np.asarray(np.frompyfunc(lambda n: math.isqrt(int(n)), 1, 1)(square), dtype=object)


def ball_constants(value: Floats, z: Integers) -> Integers:
    """Constants of every feature as balls, so that they broadcast."""
    whole, places = to_integers(value)
    return along(balls(whole, places), z)


def selecting(function: Callable[..., Any]) -> dict[str, Any]:
    """Formula, exact values and rounding of a function that only selects and negates."""

    # Selecting, negating and reordering have no rounding: floats and integers share the code.
    def exact(z: Integers, q: int, **options: int) -> FixedPoint:
        return function(z, **options), q, 0.0

    return {"apply": function, "exact": exact, "rounding": lambda **_: (0.0, 0.0)}


# Names of the constants of an activation that has a temperature only.
TAU = ("temperature",)
