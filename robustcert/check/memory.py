"""Bounds on the memory of a check, known from the shapes of a network before it starts.

The upper one has three parts: ``FACTOR`` times the bytes of the folder, for the files and the
tables made of them; ``FIXED`` bytes for the interpreter and its libraries, with one thread of
linear algebra; and the workspace of the largest single step, whose arrays are freed before the next
step begins. Where processes share a step, each of them has a workspace, and an interpreter.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustcert.check import semidefinite
from robustcert.check.cost import exact_seconds
from robustcert.check.exact_products import digit_bits
from robustcert.check.fixed_point import binary_places
from robustcert.check.forward.batches import EXACT_BYTES, FLOAT_BYTES, exact_bytes, float_bytes
from robustcert.check.forward.linear import MAX_WINDOW_VALUES, reads
from robustcert.check.forward.torus import MAX_MATRIX_BYTES, ON_TORUS, matrix_bytes
from robustcert.check.network.operation import Operation, walk
from robustcert.check.norms.metric import composed
from robustcert.check.norms.operation import is_shared, workspace
from robustcert.check.quadratic.dual import MAX_PAIR_VALUES
from robustcert.check.quadratic.moves import MAX_DIRECTIONS
from robustcert.check.share import are_shared

# Memory for each byte of the files that are read.
FACTOR = 4
# Bytes for the interpreter and its libraries.
FIXED = 500 * 10**6
# Bytes for the interpreter of a process that shares a step, with one thread.
SHARED = 250 * 10**6
# Unit of the figures that are printed, in bytes.
MEGABYTE = 10**6
# Kinds whose weights are a factor of a product as they are.
_PRODUCTS = ("dense", "convolution")
# Bytes for each pair of classes: the claimed constant, its exact lower bound, their comparison.
PAIR_BYTES = 512


@dataclass(frozen=True)
class Need:
    """Bytes of address space that a check takes at most.

    Attributes:
        folder: Size of the files that are read.
        workspace: Bytes of the arrays of the largest step.
        step: Name of that step.
    """

    folder: int
    workspace: int
    step: str

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return FACTOR * self.folder + FIXED + self.workspace

    def __str__(self) -> str:
        total, folder, fixed, workspace = (
            -(-part // MEGABYTE) for part in (self.total, self.folder, FIXED, self.workspace)
        )
        return (
            f"at most {total} MB: {FACTOR} times the folder's {folder} MB, {fixed} MB, and "
            f"{workspace} MB for {self.step}"
        )


def need(
    folder: int,
    operations: Sequence[Operation],
    proof: str,
    metric: Operation | None = None,
    processes: int = 1,
) -> Need:
    """The memory that a check needs.

    Args:
        folder: Size of the files that are read.
        operations: Operations of the network.
        proof: Name of the proof in the claim.
        metric: The metric S, if there is one.
        processes: Maximum number of processes that prove one norm, or evaluate rows in integers.
    """
    workspace, step = max(_steps(operations, proof, metric, processes))
    return Need(folder, workspace, step)


def bytes_at_least(operations: Sequence[Operation]) -> int:
    """Bytes that a check takes in any case, once its files are read.

    They are those of the weights of the largest product, in float64.
    """
    weights = (op.tensors["weight"] for op in walk(operations) if op.kind in _PRODUCTS)
    # What is float64 in the file is not copied.
    return max((8 * w.size for w in weights if w.itemsize < 8), default=0)


def _steps(
    operations: Sequence[Operation], proof: str, metric: Operation | None, processes: int
) -> Iterator[tuple[int, str]]:
    # The workspace of every step, with its name.
    every = [*walk(operations)]
    if metric is not None:
        for part in composed(metric, operations):
            yield _of_norm(part, processes), "the norms in the metric"
        operations = (metric, *operations) if proof == "lipsdp" else operations
    smooth = proof == "second-order"
    weights = 48 * max(sum(a.size for a in op.tensors.values()) for op in every)
    read = max(
        (reads(op) // op.output_shape[1] for op in every if op.kind == "convolution"), default=0
    )
    windows = 4 * 8 * max(MAX_WINDOW_VALUES, read)
    pairs = 24 * 8 * MAX_PAIR_VALUES if proof == "quadric" else 0
    # Matrices at frequencies that are kept, and what is computed on the way to those of one.
    matrices = [matrix_bytes(op) for op in every if op.kind in ON_TORUS]
    weights += min(sum(matrices), MAX_MATRIX_BYTES) + 8 * max(matrices, default=0)
    plain = max(FLOAT_BYTES, float_bytes(operations, every=smooth))
    if proof == "quadric" and metric is not None:
        # Slopes in u, beside those among features.
        plain *= 1 + MAX_DIRECTIONS
    yield plain + windows + weights + pairs, "the evaluation in float64"
    exact = max(EXACT_BYTES, exact_bytes(operations, every=smooth))
    exact += windows + weights
    if processes > 1 and not matrices and are_shared(exact_seconds(operations)):
        # Each has the constants, and what they were sent as.
        constants = sum(sum(a.nbytes for a in op.tensors.values()) for op in every)
        exact = processes * (exact + SHARED + 2 * constants) + constants
    yield exact, "the evaluation in integers"
    for operation in every:
        yield _of_norm(operation, processes), f"the bound of {operation.label}"
    yield _of_pairs(operations[-1]), "the constants of pairs of classes"
    if proof == "lipsdp":
        yield _of_form(operations), "the semidefinite bounds"


def _of_norm(operation: Operation, processes: int) -> int:
    # All processes together; this one waits for the others.
    alone = workspace(operation)
    return processes * (alone + SHARED) if processes > 1 and is_shared(operation) else alone


def _of_pairs(last: Operation) -> int:
    pairs = PAIR_BYTES * last.output_shape[0] ** 2
    if last.kind != "dense":
        return pairs
    weight = last.wide("weight")
    digits = (binary_places(weight) + math.frexp(float(abs(weight).max()))[1]) // digit_bits(
        weight.shape[1]
    )
    return pairs + 8 * weight.size * (10 + max(0, digits))


def _of_form(operations: Sequence[Operation]) -> int:
    try:
        count = sum(size for _, size in semidefinite.layers(operations))
    except semidefinite.NotCoveredError:
        return 0
    widest = max(math.prod(op.output_shape) for op in operations)
    total = math.prod(operations[0].input_shape) + count
    return 8 * total * (32 * total + 8 * widest)
