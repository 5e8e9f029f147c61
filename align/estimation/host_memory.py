"""Says how much memory the machine, or the container that this runs in, has."""

import os
from pathlib import Path


def read_memory_limit() -> int:
    """Returns the bytes of memory that the machine, or the container that this runs in, has in all."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # another version of cgroups, or "max"
            continue
    return min(limits)
