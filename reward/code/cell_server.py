"""The warm server of a sandbox: forks a cell for each job it is sent, ends it in time, and tells how it ended.

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
from qwen_align.reward.code.cell_folders import Folders
from qwen_align.reward.code.confine_cell import LIFE, Exits, Files, confine, give_up_rights, prepare, reserve
from qwen_align.reward.code.namespaces import Door
from qwen_align.reward.code.seccomp import UnknownMachineError
from qwen_align.reward.code.server_messages import (
    JOB_BYTES,
    How,
    Job,
    Result,
    packed_failure,
    packed_result,
    read_job,
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


class _Cell(NamedTuple):
    """A cell that runs."""

    life: socket.socket
    deadline: float
    cpu_limit_s: float


def preload() -> None:
    """Imports what solutions import."""
    for name in _PRELOADED:
        importlib.import_module(name)


def serve(settings: dict[str, Any]) -> NoReturn:
    """Starts cells for the owner until it closes its end of the control socket."""
    control = socket.socket(fileno=reserve(settings["control"]))
    try:
        server = _Server(control, settings)
    except (OSError, UnknownMachineError) as error:
        control.sendall(f"{_why(error)}\n".encode())
        sys.exit(1)
    control.sendall(b"ready\n")
    server.run()
    os._exit(0)


class _Server:
    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        packages: list[str] = settings["packages"]
        self._control = control
        self._exits = Door(packages) if settings["isolation"] == "full" else Folders(packages)
        sys.path.append(self._exits.packages)
        self._cells: dict[int, _Cell] = {}  # by process id
        self._stopped: set[int] = set()
        self._lives: dict[int, int] = {}  # process ids, by the file that says whether the owner still wants the cell
        self._poll = select.poll()
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._filters = prepare(self._exits)
        cell_main.warm()
        gc.collect()
        gc.disable()  # a collection in a cell would touch, and so copy, every page
        gc.freeze()

    def run(self) -> None:
        """Until the owner is gone; then its cells are ended too."""
        control = self._control.fileno()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        owned = True
        while owned:
            for file, _ in self._poll.poll(self._patience_ms()):
                if file == control:
                    owned = self._take_job()
                elif file == self._woken:
                    os.read(self._woken, _WAKE_BYTES)
                elif file in self._lives:
                    self._stop(self._lives[file])
                    self._poll.unregister(file)
            now = time.monotonic()
            for pid, cell in self._cells.items():
                if cell.deadline <= now:
                    self._stop(pid)
            self._reap()
        for pid in self._cells:
            self._exits.kill(pid)
        for pid in self._cells:
            os.waitpid(pid, 0)
        self._exits.close()

    def _patience_ms(self) -> float | None:
        if not self._cells:
            return None
        return max(0.0, min(cell.deadline for cell in self._cells.values()) - time.monotonic()) * 1000 + 1

    def _take_job(self) -> bool:
        """Whether there was a job rather than the owner's end; starts it."""
        message, files, _, _ = socket.recv_fds(self._control, JOB_BYTES, len(Files._fields))
        if len(message) < JOB_BYTES:
            return False
        job = read_job(message)
        try:
            pid = self._exits.fork()
        except OSError as error:
            os.write(files[0], packed_failure(f"fork: {_why(error)}"))
            for file in files:
                os.close(file)
            return True
        if not pid:
            _be_cell(job, Files(*files), self._exits, self._filters)
        for file in files[1:]:
            os.close(file)
        life = socket.socket(fileno=files[0])
        time_limit_s = job.limits.time_limit_s
        self._cells[pid] = _Cell(life, time.monotonic() + time_limit_s, time_limit_s)
        self._lives[files[0]] = pid
        self._poll.register(files[0], select.POLLIN)
        return True

    def _stop(self, pid: int) -> None:
        self._stopped.add(pid)
        self._exits.kill(pid)

    def _reap(self) -> None:
        """Tells the owner of each cell that ended."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            cell = self._cells.pop(pid, None)
            if cell is None:  # the removal of what a cell left
                continue
            self._exits.ended(pid)
            file = cell.life.fileno()
            del self._lives[file]
            with contextlib.suppress(KeyError):
                self._poll.unregister(file)
            result = _result(cell, status, used.ru_utime + used.ru_stime, stopped=pid in self._stopped)
            self._stopped.discard(pid)
            with contextlib.suppress(OSError), cell.life:  # an owner that does not wait any more
                cell.life.sendall(packed_result(result))


def _why(error: OSError | UnknownMachineError) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
    return str(error)


def _result(cell: _Cell, status: int, cpu_s: float, *, stopped: bool) -> Result:
    code = os.waitstatus_to_exitcode(status)
    how: How = "exit" if code >= 0 else "signal"
    if code == MEMORY_STATUS:
        how = "memory limit"
    elif -code == signal.SIGKILL and (stopped or cpu_s >= cell.cpu_limit_s):
        how = "time limit"
    return Result(how, abs(code), cpu_s)


def _be_cell(job: Job, files: Files, exits: Exits, filters: dict[bool, bytes]) -> NoReturn:
    """In the child: confines itself, runs the entry function, and exits."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        payload = os.pread(files.payload, os.fstat(files.payload).st_size, 0)
        try:
            channel = confine(files, job, exits)
            if filters:
                give_up_rights(filters[job.limits.processes > 1])
        except OSError as error:
            os.write(LIFE, packed_failure(_why(error)))
            os._exit(_SETUP_FAILED)
        os.close(LIFE)
        gc.enable()
        run = cell_main.candidate if job.entry == "candidate" else cell_main.tests
        run(payload, channel)
        status = 0
    except MemoryError:
        status = MEMORY_STATUS
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever model-written code raises, it must not go on as the server
        status = 1
    finally:
        os._exit(status & 0xFF)
