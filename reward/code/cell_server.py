"""The sandbox's warm server, which forks a cell process for each job, ends it in time and reports how it ended.

It runs no model-written code itself. Its memory holds no more than one job's limits: payloads, inputs and outputs are
files that only their cell reads.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NamedTuple, NoReturn

from qwen_align.reward.code import cell_main
from qwen_align.reward.code.cell_folders import CellFolders
from qwen_align.reward.code.confine_cell import (
    LIFE,
    CellFiles,
    CellIsolation,
    FilterKind,
    choose_filter,
    confine_cell,
    enter_syscall_filter,
    prepare_for_forks,
    reserve_cell_descriptors,
)
from qwen_align.reward.code.namespaces import CellNamespaces
from qwen_align.reward.code.seccomp import UnknownMachineError
from qwen_align.reward.code.server_messages import (
    JOB_BYTES,
    How,
    Job,
    Result,
    pack_failure,
    pack_result,
    unpack_job,
)

MEMORY_STATUS = 113
"""How a cell exits whose entry function let a MemoryError through."""

# Paid for once; what is rarely imported is not here, as each megabyte makes every fork dearer.
_PRELOADED = (
    "abc ast bisect cmath collections.abc copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools math numbers operator random re string textwrap threading traceback types typing warnings"
).split()
_WAKE_BYTES = 4096
_SETUP_FAILED = 114


class _RunningCell(NamedTuple):
    """A sandbox cell process that is running."""

    life: socket.socket
    deadline: float
    cpu_limit_s: float


def preload_modules() -> None:
    """Imports the modules that solutions commonly import, before any cell is forked."""
    for name in _PRELOADED:
        importlib.import_module(name)


def serve_jobs(settings: dict[str, Any]) -> NoReturn:
    """Runs the sandbox's server until the owner closes its end of the control socket."""
    control = socket.socket(fileno=reserve_cell_descriptors(settings["control"]))
    try:
        server = _CellServer(control, settings)
    except (OSError, UnknownMachineError) as error:
        control.sendall(f"{_describe_error(error)}\n".encode())
        sys.exit(1)
    control.sendall(b"ready\n")
    server.serve_until_owner_ends()
    os._exit(0)


class _CellServer:
    """A server that forks a cell process for each job, ends it in time and reports how it ended."""

    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        packages: list[str] = settings["packages"]
        self._control = control
        self._cell_isolation = CellNamespaces(packages) if settings["isolation"] == "full" else CellFolders(packages)
        sys.path.append(self._cell_isolation.packages)
        self._cells: dict[int, _RunningCell] = {}  # by process id
        self._killed: set[int] = set()
        self._pids_by_life: dict[int, int] = {}  # the file says whether the owner still wants it
        self._poll = select.poll()
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._filters = prepare_for_forks(self._cell_isolation)
        cell_main.warm_up()
        gc.collect()
        gc.disable()  # a collection in a cell would touch, and so copy, every page
        gc.freeze()

    def serve_until_owner_ends(self) -> None:
        """Serves jobs until the owner process ends, then ends all running cells."""
        control = self._control.fileno()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        has_owner = True
        while has_owner:
            for ready_file, _ in self._poll.poll(self._compute_poll_ms()):
                if ready_file == control:
                    has_owner = self._start_cell()
                elif ready_file == self._woken:
                    os.read(self._woken, _WAKE_BYTES)
                elif ready_file in self._pids_by_life:
                    self._kill_cell(self._pids_by_life[ready_file])
                    self._poll.unregister(ready_file)
            now = time.monotonic()
            for pid, cell in self._cells.items():
                if cell.deadline <= now:
                    self._kill_cell(pid)
            self._report_ended_cells()
        for pid in self._cells:
            self._cell_isolation.kill_cell(pid)
        for pid in self._cells:
            os.waitpid(pid, 0)
        self._cell_isolation.remove_all()

    def _compute_poll_ms(self) -> float | None:
        """Computes the milliseconds until the next cell's deadline. Returns None if no cell is running."""
        if not self._cells:
            return None
        return max(0.0, min(cell.deadline for cell in self._cells.values()) - time.monotonic()) * 1000 + 1

    def _start_cell(self) -> bool:
        """Receives the next job and starts a cell process for it. Returns False if the owner closed the socket."""
        message, files, _, _ = socket.recv_fds(self._control, JOB_BYTES, len(CellFiles._fields))
        if len(message) < JOB_BYTES:
            return False
        job = unpack_job(message)
        try:
            pid = self._cell_isolation.fork_cell()
        except OSError as error:
            os.write(files[0], pack_failure(f"fork: {_describe_error(error)}"))
            for file in files:
                os.close(file)
            return True
        if not pid:
            _run_cell(job, CellFiles(*files), self._cell_isolation, self._filters)
        for file in files[1:]:
            os.close(file)
        life = socket.socket(fileno=files[0])
        time_limit_s = job.limits.time_limit_s
        self._cells[pid] = _RunningCell(life, time.monotonic() + time_limit_s, time_limit_s)
        self._pids_by_life[files[0]] = pid
        self._poll.register(files[0], select.POLLIN)
        return True

    def _kill_cell(self, pid: int) -> None:
        """Kills a cell process that is late or no longer wanted."""
        self._killed.add(pid)
        self._cell_isolation.kill_cell(pid)

    def _report_ended_cells(self) -> None:
        """Reports each sandbox cell that has ended to the owner process."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            cell = self._cells.pop(pid, None)
            if cell is None:  # the removal of what a cell left
                continue
            self._cell_isolation.clean_up_cell(pid)
            file = cell.life.fileno()
            del self._pids_by_life[file]
            with contextlib.suppress(KeyError):
                self._poll.unregister(file)
            result = _make_result(cell, status, usage.ru_utime + usage.ru_stime, stopped=pid in self._killed)
            self._killed.discard(pid)
            with contextlib.suppress(OSError), cell.life:  # an owner that does not wait any more
                cell.life.sendall(pack_result(result))


def _describe_error(error: OSError | UnknownMachineError) -> str:
    """Formats an error as text, with the file name if the error has one."""
    if isinstance(error, OSError):
        return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
    return str(error)


def _make_result(cell: _RunningCell, status: int, cpu_s: float, *, stopped: bool) -> Result:
    """Builds the result message of a sandbox cell that ended, from its wait status."""
    code = os.waitstatus_to_exitcode(status)
    how: How = "exit" if code >= 0 else "signal"
    if code == MEMORY_STATUS:
        how = "memory limit"
    elif -code == signal.SIGKILL and (stopped or cpu_s >= cell.cpu_limit_s):
        how = "time limit"
    return Result(how, abs(code), cpu_s)


def _run_cell(job: Job, files: CellFiles, cell_isolation: CellIsolation, filters: dict[FilterKind, bytes]) -> NoReturn:
    """Confines the forked child process, runs the job's entry function, and exits."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        payload = os.pread(files.payload, os.fstat(files.payload).st_size, 0)
        try:
            channel = confine_cell(files, job, cell_isolation)
            if filters:
                enter_syscall_filter(filters[choose_filter(job)])
        except OSError as error:
            os.write(LIFE, pack_failure(_describe_error(error)))
            os._exit(_SETUP_FAILED)
        os.close(LIFE)
        gc.enable()
        cell_main.ENTRIES[job.entry](payload, channel)
        status = 0
    except MemoryError:
        status = MEMORY_STATUS
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001 - whatever model-written code raises, it must not go on as the server
        status = 1
    finally:
        os._exit(status & 0xFF)
