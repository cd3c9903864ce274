"""Pooling by the norm of windows, and circular shifts of channels."""

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
    counted,
    integer_root,
    require,
    same_features,
    selecting,
)
from robustcert.check.fixed_point import GRID_BITS, Floats, Integers, shift


def _pooled(shape: tuple[int, ...], options: Options) -> tuple[int, ...]:
    size = options["size"]
    require(len(shape) == 3 and size >= 1, f"windows of {size} in inputs {shape}")
    require(size < 2**9, f"windows of {size} have too many entries for their rounding")
    fits = shape[1] % size == 0 and shape[2] % size == 0
    require(fits, f"windows of {size} do not fill maps {shape[1:]}")
    return shape[0], shape[1] // size, shape[2] // size


def _windows(x: NDArray[Any], size: int) -> NDArray[Any]:
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // size, size, width // size, size)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:3], width // size, size * size)


def _norm_pool(x: Floats, size: int) -> Floats:
    return np.sqrt((_windows(x, size) ** 2).sum(4))


def _norm_pool_exact(z: Integers, q: int, size: int) -> FixedPoint:
    grid = max(GRID_BITS, q)
    windows = _windows(shift(z, grid - q), size)
    return integer_root((windows * windows).sum(4)), grid, math.ldexp(1.0, -grid)


def _on_maps(shape: tuple[int, ...], options: Options) -> tuple[int, ...]:
    del options
    require(len(shape) == 3, f"rolled along height and width, but inputs are {shape}")
    return shape


def _shifted(count: int, options: Options, constants: Constants) -> int:
    require(0 <= 4 * options["moved"] <= count, f"4 groups of {options['moved']} of {count}")
    return same_features(count, options, constants)


def _circular_shift(x: NDArray[Any], moved: int) -> NDArray[Any]:
    # Four groups of channels go down, up, right and left on a torus: a permutation.
    x = x.copy()
    for group, (step, axis) in enumerate(((1, 2), (-1, 2), (1, 3), (-1, 3))):
        channels = slice(group * moved, (group + 1) * moved)
        x[:, channels] = np.roll(x[:, channels], step, axis)
    return x


# Every function of this file by its name.
POOLING: Mapping[str, Kind] = {
    "circular_shift": Kind(
        _shifted, **selecting(_circular_shift), integers=("moved",), shape=_on_maps
    ),
    "norm_pool": Kind(
        same_features,
        _norm_pool,
        _norm_pool_exact,
        lambda size: counted(size**2 / 2 + 3, 2.0**-39 * size),
        integers=("size",),
        shape=_pooled,
        squares=True,
    ),
}
