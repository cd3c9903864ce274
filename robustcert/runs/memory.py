"""Memory that operations on large maps use again, instead of asking the system for it."""

import ctypes
import os
import sys

# Names of settings in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Number of free bytes that are kept, as many as a training step of a large network frees and the
# next one takes, and of the largest piece that is taken from them: glibc's maxima.
KEPT, PIECE = 2**31 - 1, 2**25
# Where somebody else decides.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


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
    return mallopt is not None and bool(
        mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, PIECE)
    )
