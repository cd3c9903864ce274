"""One function of many items, divided over processes; the answers do not depend on their number.

Every process computes with one thread and ends with the process that started it, however that ends.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Variables that libraries of linear algebra read when they are loaded.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Number of items that are given to each process in advance.
AHEAD = 2


def cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def answers(
    function: Callable[[Item], Answer], items: Iterable[Item], processes: int
) -> Iterator[Answer]:
    """``function(item)`` for every item, in the order of the items.

    Args:
        function: What can be pickled; it is sent to every process once.
        items: Its arguments.
        processes: How many processes to start; this one alone computes if it is 1.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # Imported here: most checks need no other process.
    import multiprocessing
    import pickle
    from concurrent.futures import ProcessPoolExecutor

    left = iter(items)
    # New processes, rather than copies of this one, whose libraries may have threads.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(pickle.dumps(function),),
    )
    try:
        waiting = deque(pool.submit(_answer, item) for item in islice(left, AHEAD * processes))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_answer, item) for item in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


# The function, in a process that was started for it.
_FUNCTION: list[Callable[[Any], Any]] = []


def _begin(content: bytes) -> None:
    import pickle
    import threading

    # Before the function is read, which loads libraries.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _FUNCTION.append(pickle.loads(content))


def _end_with_parent() -> None:
    import multiprocessing
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _answer(item: Any) -> Any:
    return _FUNCTION[0](item)
