"""A sandbox of isolated processes for model-written code, used as `get_sandbox(isolation).start_cell(...)`."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from types import TracebackType
from typing import NamedTuple, Self

from qwen_align.reward.code.isolation_advice import suggest_isolation_fixes
from qwen_align.reward.code.launch_server import START_LIMIT_S, SandboxError, start_server
from qwen_align.reward.code.server_messages import (
    KILL,
    RESULT_BYTES,
    Entry,
    How,
    Isolation,
    Job,
    Limits,
    pack_job,
    unpack_result,
)

__all__ = ["Cell", "CellEnd", "Limits", "Sandbox", "SandboxError", "get_sandbox"]

_END_LIMIT_S = 30.0  # for the server to report an end, on a machine that is busy with something else
_SLACK_BYTES = 2**16
"""A write that would cross a file's last byte may be refused in full: smaller ones still show that it was too much."""


class CellEnd(NamedTuple):
    """The way a sandbox cell ended. `status` is its exit status or the signal, `output` its standard output."""

    how: How
    status: int
    output: bytes
    cpu_s: float


class Cell:
    """An isolated process that runs an entry function, with its children. It is killed at the end of a `with` block."""

    channel: socket.socket
    """The other end is the entry function's."""

    def __init__(self, life: socket.socket, channel: socket.socket, output: io.FileIO, limits: Limits) -> None:
        self.channel = channel
        self._life = life
        self._output = output
        self._limits = limits
        self._cell_end: CellEnd | SandboxError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        is_first_wait = self._cell_end is None
        cell_end = self._wait_once(0.0)
        if is_first_wait and error is None and isinstance(cell_end, SandboxError):
            raise cell_end

    def kill(self) -> None:
        """Kills every process of the sandbox cell. Raises `SandboxError` as `wait` does."""
        self.wait(0.0)

    def wait(self, deadline: float | None = None) -> CellEnd:
        """Waits until the sandbox cell ends, kills it at the `deadline`, and returns how it ended.

        `deadline` is a `time.monotonic()`. When it returns no process of the cell is left. Raises `SandboxError` if the
        cell could not be set up, or was ended from outside: never for what the cell did.
        """
        end = self._wait_once(deadline)
        if isinstance(end, SandboxError):
            raise end
        return end

    def _wait_once(self, deadline: float | None) -> CellEnd | SandboxError:
        """Waits for the cell's end, closes its files and returns how it ended or an error.

        Later calls return the same.
        """
        if self._cell_end is None:
            try:
                self._cell_end = self._wait_for_result(deadline)
            except TimeoutError:
                self._cell_end = SandboxError(f"the sandbox's server did not end a cell within {_END_LIMIT_S:.0f} s")
            self.channel.close()
            self._life.close()
            self._output.close()
        return self._cell_end

    def _wait_for_result(self, deadline: float | None) -> CellEnd | SandboxError:
        """Receives from the server how the sandbox cell ended. Returns the error if there is no such report."""
        result = self._receive_bytes(RESULT_BYTES, deadline)
        if not result:  # and the kernel ended the cell
            return SandboxError("the sandbox's server was ended while a cell ran")
        unpacked = unpack_result(result)
        if isinstance(unpacked, int):
            why = self._receive_bytes(unpacked, None).decode(errors="replace")
            return SandboxError(f"a cell could not be set up: {why}; {suggest_isolation_fixes()}")
        is_over = self._output.tell() > self._limits.output_bytes
        how: How = "output limit" if is_over and unpacked.how in ("exit", "signal") else unpacked.how
        return CellEnd(how, unpacked.status, self._read_output(), unpacked.cpu_s)

    def _receive_bytes(self, size: int, deadline: float | None) -> bytes:
        """Receives `size` bytes from the server, and asks it to kill the cell at the deadline.

        Returns b"" if the server has ended.

        Raises TimeoutError where it does not even answer that.
        """
        received = b""
        has_asked = False
        give_up_at = time.monotonic() + self._limits.time_limit_s + _END_LIMIT_S if deadline is None else deadline
        while len(received) < size:
            try:
                self._life.settimeout(max(1e-6, give_up_at - time.monotonic()))
                part = self._life.recv(size - len(received))
            except TimeoutError:
                if has_asked:
                    raise
                with contextlib.suppress(OSError):
                    self._life.send(KILL)
                has_asked, give_up_at = True, time.monotonic() + _END_LIMIT_S
                continue
            except OSError:
                return b""
            if not part:
                return b""
            received += part
        return received

    def _read_output(self) -> bytes:
        """Reads what the sandbox cell wrote to its standard output, up to the limit."""
        return os.pread(self._output.fileno(), min(self._output.tell(), self._limits.output_bytes), 0)


class Sandbox:
    """A sandbox that starts isolated cell processes through one server process. It can be used from any thread."""

    def __init__(self, isolation: Isolation = "full") -> None:
        self.idle_judges: dict[int, list[Cell]] = {}
        """Cells that judge what candidates return and wait for the next, by their memory in MiB."""
        self._isolation = isolation
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_server)

    def warm_up(self) -> None:
        """Starts the server and one trial cell. Raises `SandboxError` if this machine cannot."""
        with self.start_cell("candidate", b"") as cell:
            cell.channel.shutdown(socket.SHUT_RDWR)  # without a job it ends by itself
            cell.wait(time.monotonic() + START_LIMIT_S)

    def start_cell(
        self,
        entry: Entry,
        payload: bytes,
        limits: Limits | None = None,
        *,
        stdin: bytes = b"",
        channel: socket.socket | None = None,
    ) -> Cell:
        """Starts an isolated cell process that runs an entry function on a payload.

        Raises `SandboxError` if it cannot start.

        Its end of the channel is the given socket, closed here, or one of a new pair whose other is `Cell.channel`.
        """
        limits = limits or Limits()
        with contextlib.ExitStack() as server_files, contextlib.ExitStack() as own_files:
            our_end, cell_end = (channel, channel) if channel else socket.socketpair()
            our_life, cell_life = socket.socketpair()
            output = own_files.enter_context(io.FileIO(_make_memory_file(b"", size=limits.output_bytes + _SLACK_BYTES)))
            own_files.enter_context(our_end)
            own_files.enter_context(our_life)
            server_files.enter_context(cell_end)
            server_files.enter_context(cell_life)
            stdin_file = server_files.enter_context(io.FileIO(_make_memory_file(stdin)))
            payload_file = server_files.enter_context(io.FileIO(_make_memory_file(payload)))
            files = [file.fileno() for file in (cell_life, cell_end, stdin_file, payload_file, output)]
            self._send_job(pack_job(Job(entry, limits)), files)
            own_files.pop_all()
        return Cell(our_life, our_end, output, limits)

    def close(self) -> None:
        """Ends the sandbox's server process and with it every cell."""
        with self._lock:
            self._disconnect()

    def _send_job(self, message: bytes, files: list[int]) -> None:
        """Sends a message and open files to the server, after starting a new server if the last one has ended."""
        with self._lock:
            try:
                socket.send_fds(self._connect(), [message], files)
            except (BrokenPipeError, ConnectionError):  # the server is gone; a second one is not
                self._disconnect()
                socket.send_fds(self._connect(), [message], files)

    def _connect(self) -> socket.socket:
        """Returns the control socket to the server, after starting one if there is none."""
        if self._control is None:
            self._server, self._control = start_server(self._isolation)
        return self._control

    def _disconnect(self) -> None:
        """Closes the control socket and waits for the server to end."""
        self.idle_judges = {}
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # which a copy in a forked child cannot hold up
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.wait()
            self._server = None

    def _forget_server(self) -> None:
        """Drops the handle of the parent's server in a forked child process."""
        self.idle_judges = {}
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.returncode = 0  # what is not this process's child shall not be waited for
            self._server = None


@cache
def get_sandbox(isolation: Isolation) -> Sandbox:
    """Returns this process's sandbox with the given isolation."""
    return Sandbox(isolation)


def _make_memory_file(content: bytes, *, size: int | None = None) -> int:
    """Creates an anonymous file in memory. With a `size`, it is empty and cannot grow beyond it."""
    if sys.platform != "linux":
        import tempfile

        with tempfile.TemporaryFile() as named:
            named.write(content)
            named.seek(0)
            return os.dup(named.fileno())
    import fcntl

    file = os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if size is None:
        os.write(file, content)
        os.lseek(file, 0, os.SEEK_SET)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    else:
        os.truncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file
