"""Isolated processes for model-written code: `sandbox(isolation).start(entry, payload, limits)`."""

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

from qwen_align.reward.code.isolation_advice import advice
from qwen_align.reward.code.launch_server import START_S, SandboxError, started
from qwen_align.reward.code.server_messages import (
    KILL,
    RESULT_BYTES,
    Entry,
    How,
    Isolation,
    Job,
    Limits,
    packed_job,
    read_result,
)

__all__ = ["Cell", "Ended", "Limits", "Sandbox", "SandboxError", "sandbox"]

_END_S = 30.0  # for the server to tell of an end, on a machine that is busy with something else
_SLACK_BYTES = 2**16
"""A write that would cross a file's last byte may be refused whole: smaller ones still show that there was too much."""


class Ended(NamedTuple):
    """How a cell ended: `status` is its exit status or the signal, `output` its standard output."""

    how: How
    status: int
    output: bytes
    cpu_s: float


class Cell:
    """A process, with all it starts, that runs an entry function; killed at the end of a `with`."""

    channel: socket.socket
    """The other end is the entry function's."""

    def __init__(self, life: socket.socket, channel: socket.socket, output: io.FileIO, limits: Limits) -> None:
        self.channel = channel
        self._life = life
        self._output = output
        self._limits = limits
        self._end: Ended | SandboxError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        is_news = self._end is None
        end = self._ended(0.0)
        if is_news and error is None and isinstance(end, SandboxError):
            raise end

    def kill(self) -> None:
        """Leaves no process of the cell; raises `SandboxError` as `end` does."""
        self.end(0.0)

    def end(self, deadline: float | None = None) -> Ended:
        """How the cell ended; waits for it, and kills it at the `deadline`, a `time.monotonic()`.

        When it returns no process of the cell is left. Raises `SandboxError` if the cell could not be set up, or was
        ended from outside: never for what the cell did.
        """
        end = self._ended(deadline)
        if isinstance(end, SandboxError):
            raise end
        return end

    def _ended(self, deadline: float | None) -> Ended | SandboxError:
        if self._end is None:
            try:
                self._end = self._wait(deadline)
            except TimeoutError:
                self._end = SandboxError(f"the sandbox's server did not end a cell within {_END_S:.0f} s")
            self.channel.close()
            self._life.close()
            self._output.close()
        return self._end

    def _wait(self, deadline: float | None) -> Ended | SandboxError:
        result = self._received(RESULT_BYTES, deadline)
        if not result:  # and the kernel ended the cell
            return SandboxError("the sandbox's server was ended while a cell ran")
        told = read_result(result)
        if isinstance(told, int):
            why = self._received(told, None).decode(errors="replace")
            return SandboxError(f"a cell could not be set up: {why}; {advice()}")
        too_much = self._output.tell() > self._limits.output_bytes
        how: How = "output limit" if too_much and told.how in ("exit", "signal") else told.how
        return Ended(how, told.status, self._written(), told.cpu_s)

    def _received(self, size: int, deadline: float | None) -> bytes:
        """That many bytes from the server, nothing where it is gone; asks it to end the cell at the deadline.

        Raises TimeoutError where it does not even answer that.
        """
        received = b""
        asked = False
        until = time.monotonic() + self._limits.time_limit_s + _END_S if deadline is None else deadline
        while len(received) < size:
            try:
                self._life.settimeout(max(1e-6, until - time.monotonic()))
                part = self._life.recv(size - len(received))
            except TimeoutError:
                if asked:
                    raise
                with contextlib.suppress(OSError):
                    self._life.send(KILL)
                asked, until = True, time.monotonic() + _END_S
                continue
            except OSError:
                return b""
            if not part:
                return b""
            received += part
        return received

    def _written(self) -> bytes:
        return os.pread(self._output.fileno(), min(self._output.tell(), self._limits.output_bytes), 0)


class Sandbox:
    """Starts cells, in any thread; has one server process, started with the first cell and again should it end."""

    def __init__(self, isolation: Isolation = "full") -> None:
        self._isolation = isolation
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def warm(self) -> None:
        """Starts the server, and a cell to see that it can; raises `SandboxError` where this machine cannot."""
        with self.start("candidate", b"") as cell:
            cell.channel.shutdown(socket.SHUT_RDWR)  # without a job it ends by itself
            cell.end(time.monotonic() + START_S)

    def start(
        self,
        entry: Entry,
        payload: bytes,
        limits: Limits | None = None,
        *,
        stdin: bytes = b"",
        channel: socket.socket | None = None,
    ) -> Cell:
        """A cell that runs the entry function on the payload; raises `SandboxError` where none can be had.

        Its end of the channel is the given socket, closed here, or one of a new pair whose other is `Cell.channel`.
        """
        limits = limits or Limits()
        with contextlib.ExitStack() as passed, contextlib.ExitStack() as kept:
            here, its = (channel, channel) if channel else socket.socketpair()
            here_life, its_life = socket.socketpair()
            output = kept.enter_context(io.FileIO(_file(b"", size=limits.output_bytes + _SLACK_BYTES)))
            kept.enter_context(here)
            kept.enter_context(here_life)
            passed.enter_context(its)
            passed.enter_context(its_life)
            given = passed.enter_context(io.FileIO(_file(stdin)))
            load = passed.enter_context(io.FileIO(_file(payload)))
            files = [one.fileno() for one in (its_life, its, given, load, output)]
            self._send(packed_job(Job(entry, limits)), files)
            kept.pop_all()
        return Cell(here_life, here, output, limits)

    def close(self) -> None:
        """Ends the server and with it every cell."""
        with self._lock:
            self._disconnect()

    def _send(self, message: bytes, files: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._connect(), [message], files)
            except (BrokenPipeError, ConnectionError):  # the server is gone; a second one is not
                self._disconnect()
                socket.send_fds(self._connect(), [message], files)

    def _connect(self) -> socket.socket:
        if self._control is None:
            self._server, self._control = started(self._isolation)
        return self._control

    def _disconnect(self) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # which a copy in a forked child cannot hold up
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.wait()
            self._server = None

    def _forget(self) -> None:
        """In a forked child: the server is its parent's."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.returncode = 0  # what is not this process's child shall not be waited for
            self._server = None


@cache
def sandbox(isolation: Isolation) -> Sandbox:
    """The sandbox of this process."""
    return Sandbox(isolation)


def _file(content: bytes, *, size: int | None = None) -> int:
    """An open file without a name; with a `size`, an empty one that cannot grow beyond it."""
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
