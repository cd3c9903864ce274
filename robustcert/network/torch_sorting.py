"""Sorting, minima and maxima of torch as operations.

A minimum is the first entry of what was sorted, a maximum the last one: what is computed of both
sorts once, and its constant is that of sorting.
"""
# Every rule has the arguments of torch's function, which documents them.
# ruff: noqa: ARG001, D103

import math
from typing import Any

from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.operation import Operation
from robustcert.network.sorting import sort_activation
from robustcert.network.torch_indices import read, reshaped
from robustcert.network.torch_linear import Joined, joined

SMALLEST, LARGEST = 0, -1


def sort(
    known: list[Tensor],
    x: Tensor,
    dim: int = -1,
    descending: bool = False,
    stable: bool | None = None,
) -> Joined:
    axis = _axis(dim, x)
    (order,) = read(lambda v: v.flip(axis) if descending else v, (x,), {}, x)
    return Joined([[*_sorted(tuple(x.shape[1:]), axis - 1), *order]])


def extreme(
    place: int, known: list[Tensor], x: Any, other: Any = None, dim: Any = None, keepdim: Any = None
) -> Joined:
    """The minimum or maximum of two values, entry by entry, or of one along a dimension."""
    if isinstance(other, Tensor):
        return _of_two(place, known, x, other)
    if other is not None:
        # The second argument is the dimension, the third says whether it is kept.
        dim, keepdim = other, dim if keepdim is None else keepdim
    return along(place, known, x, dim, bool(keepdim))


def along(
    place: int, known: list[Tensor], x: Tensor, dim: Any = None, keepdim: Any = False
) -> Joined:
    if not isinstance(dim, int):
        raise UnsoundNetworkError("is covered along one dimension")
    axis = _axis(dim, x)
    made = _sorted(tuple(x.shape[1:]), axis - 1)
    (chosen,) = read(_entry, (x, axis, place, keepdim), {}, x)
    return Joined([made + chosen])


def _of_two(place: int, known: list[Tensor], x: Tensor, other: Tensor) -> Joined:
    shape = known[0].shape
    pair = [t if any(t is k for k in known) else t.expand(shape) for t in (x, other)]
    if any(t.shape != shape for t in pair):
        raise UnsoundNetworkError(
            f"compares values of shapes {tuple(x.shape)} and {tuple(other.shape)}: expand one"
        )
    # Side by side in a dimension of their own, which is the last one.
    side = joined(known, pair, len(shape), stack=True)
    both = known[0].new_zeros(*shape, 2)
    (chosen,) = read(_entry, (both, len(shape), place, False), {}, both)
    return side._replace(after=(*_sorted((*shape[1:], 2), len(shape) - 1), *chosen))


def _axis(dim: int, x: Tensor) -> int:
    axis = dim % x.dim()
    if axis == 0:
        raise UnsoundNetworkError("mixes the inputs of a batch")
    return axis


def _entry(x: Tensor, axis: int, place: int, keepdim: bool) -> Tensor:
    return x[(slice(None),) * axis + (([place] if keepdim else place),)]


def _sorted(shape: tuple[int, ...], axis: int) -> list[Operation]:
    """Entries along one dimension of a sample in increasing order."""
    # Groups of neighbouring features, whatever comes behind them.
    features = (math.prod(shape[: axis + 1]), *shape[axis + 1 :])
    return [*reshaped(shape, features), sort_activation(shape[axis]), *reshaped(features, shape)]
