"""Says which process on which machine this is, and whether a process of this machine is still alive."""

import os
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ENDED = ("Z", "X")  # states of a process that runs no more: proc_pid_stat(5)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process. `pid` and `started` mean something only to processes of the same boot and the same namespaces.

    `namespaces`: of process numbers and of clocks. `started`: when the process began, in the system's own units, so
    that a later process with the same number differs.
    """

    host: str
    boot: str
    namespaces: str
    pid: int
    started: str

    def is_on_machine_of(self, other: "ProcessIdentity") -> bool:
        """Returns whether both have the same process numbers and clock: one boot of a machine, the same namespaces."""
        return (self.boot, self.namespaces) == (other.boot, other.namespaces)


def identify_process() -> ProcessIdentity:
    """Returns the identity of this process. It is the one place that says which machine this is."""
    pid = os.getpid()
    return ProcessIdentity(socket.gethostname(), _read_boot_id(), _read_namespaces(), pid, read_start_time(pid) or "")


def is_process_alive(identity: ProcessIdentity) -> bool | None:
    """Returns whether a process of this machine is alive. Returns None where that cannot be told for sure."""
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user: it is there
        pass
    started = read_start_time(identity.pid)
    if not started or not identity.started:  # hidden from this user
        return None
    return started == identity.started and _read_state(identity.pid) not in _ENDED


def read_start_time(pid: int) -> str | None:
    """Returns when a process began, in the system's own units. Returns None where it cannot be read."""
    if sys.platform == "linux":
        fields = _read_stat(pid)
        return fields[19] if len(fields) > 19 else None  # field 22 of proc_pid_stat(5)
    return _ask("ps", "-o", "lstart=", "-p", str(pid)) or None


def _read_state(pid: int) -> str:
    fields = _read_stat(pid) if sys.platform == "linux" else [_ask("ps", "-o", "state=", "-p", str(pid))]
    return fields[0][:1] if fields else "X"


def _read_stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the third on: the second is a name. Returns [] if it is unreadable."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


@cache
def _read_boot_id() -> str:
    """Returns what names this boot of this machine. Where nothing does, what names this process alone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _ask("sysctl", "-n", "kern.bootsessionuuid") or f"unknown-{uuid.uuid4()}"


def _read_namespaces() -> str:
    """Returns what names the namespaces of process numbers and of clocks on Linux. Elsewhere there is one of each."""
    names = []
    for kind in ("pid", "time"):
        try:
            names.append(os.readlink(f"/proc/self/ns/{kind}"))
        except OSError:  # the system has none, or hides it from this process
            names.append(f"no {kind}" if sys.platform != "linux" or kind == "time" else f"pid hidden-{os.getpid()}")
    return " ".join(names)


def _ask(*command: str) -> str:
    """Returns what a command prints, "" where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
