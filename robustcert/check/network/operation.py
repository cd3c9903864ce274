"""One operation of a network: its kind, options, tensors and shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustcert.check.reader import Array, show

Shape = tuple[int, ...]
# Kinds that apply branches to one input: their outputs are added, or stand side by side.
BRANCHED = ("sum", "concatenate")
# Maximum side of a map, and maximum of every size in options.
MAX_SIDE = 2**15
# Maximum number of values that one operation reads or makes of one sample.
MAX_SIZE = 2**24


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation with its input and output shape; tensors are those of the file."""

    kind: str
    name: str
    path: str
    options: dict[str, Any]
    tensors: dict[str, Array]
    input_shape: Shape
    output_shape: Shape
    branches: tuple[tuple["Operation", ...], ...] = ()
    # The same map as a sequence of simpler ones, for kinds whose norm is proved of the whole.
    parts: tuple["Operation", ...] = ()

    @property
    def label(self) -> str:
        """The name of the operation in messages."""
        return f"operation {self.path} ({show(self.name)}, {self.kind})"

    def wide(self, key: str) -> Array:
        """A tensor as float64, which holds float32 exactly; not to be written to."""
        return self.tensors[key].astype(np.float64, copy=False)


@dataclass(frozen=True)
class Window:
    """The window of a convolution and how it moves, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @staticmethod
    def of(operation: Operation) -> "Window":
        """The window of a convolution that has been read."""
        height, width = operation.tensors["weight"].shape[2:]
        options = operation.options
        strides, paddings, dilations = (
            (options[key][0], options[key][1]) for key in ("stride", "padding", "dilation")
        )
        return Window((height, width), strides, paddings, dilations, options["groups"])


def walk(operations: Sequence[Operation]) -> Iterator[Operation]:
    """All operations, those of parts after the whole and those of branches after the whole."""
    for operation in operations:
        yield operation
        yield from walk(operation.parts)
        for branch in operation.branches:
            yield from walk(branch)
