"""A pool of worker processes that are killed when an item exceeds its time limit.

Threads and signals do not protect: big-integer arithmetic keeps the interpreter's lock, and a bare `except` swallows
an alarm. A server process (`worker_pool_server.py`) imports what the work needs once and forks the workers, so a killed
one is replaced in milliseconds. Requests and replies are JSON; nothing is unpickled.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

KILL_AFTER_S = 2.0  # an import that never lets other threads run has to be killed from outside
START_LIMIT_S = 60.0  # importing sympy takes a second, on a loaded machine ten
_MAX_REPLY_BYTES = 1 << 20  # bytes


class PoolError(Exception):
    """The base class of errors raised when a worker pool gives no reply. The message is a short reason."""


class LateError(PoolError):
    """Raised when a worker was killed at the time limit of its item."""


class UnservedError(PoolError):
    """Raised when the batch deadline passed before a worker could finish the item within its own limit."""


class DeadError(PoolError):
    """Raised when a worker process died while working, for example of memory or a fatal signal."""


class GoneError(DeadError):
    """Raised when the server process was killed from outside twice."""


class WorkError(PoolError):
    """Raised when the worker's function raised an exception. The message names that exception."""


class StartError(PoolError):
    """Raised when the server process cannot start, because of the installation or a user's file and not of an item."""


class Pool:
    """A pool of up to `workers` processes that answer requests one at a time, each within `limit_s` seconds.

    `entry` is "module:function"; called once in the server with `argument`, it returns the handler that the workers
    call with each request. Safe in any thread; a fork of this process starts a server of its own.
    """

    def __init__(self, entry: str, argument: Any = None, *, workers: int, limit_s: float, memory_gib: float) -> None:
        self._start = {"entry": entry, "argument": argument, "memory_bytes": int(memory_gib * 2**30)}
        self._limit_s = limit_s
        self._workers = workers
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_parents_server)

    def warm_up(self) -> None:
        """Starts the server process and waits until it is ready. Raises StartError if it cannot start."""
        with self._lock:
            self._get_running_server()

    def ask(self, request: Any, *, deadline: float | None = None) -> Any:
        """Sends a request to a worker process and returns the handler's reply. Raises a PoolError if there is no reply.

        The limit counts from the start of the work, not from this call. `deadline` is a `time.monotonic()`.
        """
        with self._turns.hold_turn(deadline):
            try:
                return self._ask_worker(request, deadline)
            except GoneError:  # ended from outside: tried once more, then raised
                return self._ask_worker(request, deadline)

    def _ask_worker(self, request: Any, deadline: float | None) -> Any:
        """Sends a request to an idle or newly forked worker and returns its reply."""
        with self._lock:
            server = self._get_running_server()
            worker = self._idle.pop() if self._idle else server.fork_worker()
        limit = time.monotonic() + self._limit_s
        try:
            reply = worker.ask(request, limit if deadline is None else min(limit, deadline))
        except PoolError as error:
            worker.close_channel()
            with self._lock:
                is_alive = server.kill_worker(worker.pid)
            if isinstance(error, DeadError) and not is_alive:
                raise GoneError("worker ended from outside") from error
            if isinstance(error, LateError) and deadline is not None and deadline < limit:
                raise UnservedError("batch deadline") from error
            raise
        with self._lock:
            if server is self._server:
                self._idle.append(worker)
            else:
                worker.close_channel()
        if "raised" in reply:
            raise WorkError(reply["raised"])
        return reply["reply"]

    def close(self) -> None:
        """Ends the server process with all its workers. A later request starts a new one."""
        with self._lock:
            if self._server is not None:
                self._server.end_process()
            self._drop_server()

    def _reset(self) -> None:
        """Resets the pool to a state without a server process."""
        self._lock = threading.Lock()
        self._turns = _FairQueue(self._workers)
        self._server: _Server | None = None
        self._idle: list[_Worker] = []

    def _forget_parents_server(self) -> None:
        """Drops the handles of the parent's server and workers in a forked child process."""
        if self._server is not None:
            self._server.control.close()
        self._drop_server()
        self._reset()

    def _drop_server(self) -> None:
        """Drops the handle of the server process and closes the channels of its idle workers."""
        for worker in self._idle:
            worker.close_channel()
        self._idle, self._server = [], None

    def _get_running_server(self) -> "_Server":
        """Returns the server process, after starting one if none is running."""
        if self._server is not None and not self._server.is_alive():
            self._server.end_process()
            self._drop_server()
        if self._server is None:
            self._server = _Server(self._start)
        return self._server


class _FairQueue:
    """A semaphore that admits threads in the order they came, so that none waits for ever."""

    def __init__(self, n_turns: int) -> None:
        self._lock = threading.Lock()
        self._left = n_turns
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def hold_turn(self, deadline: float | None) -> Iterator[None]:
        """Waits for a turn in the queue and holds it inside a `with` block. Raises UnservedError at the deadline."""
        self._wait_for_turn(deadline)
        try:
            yield
        finally:
            self._release_turn()

    def _wait_for_turn(self, deadline: float | None) -> None:
        """Blocks until the calling thread's turn in the queue has come. Raises UnservedError at the deadline."""
        with self._lock:
            if self._left and not self._waiting:
                self._left -= 1
                return
            event = threading.Event()
            self._waiting.append(event)
        if event.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            return
        with self._lock:
            if event.is_set():  # called in the meantime: it is given on to the next
                is_called = True
            else:
                is_called = False
                self._waiting.remove(event)
        if is_called:
            self._release_turn()
        raise UnservedError("batch deadline")

    def _release_turn(self) -> None:
        """Gives the turn to the thread that has waited longest, or frees it if none waits."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._left += 1


class _Server:
    """The pool's handle of its server process."""

    def __init__(self, start: dict[str, Any]) -> None:
        """Starts the server process of the worker pool. Raises StartError with the process's own error message."""
        if not hasattr(os, "fork"):
            raise StartError("worker processes need fork(): use Linux, macOS or WSL")
        self.control, server_end = socket.socketpair()
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qwen_align.reward.worker_pool_server", str(server_end.fileno())],
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # a fork loses threads
                start_new_session=True,  # Ctrl-C is for the asker, whose end is the server's
            )
        try:
            self.control.sendall(json.dumps(start).encode() + b"\n")
            self.control.settimeout(START_LIMIT_S)
            answer = self._read_line()
        except BaseException:  # Ctrl-C, for one: what is being imported may never end by itself
            self.end_process()
            raise
        if answer != '"ready"':
            is_running = self.is_alive()
            self.end_process()
            if answer:
                raise StartError(json.loads(answer)["error"])
            late = f"it has not started in {START_LIMIT_S:g} s: what is done on import takes too long"
            raise StartError(late if is_running else "the worker server ended while it started; see its error above")

    def is_alive(self) -> bool:
        """Returns whether the server process is running."""
        return self._process.poll() is None

    def fork_worker(self) -> "_Worker":
        """Asks the server process to fork a new worker and returns its handle.

        Raises GoneError if the server has ended.
        """
        our_end, worker_end = socket.socketpair()
        try:
            with worker_end:
                socket.send_fds(self.control, [b"fork\n"], [worker_end.fileno()])
            pid = self._read_line()
        except OSError:
            pid = ""
        if not pid:
            our_end.close()
            raise GoneError("worker ended from outside")
        return _Worker(our_end, int(pid))

    def kill_worker(self, pid: int) -> bool:
        """Asks the server process to kill a worker. Returns False if the server, and its workers with it, has ended."""
        try:
            self.control.sendall(b"kill %d\n" % pid)
            return bool(self._read_line())
        except OSError:
            return False

    def end_process(self) -> None:
        """Ends the server process and all that it has started, and waits for it.

        It ends with its control socket, and kills what descends from it. One that is busy is stopped and killed after
        its descendants, which nobody could find when it is gone.
        """
        from qwen_align.reward.worker_pool_server import kill_descendants  # which only Unix can import

        self.control.close()
        deadline = time.monotonic() + KILL_AFTER_S
        if self._process.returncode is None:
            exited = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not waited for yet, so its number is its own
            while os.waitid(os.P_PID, self._process.pid, exited) is None and time.monotonic() < deadline:
                time.sleep(0.002)
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, alone in its group
                if os.waitid(os.P_PID, self._process.pid, exited) is None:
                    os.kill(self._process.pid, signal.SIGSTOP)
                    kill_descendants(self._process.pid)
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read_line(self) -> str:
        """Reads one line from the server process. Returns "" if the process has ended."""
        received = b""
        with contextlib.suppress(OSError):
            while not received.endswith(b"\n"):
                part = self.control.recv(4096)
                if not part:
                    break
                received += part
        return received.decode().strip()


class _Worker:
    """The pool's handle of a worker process."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel

    def ask(self, request: Any, limit: float) -> dict[str, Any]:
        """Sends a request to the worker process and returns its reply.

        Raises LateError at the time limit and DeadError if the worker died.
        """
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(self._read_reply(limit))  # type: ignore[no-any-return]
        except OSError as error:
            raise DeadError("worker died") from error

    def close_channel(self) -> None:
        """Closes the socket to the worker process, which makes it exit."""
        self._channel.close()

    def _read_reply(self, limit: float) -> bytes:
        """Reads the bytes of one reply of the worker process.

        Raises LateError at the time limit and DeadError if the worker died.
        """
        parts: list[bytes] = []
        size = 0
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while True:
            if not poll.poll(max(0.0, limit - time.monotonic()) * 1000):
                raise LateError("time limit")
            part = self._channel.recv(1 << 16)
            if not part:
                raise DeadError("worker died")
            parts.append(part)
            size += len(part)
            if part.endswith(b"\n"):
                return b"".join(parts)
            if size > _MAX_REPLY_BYTES:
                raise DeadError("reply too long")
