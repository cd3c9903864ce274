"""Functions of torch that only read entries: maps of indices.

Slices, permutations, flips, shifts, repetition, pixel shuffling, nearest upsampling and padding are
called with the places of the entries in place of the entries.
"""

import math
from typing import Any

import torch
from torch import Tensor

from robustcert.errors import UnsoundNetworkError
from robustcert.network.linear import Flatten, Gather, Reshape
from robustcert.network.operation import Operation


def read(func: Any, args: Any, kwargs: dict[str, Any], x: Tensor) -> list[list[Operation]]:
    """A function that only reads entries of ``x``, one list for each tensor that it returns.

    It is called with the places of the entries instead of the entries, of which 0 is none.
    """
    places = torch.arange(1, x.numel() + 1, dtype=torch.float64, device="cpu").view(x.shape)
    named = {key: places if value is x else value for key, value in kwargs.items()}
    made = func(*(places if value is x else value for value in args), **named)
    return [gathered(x, part) for part in (made if isinstance(made, (tuple, list)) else [made])]


def gathered(x: Tensor, places: Tensor) -> list[Operation]:
    """Entries of every input by places in the whole batch, counted from 1."""
    size = math.prod(x.shape[1:])
    if places.dim() < 1 or len(places) != len(x):
        raise UnsoundNetworkError("mixes the inputs of a batch")
    first = (
        torch.arange(len(x), dtype=torch.int64, device="cpu").view(-1, *(1,) * (places.dim() - 1))
        * size
    )
    index = torch.where(places == 0, -1, places.long() - 1 - first)
    if (index < -1).any() or (index >= size).any() or (index != index[:1]).any():
        raise UnsoundNetworkError("mixes the inputs of a batch")
    index = index[0]
    if torch.equal(index.flatten(), torch.arange(size, dtype=torch.int64, device="cpu")):
        return reshaped(tuple(x.shape[1:]), tuple(index.shape))
    return [Gather(index.contiguous())]


def reshaped(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[Operation]:
    """The same entries of every input in another shape."""
    if shape == wanted:
        return []
    return [Flatten()] if len(wanted) == 1 else [Reshape(wanted)]
