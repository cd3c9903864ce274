"""Bounds of a network's operations, several at once by threads of their own."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from contextvars import copy_context

import torch

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.network.bounds import is_bounded, operation_bound
from robustcert.network.network import PlainNetwork
from robustcert.network.operation import Operation, Shape
from robustcert.network.shared_bounds import cost, leaves
from robustcert.norms.device import named_device

# Maximum number of threads: each of them holds Gram matrices and factors of its own.
MOST_THREADS = 8
# Number of constants, times the positions where they are applied, from which a thread is worth it.
LEAST_COST = 1e6


def bound_together(network: PlainNetwork) -> None:
    """Prove the bounds of large operations, to be remembered, as many at once as torch has threads.

    Products of one operation's matrices wait for each other more than operations do. Every one is
    proved by a single thread: its bound does not depend on their number. Errors are left to whoever
    asks for a bound.

    Args:
        network: The network, :meth:`owned`. With a metric there are other products to bound, and
            nothing is done.
    """
    before = torch.get_num_threads()
    # An accelerator has threads enough of its own.
    elsewhere = named_device().type != "cpu"
    if before == 1 or elsewhere or network.space.metric is not None:
        return
    found = {(part, shape) for part, shape in leaves(network.operations, network.input_shape)}
    parts = [p for p in found if cost(p) >= LEAST_COST and not is_bounded(*p)]
    if len(parts) < 2:
        return
    # The dearest first, so that none is left over at the end.
    rest = iter(sorted(parts, key=cost, reverse=True))
    number = min(before, len(parts), MOST_THREADS)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number) as pool:
            # Each in a context of its own, which knows how close bounds are to be.
            works = [pool.submit(copy_context().run, _bound, rest) for _ in range(number)]
            try:
                # Whichever fails first.
                for work in as_completed(works):
                    work.result()
            finally:
                # Of what is interrupted, nothing is begun any more.
                deque(rest, maxlen=0)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _bound(rest: Iterator[tuple[Operation, Shape]]) -> None:
    # Settings of a thread are its own.
    with strict_arithmetic():
        for operation, shape in rest:
            with suppress(ValueError):
                operation_bound(operation, shape)
