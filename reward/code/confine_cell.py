"""Sets up a fresh sandbox cell process: its open files, resource limits and rights."""

import io
import os
import resource
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from qwen_align.reward.code import seccomp, syscalls
from qwen_align.reward.code.cell_folders import CellFolders
from qwen_align.reward.code.namespaces import CellNamespaces
from qwen_align.reward.code.server_messages import MIB, Job, Limits

CellIsolation = CellNamespaces | CellFolders
FilterKind = Literal["plain", "forks", "judge"]

# The files of a cell, by number. The server keeps its own above them: see `reserve`.
_STDIN, _STDOUT, _STDERR, _CHANNEL, LIFE = range(5)
_OPEN_FILES = 64
_THREADS = 64
_CPU_SLACK_S = 2  # the wall clock's limit comes first; this ends a cell whose server was stopped


class CellFiles(NamedTuple):
    """The file descriptors of the open files that come with a sandbox job."""

    life: int
    channel: int
    stdin: int
    payload: int
    output: int


def reserve_cell_descriptors(descriptor: int) -> int:
    """Reserves the file descriptor numbers of a cell's files, and returns the given file moved above them."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, LIFE + 1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (_STDIN, _STDOUT, _CHANNEL, LIFE):
        os.dup2(null, number)
    for number in {descriptor, null} - set(range(LIFE + 1)):
        os.close(number)
    return moved


def choose_filter(job: Job) -> FilterKind:
    """Returns which of the system call filters a job's cell enters."""
    if job.entry == "judge":
        return "judge"
    return "forks" if job.limits.processes > 1 else "plain"


def prepare_for_forks(cell_isolation: CellIsolation) -> dict[FilterKind, bytes]:
    """Prepares the process once for forking cells and returns the system call filters of all kinds of cells.

    A fork copies each page that either side writes to: what is made before the fork is paid for once.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # one for each cell that runs
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an owner may have started us without one
            stream.reconfigure(encoding="utf-8", errors="replace")
    if sys.platform != "linux":
        return {}
    machine = syscalls.get_machine_name()
    is_alone = cell_isolation.owns_processes
    build = partial(seccomp.build_filter, machine, signals=is_alone, metadata=is_alone)
    return {
        "plain": build(processes=False),
        "forks": build(processes=True),
        "judge": build(processes=False, receives_files=True),
    }


def confine_cell(files: CellFiles, job: Job, cell_isolation: CellIsolation) -> socket.socket:
    """Sets up a fresh sandbox cell's files, rights and limits and returns its channel.

    Raises OSError if the kernel refuses.

    From here on the cell has its channel, its input, its output and `LIFE` open.
    """
    os.dup2(files.life, LIFE)
    os.dup2(files.stdin, _STDIN)
    os.dup2(files.output, _STDOUT)
    os.dup2(files.channel, _CHANNEL)
    null_file = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_file, _STDERR)
    os.setsid()
    os.umask(0o077)
    # Where the user is the owner's, the limit counts all of that user's threads, at most the machine's.
    n_others = 0 if cell_isolation.owns_processes else _count_threads_of_machine()
    cell_isolation.isolate_cell(job.entry, job.limits)
    syscalls.close_files_from(LIFE + 1)
    _set_resource_limits(job.limits, n_others)
    return socket.socket(fileno=_CHANNEL)


def enter_syscall_filter(program: bytes) -> None:
    """Puts the calling process under a system call filter. This is the last step of the set-up."""
    syscalls.die_with_parent(signal.SIGKILL)
    syscalls.forbid_new_privileges()
    syscalls.set_syscall_filter(seccomp.bind_filter(program, os.getpid()))


def _set_resource_limits(limits: Limits, n_others: int) -> None:
    """Sets the process's resource limits. Those of threads count `n_others` of its user's besides."""
    values = {
        resource.RLIMIT_CPU: int(limits.time_limit_s) + _CPU_SLACK_S,
        resource.RLIMIT_FSIZE: max(limits.disk_mib * MIB, 2 * limits.output_bytes),
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform != "darwin":  # has the limit by name only, and refuses to set it
        values[resource.RLIMIT_AS] = limits.memory_mib * MIB
    if sys.platform == "linux":
        values[resource.RLIMIT_NPROC] = n_others + (limits.processes if limits.processes > 1 else _THREADS)
    for resource_kind, value in values.items():
        resource.setrlimit(resource_kind, (value, value))


def _count_threads_of_machine() -> int:
    """Counts the threads of all processes on the machine, by the fourth field of /proc/loadavg: proc(5)."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
