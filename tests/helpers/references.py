"""Activations in interval arithmetic."""

from collections.abc import Callable
from typing import Any

from flint import arb
from torch import Tensor

from helpers.configs import build, names

FEATURES = 8


def each_pair(function: Callable[..., list[Any]], z: list[Any], *constants: list[Any]) -> list[Any]:
    # One constant serves all pairs.
    columns = [c * (len(z) // 2) if len(c) == 1 else c for c in constants]
    return [
        y
        for k in range(len(z) // 2)
        for y in function(z[2 * k], z[2 * k + 1], *(c[k] for c in columns))
    ]


def each(function: Callable[..., Any], z: list[Any], *constants: list[Any]) -> list[Any]:
    columns = [c * len(z) if len(c) == 1 else c for c in constants]
    return [function(*arguments) for arguments in zip(z, *columns, strict=True)]


def soft_pair(a: Any, b: Any, t: Any) -> list[Any]:
    high = t * ((a / t).exp() + (b / t).exp()).log()
    return [a + b - high, high]


def soft(x: Any, t: Any) -> Any:
    return t * (1 + (x / t).exp()).log()


def mirrored(a: Any, b: Any, u: Any, v: Any) -> list[Any]:
    s = u * a + v * b
    if s >= 0:
        return [a, b]
    return [a - 2 * s * u / (u * u + v * v), b - 2 * s * v / (u * u + v * v)]


def softly_mirrored(a: Any, b: Any, u: Any, v: Any, t: Any) -> list[Any]:
    length = (u * u + v * v).sqrt()
    s = (u * a + v * b) / length
    change = (s * s + t * t).sqrt() - t - s
    return [a + change * u / length, b + change * v / length]


def angle(a: Any, b: Any) -> Any:
    return arb.atan2(b, a)


def folded(a: Any, b: Any, *rays: Any) -> list[Any]:
    # In polar coordinates: the angle runs forward in odd sectors and backward in even ones.
    t1, t2, t3 = (angle(rays[k], rays[k + 1]) for k in (0, 2, 4))
    turn = 2 * arb.pi()
    radius, phi = (a * a + b * b).sqrt(), angle(a, b) - t1 if a != 0 or b != 0 else arb(0)
    first, second = t2 - t1, t3 - t2
    phi, first, second = (w + turn if w < 0 else w for w in (phi, first, second))
    if phi <= first:
        out = phi
    elif phi <= first + second:
        out = 2 * first - phi
    elif phi <= arb.pi() + second:
        out = phi - 2 * second
    else:
        out = turn - phi
    return [radius * (t1 + out).cos(), radius * (t1 + out).sin()]


def spline(x: Any, slopes: list[Any], step: Any) -> Any:
    # The integral of the slope from 0 to x.
    half = len(slopes) // 2
    side = slopes[half:] if x >= 0 else slopes[:half][::-1]
    left, total = abs(x), arb(0)
    for slope in side[:-1]:
        length = min(left, step)
        total, left = total + slope * length, left - length
    total += side[-1] * left
    return total if x >= 0 else -total


Constants = dict[str, Any]


def balls(values: Tensor) -> list[Any]:
    return [arb(v) for v in values.double().flatten().tolist()]


REFERENCES: dict[str, Callable[[list[Any], Constants], list[Any]]] = {
    "relu": lambda z, _: [max(x, arb(0)) for x in z],
    "identity": lambda z, _: z,
    "absolute": lambda z, _: [abs(x) for x in z],
    "beta_abs": lambda z, c: [abs(x) for x in z[: c["count"]]] + z[c["count"] :],
    "group_sort": lambda z, c: [
        x for k in range(0, len(z), c["group_size"]) for x in sorted(z[k : k + c["group_size"]])
    ],
    # Nothing is grafted at first; tests/training/test_grafting.py has units that are.
    "grafted": lambda z, c: [x for k in range(0, len(z), 2) for x in sorted(z[k : k + 2])],
    "householder": lambda z, c: each_pair(mirrored, z, *map(balls, c["normal"])),
    "householder2": lambda z, c: each_pair(folded, z, *map(balls, c["rays"].flatten(0, 1))),
    "n_activation": lambda z, c: each(
        lambda x, low, high: x - 2 * min(max(x, low), high), z, *map(balls, c["corners"])
    ),
    "linear_spline": lambda z, c: [
        spline(x, balls(row), arb(float(c["step"])))
        for x, row in zip(z, c["slopes"].expand(FEATURES, -1), strict=True)
    ],
    "smooth_maxmin": lambda z, c: each_pair(soft_pair, z, balls(c["temperature"])),
    "smooth_abs": lambda z, c: each(
        lambda x, t: (x * x + t * t).sqrt() - t, z, balls(c["temperature"])
    ),
    "smooth_householder": lambda z, c: each_pair(
        softly_mirrored, z, *map(balls, c["normal"]), balls(c["temperature"])
    ),
    "smooth_n": lambda z, c: each(
        lambda x, low, high, t: 2 * soft(x - high, t) - 2 * soft(low - x, t) - x,
        z,
        *map(balls, c["corners"]),
        balls(c["temperature"]),
    ),
    "softplus": lambda z, c: each(soft, z, balls(c["temperature"])),
    "tanh": lambda z, _: [x.tanh() for x in z],
    "norm_pair": lambda z, c: each(
        lambda k, t: (sum(x * x for x in z[k : k + c["group_size"]]) + t * t).sqrt() - t,
        list(range(0, len(z), c["group_size"])),
        balls(c["temperature"]),
    ),
    "sin_cos": lambda z, c: [
        y
        for point in each(
            lambda x, w: ((w * x).cos() / w, (w * x).sin() / w), z, balls(c["frequency"])
        )
        for y in point
    ],
}


def referenced() -> list[str]:
    """Activations of conf/ whose function has its definition here."""
    return [
        name
        for name in names("activation")
        if build("activation", name)(FEATURES).fold().function.__name__ in REFERENCES
    ]
