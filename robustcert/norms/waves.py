"""Waves: starts of estimates along one dimension, from vectors of symbols along both."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from robustcert.norms.proof import Array
from robustcert.norms.symbols import Axis


@dataclass(frozen=True)
class Waves:
    """How an eigenvector of a symbol becomes a vector on the columns of a block: a wave, cut off.

    Attributes:
        sizes: Size of the wave at each column, (columns,), small towards both ends of the map and
            zero where nothing is read.
        turns: Position of each column in steps of the stride, (columns,): how many times the wave
            turns by the angle of the symbol's frequency.
        entries: Entries of the symbol's vector that each column takes, (columns, width).
    """

    sizes: Array
    turns: NDArray[np.int64]
    entries: NDArray[np.int64]

    @staticmethod
    def of_outputs(out: int, columns: int) -> "Waves":
        """Columns that are outputs: transposed, but not conjugated, so the wave turns back."""
        places = np.arange(columns)
        return Waves(_window(places), -places, np.tile(np.arange(out), (columns, 1)))

    @staticmethod
    def of_inputs(inner: int, axes: tuple[Axis, Axis], kept: int) -> "Waves":
        """Columns that are inputs of ``inner`` channels.

        With a stride, a column has the entries of its own residue along ``kept``, of all along the
        other dimension.
        """
        axis, other = axes[kept], axes[1 - kept]
        both = product(*([tap[2] for tap in some.taps] for some in axes))
        order = {pair: place for place, pair in enumerate(dict.fromkeys(both))}
        beside = list(dict.fromkeys(tap[2] for tap in other.taps))
        entries = np.zeros((axis.inputs, len(beside) * inner), dtype=np.int64)
        turns = np.zeros(axis.inputs, dtype=np.int64)
        seen = np.zeros(axis.inputs)
        for _, shift, residue, outs, reads in axis.taps:
            pairs = [(residue, s) if kept == 0 else (s, residue) for s in beside]
            places = inner * np.array([order[pair] for pair in pairs])
            entries[reads] = (places[:, None] + np.arange(inner)).flatten()
            turns[reads], seen[reads] = outs + shift, 1.0
        return Waves(_window(turns) * seen, turns, entries)


def _window(places: NDArray[np.int64]) -> Array:
    """Half a sine from before the first place to behind the last."""
    first, last = int(places.min()) - 1, int(places.max()) + 1
    return np.sin(math.pi * (places - first) / (last - first))
