"""Memory that this process can still have: of the machine, of its control groups, of its ulimit."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Files of a control group, of either version: its limit, its use, and what of that are files, which
# the kernel gives back.
GROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
# Where either version is mounted, alone or beside the other.
MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/memory")


class Free(NamedTuple):
    """Memory that is free.

    Attributes:
        bytes: How much at most; more than any machine has where that is not known.
        limit: What says so.
    """

    bytes: int
    limit: str

    def lacks(self, need: int) -> str | None:
        """What is lacking for so many bytes more, in words; None if they may fit."""
        if need <= self.bytes:
            return None
        return (
            f"at least {_in_words(need)} of memory are needed, and {_in_words(self.bytes)} are "
            f"free ({self.limit})"
        )


def free_memory(root: Path = Path("/")) -> Free:
    """The least of what the limits leave to this process, as far as the system tells.

    Swap counts as memory, and what files take in memory as free: nothing that fits is called too
    large.

    Args:
        root: Where the system's own files are.
    """
    unknown = Free(sys.maxsize, "by no limit that is known")
    return min([unknown, *_of_machine(root), *_of_groups(root), *_of_process(root)])


def _of_machine(root: Path) -> Iterator[Free]:
    sizes = _table(root / "proc/meminfo")
    if "MemAvailable:" in sizes:
        free = sizes["MemAvailable:"] + sizes.get("SwapFree:", 0)
        yield Free(1024 * free, "MemAvailable and SwapFree of /proc/meminfo")


def _of_groups(root: Path) -> Iterator[Free]:
    # Limits of a group hold for those inside it. In a container its own may be where it is mounted.
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        # The second version has none.
        if controllers and "memory" not in controllers.split(","):
            continue
        for mount in MOUNTS:
            inside = Path(path.strip("/"))
            for group in (inside, *inside.parents):
                yield from _of_group(root / mount / group)


def _of_group(group: Path) -> Iterator[Free]:
    for limit, use, files in GROUP_FILES:
        most, used = _number(group / limit), _number(group / use)
        if most is not None and used is not None:
            stat = _table(group / "memory.stat")
            used -= sum(stat.get(key, 0) for key in files)
            yield Free(max(0, most - max(0, used)), f"{limit} of the control group {group.name!a}")


def _of_process(root: Path) -> Iterator[Free]:
    if os.name != "posix":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = " ".join(_lines(root / "proc/self/statm")).split()
    if limit != resource.RLIM_INFINITY and pages:
        used = int(pages[0]) * resource.getpagesize()
        yield Free(max(0, limit - used), "the address space of ulimit -v")


def _table(path: Path) -> dict[str, int]:
    # Lines of a name and a number.
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    # "max" stands for no limit.
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _in_words(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 10**9 else f"{size / 1e6:.3g} MB"
