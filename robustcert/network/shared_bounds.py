"""Bounds of a network's operations by several processes that hold the same network."""

import math
from collections.abc import Callable, Iterator, Sequence

from robustcert.errors import UnsoundNetworkError
from robustcert.network.bounds import adopt_bound, operation_bound, shapes
from robustcert.network.branches import Branched, digest
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape

# What a process has proved, by digests of operations with the shapes of their inputs, and the
# message and the path of what it could not prove.
Proved = tuple[dict[str, float], tuple[str, str] | None]


def share_bounds(
    network: PlainNetwork, rank: int, world_size: int, gather: Callable[[Proved], list[Proved]]
) -> None:
    """Prove every process's share of the bounds before the head, and remember those of all.

    A bound is taken over for an operation of the same definition, constants and input shape only:
    whoever proved it, it is a bound of that operation.

    Args:
        network: The network, the same one in every process.
        rank: This process, from 0.
        world_size: Number of processes.
        gather: From what this process has proved to what all of them have; every process calls it
            once, also one that has failed.

    Raises:
        UnsoundNetworkError: a process could not prove a bound; all of them raise it.
    """
    network = network.owned()
    own_leaves = sorted(leaves(network.backbone, network.input_shape), key=cost)
    # The dearest first, dealt out in turn.
    parts = {digest([part], shape): (part, shape) for part, shape in own_leaves}
    dealt = list(parts)[::-1][rank::world_size]
    own: dict[str, float] = {}
    failure = None
    try:
        for key in dealt:
            own[key] = operation_bound(*parts[key])
    except UnsoundNetworkError as error:
        failure = (error.message, error.path)
    for found, failed in gather((own, failure)):
        if failed is not None:
            raise UnsoundNetworkError(*failed)
        for key in found.keys() & parts.keys():
            adopt_bound(*parts[key], found[key])


def leaves(
    operations: Sequence[Operation], input_shape: Shape
) -> Iterator[tuple[Operation, Shape]]:
    """Operations with a bound of their own, those of branches included."""
    for operation, shape in shapes(operations, input_shape):
        if isinstance(operation, Branched):
            for branch in operation.branches:
                yield from leaves(branch, shape)
        else:
            yield operation, shape


def cost(part: tuple[Operation, Shape]) -> int:
    """What a bound of an operation costs, in no unit: its constants, by where it applies them."""
    operation, shape = part
    return sum(t.numel() for t in operation.tensors().values()) * math.prod(shape[1:])
