"""Counts the processes that the kernel has killed because memory ran out."""

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_VMSTAT = Path("/proc/vmstat")


def count_kernel_kills() -> int | None:
    """Returns how many processes the kernel's OOM killer has ended since the machine, or the container, began.

    Of the container (cgroup version 2: memory.events, version 1: memory.oom_control) and of the whole machine
    (/proc/vmstat), whichever says more. Returns None where none of them can be read.
    """
    counts = [count for path in _list_counters() if (count := _read_counter(path)) is not None]
    return max(counts, default=None)


def _list_counters() -> list[Path]:
    """Returns the files that may count kills: of the container, of this process's own group, of the machine."""
    own = []
    if _OWN_CGROUPS.exists():
        own = [line.rpartition(":")[2].strip("/") for line in _OWN_CGROUPS.read_text().splitlines()]
    groups = [_CGROUPS, *(_CGROUPS / name for name in own)]
    groups += [_CGROUPS / "memory", *(_CGROUPS / "memory" / name for name in own)]
    return [*(group / name for group in groups for name in ("memory.events", "memory.oom_control")), _VMSTAT]


def _read_counter(path: Path) -> int | None:
    """Reads the line `oom_kill N` of a file. Returns None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
