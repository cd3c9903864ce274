"""Bounds on the constants and rounding errors of operations, computed once for their values."""

import math
from collections.abc import Iterator, Sequence
from typing import cast
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from robustcert import norms
from robustcert.errors import UnsoundNetworkError
from robustcert.network.operation import Operation, Shape, copied, same


def run(operations: Sequence[Operation], x: Tensor) -> Tensor:
    """Apply the operations in turn."""
    for operation in operations:
        x = operation(x)
    return x


def shapes(
    operations: Sequence[Operation], input_shape: Shape
) -> Iterator[tuple[Operation, Shape]]:
    """Each operation with the shape of its input."""
    for operation in operations:
        yield operation, input_shape
        input_shape = operation.output_shape(input_shape)


# Note [owned copies] (bounds that are remembered)
# ~~~~~~~~~~~~~~~~~~~
# The tensors of an operation can be changed in place, also where torch does not count it: through
# `.data`, or an array that shares their memory. So bounds are computed from a copy that nobody else
# holds, and are remembered for that copy. Whoever is given an operation compares it with its copy,
# bit by bit, which costs as much as reading both; what has changed gets a new copy. A certifier
# does so once for a batch and then works with the copies, which are their own: the network that it
# evaluates is the one that its bounds speak of, even if another thread changes it meanwhile.


def owned(operation: Operation) -> Operation:
    """A copy that nobody else holds, the same one as long as the operation has the same values.

    Raises:
        UnsoundNetworkError: bounds were stated of other constants, see
            :meth:`Operation.check_claims`.
    """
    if operation in _OWNED:
        return operation
    known = _COPIES.get(operation)
    if known is None or not same(operation, known):
        known = cast(Operation, copied(operation))
        known.check_claims()
        _OWNED.add(known)
        _COPIES[operation] = known
    return known


# Private copies of operations, and the copy of each operation that was copied.
_OWNED: WeakSet[Operation] = WeakSet()
_COPIES: WeakKeyDictionary[Operation, Operation] = WeakKeyDictionary()


def operation_bound(operation: Operation, input_shape: Shape) -> float:
    """The operation's Lipschitz bound, or an error that names it."""
    operation = owned(operation)
    known = _BOUNDS.setdefault(operation, {})
    if input_shape not in known:
        try:
            bound = operation.lipschitz_bound(input_shape)
        except ValueError as error:
            raise UnsoundNetworkError(str(error), operation.label) from error
        if not 0 <= bound < math.inf:
            raise UnsoundNetworkError(
                f"its Lipschitz bound is {bound}, not finite", operation.label
            )
        known[input_shape] = bound
    return known[input_shape]


def is_bounded(operation: Operation, input_shape: Shape) -> bool:
    """Whether the operation's bound is remembered."""
    return input_shape in _BOUNDS.get(owned(operation), {})


def adopt_bound(operation: Operation, input_shape: Shape, bound: float) -> None:
    """Remember a bound that another process has proved of an operation with the same values."""
    _BOUNDS.setdefault(owned(operation), {}).setdefault(input_shape, bound)


def operation_rounding(
    operation: Operation, input_shape: Shape, unit: float
) -> tuple[float, float]:
    """The operation's local error, :meth:`Operation.rounding`, computed once."""
    operation = owned(operation)
    known = _ROUNDINGS.setdefault(operation, {})
    if (input_shape, unit) not in known:
        known[input_shape, unit] = operation.rounding(input_shape, unit)
    return known[input_shape, unit]


# Of operations from `owned`, which nobody changes; a bound may cost a factorisation.
_BOUNDS: WeakKeyDictionary[Operation, dict[Shape, float]] = WeakKeyDictionary()
_ROUNDINGS: WeakKeyDictionary[Operation, dict[tuple[Shape, float], tuple[float, float]]] = (
    WeakKeyDictionary()
)


def sequence_bound(operations: Sequence[Operation], input_shape: Shape) -> float:
    """Product of the operations' bounds, rounded up."""
    return norms.product_up(
        [operation_bound(operation, shape) for operation, shape in shapes(operations, input_shape)]
    )
