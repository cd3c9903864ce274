"""Memory that operations on large maps use again, instead of asking the system for it."""

import ctypes
import os
import sys

# Names of settings in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
# Number of free bytes that are kept, for a training step of a large network frees as much as the
# next one takes: glibc's maximum. And of pieces that go back to the system by themselves.
KEPT, APART = 2**31 - 1, 0
# Where somebody else decides.
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
    """Keep memory that is freed for what comes next.

    By default glibc hands large pieces back to the system and asks for them again with the next
    operation, and the system writes zeros into all of them first: a third of the time of
    convolutions on maps of 16 MB. Other C libraries are left as they are.

    Returns:
        Whether it is kept.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_MAX, APART))
