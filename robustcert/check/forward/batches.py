"""Memory that an evaluation takes for each sample, and batches that fit into a budget."""

import math
from collections.abc import Iterator, Sequence

from robustcert.check.network.operation import Operation

# Bytes that a batch may take, in float64 and in integers; a single sample may take more.
FLOAT_BYTES, EXACT_BYTES = 2**28, 2**28
# Maximum number of arrays as large as an operation's input or output that exist at the same time,
# without gradients and with them.
MAX_VALUE_ARRAYS, MAX_GRADIENT_ARRAYS = 16, 48
# Bytes of one value as an integer, with what is computed on the way.
INTEGER_BYTES = 3072
# Bytes of one value as an integer that is kept, which has MAX_PLACES places at most.
KEPT_BYTES = 256


def float_bytes(operations: Sequence[Operation], *, every: bool = False) -> int:
    """Bytes that :func:`trace` takes for each sample, in float64.

    With ``every`` state kept, the memory of the gradients that follow is included.
    """
    live = 8 * (MAX_GRADIENT_ARRAYS if every else MAX_VALUE_ARRAYS)
    kept = sum(math.prod(op.output_shape) for op in operations) if every else 0
    return 8 * kept + max(live * _largest(op) for op in operations)


def exact_bytes(operations: Sequence[Operation], *, every: bool = False) -> int:
    """Bytes that :func:`trace_exactly` takes for each sample; see :func:`float_bytes`."""
    kept = sum(math.prod(op.output_shape) for op in operations) if every else 0
    return KEPT_BYTES * kept + max(INTEGER_BYTES * _largest(op) for op in operations)


def _largest(operation: Operation) -> int:
    # Number of values of the largest input or output inside the operation, padding included. A sum
    # keeps its input and its total while its branches are evaluated.
    inside = [*operation.parts, *(op for branch in operation.branches for op in branch)]
    found = max(math.prod(operation.input_shape), math.prod(operation.output_shape))
    if operation.kind == "convolution":
        height, width = (
            n + 2 * p
            for n, p in zip(operation.input_shape[1:], operation.options["padding"], strict=True)
        )
        found = max(found, operation.input_shape[0] * height * width)
    if operation.kind == "quadratics":
        found = max(found, *(operation.tensors[key].size for key in ("slope", "offset")))
    return max([found, *(found // 2 + _largest(op) for op in inside)])


def batches(count: int, each: int, budget: int) -> Iterator[slice]:
    """Slices of ``count`` samples of ``each`` bytes: at least one sample, at most ``budget``."""
    step = max(1, budget // each)
    for start in range(0, count, step):
        yield slice(start, start + step)
