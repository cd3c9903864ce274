"""Fixed-point numbers: Python integers in object arrays; and balls, which enclose real numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.object_]

# Number of binary places that irrational values are rounded to, unless the input has more.
GRID_BITS = 256


class InexactError(ValueError):
    """A value is too large, too small or too close to a singularity to be enclosed."""


def flint() -> Any:
    """The module python-flint, imported only where balls are needed."""
    try:
        import flint as module
    except ImportError:
        raise ImportError(
            "checking this network needs python-flint: pip install 'robustcert[check]'"
        ) from None
    return module


def to_integers(values: Floats) -> tuple[Integers, int]:
    """``(z, q)`` with ``values == z * 2**-q`` exactly and ``q >= 0`` as small as possible."""
    whole, places = _reduced(values)
    q = max(0, int(places.max(initial=0)))
    return np.asarray(whole.astype(object) << (q - places).astype(object), dtype=object), q


def binary_places(values: Floats) -> int:
    """The least ``q >= 0`` such that all ``values * 2**q`` are integers."""
    return max(0, int(_reduced(values)[1].max(initial=0)))


def _reduced(values: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Odd integers (or 0) and places with values == integers * 2**-places.
    mantissa, exponent = np.frexp(np.atleast_1d(values))
    whole = (mantissa * 2.0**53).astype(np.int64)
    zeros = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    zeros, places = np.where(whole == 0, 0, (zeros, 53 - exponent - zeros)).astype(np.int64)
    return (whole >> zeros).reshape(np.shape(values)), places.reshape(np.shape(values))


def shift(z: Integers, places: int) -> Integers:
    """``z * 2**places``, rounded down where places are dropped."""
    if places == 0:
        return z
    return np.asarray(z << places if places > 0 else z >> -places, dtype=object)


def enclose(
    function: Callable[..., tuple[Any, ...]],
    outputs: int,
    grid: int,
    size: int,
    *arguments: Integers,
) -> tuple[Integers, ...]:
    """Values of a function of balls, entry by entry, within ``2**(1 - grid)``.

    Args:
        function: Takes one ball or integer for each argument and returns a tuple of balls.
        outputs: Number of balls in that tuple.
        grid: Results are integers times ``2**-grid``.
        size: The binary exponent of the largest argument, see :func:`exponent`.
        arguments: Arrays of Python objects, which broadcast.
    """
    module = flint()

    def entry(*values: Any) -> Any:
        results = tuple(_on_grid(ball, grid, module) for ball in function(*values))
        return results if outputs > 1 else results[0]

    if size > 4096:
        raise InexactError("a value is too large")
    with module.ctx.workprec(grid + 128 + 2 * max(size, 0)):
        found = np.frompyfunc(entry, len(arguments), outputs)(*arguments)
    return tuple(found) if outputs > 1 else (found,)


def exponent(z: Integers, q: int) -> int:
    """A binary exponent such that every ``z * 2**-q`` is below that power of two."""
    largest = max(int(z.max(initial=0)), -int(z.min(initial=0)))
    return largest.bit_length() - q


def balls(z: Integers, q: int) -> Integers:
    """Balls of radius 0 around ``z * 2**-q``."""
    arb = flint().arb
    return np.asarray(np.frompyfunc(lambda v: arb((int(v), -q)), 1, 1)(z), dtype=object)


def _on_grid(ball: Any, grid: int, module: Any) -> int:
    if not ball.is_finite() or not ball.rad() < module.arb((1, -grid)):
        raise InexactError("a value cannot be enclosed tightly")
    mantissa, exponent = ball.mid().man_exp()
    places = int(exponent) + grid
    return int(mantissa) << places if places >= 0 else int(mantissa) >> -places
