"""Memory of one operation serves the next, unless the environment decides otherwise."""

import os
import subprocess
import sys

import pytest

from robustcert.runs.memory import VARIABLES

# Pages that the system has to provide for ten times seven maps of 4 to 28 MiB.
COUNTED = """
import resource, sys, torch
from robustcert.runs.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for _ in range(10):
    maps = [torch.ones(2**20 * size) for size in (1, 3, 7, 2, 5, 4, 6)]
    del maps
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    maps = [torch.ones(2**20 * size) for size in (1, 3, 7, 2, 5, 4, 6)]
    del maps
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(argument: str, **variables: str) -> tuple[bool, int]:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, argument],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_maps_are_made_of_the_memory_of_earlier_ones() -> None:
    kept, count = pages("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    # They have 28,672 pages each time, which are all new ones, most of the time, by default.
    assert count < 3000


def test_the_environment_decides() -> None:
    assert not pages("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
