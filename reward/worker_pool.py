"""A pool of worker processes that are killed when an item takes too long: the only limit that holds against any input.

Threads and signals do not protect: big-integer arithmetic keeps the interpreter's lock, and a bare `except` swallows
an alarm. A server process (`worker_pool_server.py`) imports what the work needs once and forks the workers, so a killed
one is replaced in milliseconds. Requests and replies are JSON; nothing is unpickled.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

START_LIMIT_S = 60.0  # importing sympy takes a second, on a loaded machine ten
_MAX_REPLY_BYTES = 1 << 20  # bytes


class PoolError(Exception):
    """Raised where there is no reply; the message is a short, countable reason."""


class LateError(PoolError):
    """Raised where the worker was killed at the item's time limit."""


class UnservedError(PoolError):
    """Raised where the batch deadline passed before the work was done or its own limit reached."""


class DeadError(PoolError):
    """Raised where the worker died of its work: memory, a fatal signal, an exit."""


class GoneError(DeadError):
    """Raised where the server was ended from outside, twice."""


class WorkError(PoolError):
    """Raised where the work raised; the message names the exception."""


class StartError(PoolError):
    """Raised where the server could not start: a fault of the installation or of a user's file, not of an item."""


class Pool:
    """Up to `workers` processes that answer requests, one at a time each, within `limit_s` seconds of wall time.

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
        """Starts the server and waits until it is ready; raises StartError."""
        with self._lock:
            self._get_running_server()

    def ask(self, request: Any, *, deadline: float | None = None) -> Any:
        """Returns the handler's reply to a request; raises a PoolError.

        The limit counts from the start of the work, not from this call. `deadline` is a `time.monotonic()`.
        """
        with self._turns.hold_turn(deadline):
            try:
                return self._ask_worker(request, deadline)
            except GoneError:  # ended from outside: tried once more, then raised
                return self._ask_worker(request, deadline)

    def _ask_worker(self, request: Any, deadline: float | None) -> Any:
        """Sends a request to an idle or new worker and returns its reply."""
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
        """Ends the server and with it all workers; the next call starts others."""
        with self._lock:
            if self._server is not None:
                self._server.end_process()
            self._drop_server()

    def _reset(self) -> None:
        """Sets up a pool without a server."""
        self._lock = threading.Lock()
        self._turns = _FairQueue(self._workers)
        self._server: _Server | None = None
        self._idle: list[_Worker] = []

    def _forget_parents_server(self) -> None:
        """In a forked child: lets go of the server and the workers, which are the parent's."""
        if self._server is not None:
            self._server.control.close()
        self._drop_server()
        self._reset()

    def _drop_server(self) -> None:
        """Lets go of the server and its idle workers."""
        for worker in self._idle:
            worker.close_channel()
        self._idle, self._server = [], None

    def _get_running_server(self) -> "_Server":
        """Returns the server, started where none runs."""
        if self._server is not None and not self._server.is_alive():
            self._server.end_process()
            self._drop_server()
        if self._server is None:
            self._server = _Server(self._start)
        return self._server


class _FairQueue:
    """Lets `most` threads in at a time, in the order they came: a semaphore would let some wait for ever."""

    def __init__(self, n_turns: int) -> None:
        self._lock = threading.Lock()
        self._left = n_turns
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def hold_turn(self, deadline: float | None) -> Iterator[None]:
        """Waits for a turn and holds it; raises UnservedError if it has not come by the deadline."""
        self._wait_for_turn(deadline)
        try:
            yield
        finally:
            self._pass_on()

    def _wait_for_turn(self, deadline: float | None) -> None:
        """Returns when the turn has come; raises UnservedError at the deadline."""
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
            self._pass_on()
        raise UnservedError("batch deadline")

    def _pass_on(self) -> None:
        """Gives the turn to the thread that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._left += 1


class _Server:
    """The server process, as the pool sees it."""

    def __init__(self, start: dict[str, Any]) -> None:
        """Starts the server process; raises StartError with what it says of its start."""
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
        self.control.sendall(json.dumps(start).encode() + b"\n")
        self.control.settimeout(START_LIMIT_S)
        answer = self._read_line()
        if answer != "ready":
            self._process.kill()
            self.end_process()
            raise StartError(answer or "the worker server ended while it started; see its error above")

    def is_alive(self) -> bool:
        """Returns whether the server process runs."""
        return self._process.poll() is None

    def fork_worker(self) -> "_Worker":
        """Returns a new worker, forked from the server; raises GoneError."""
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
        """Kills a worker; returns False where the server is gone, with which its workers ended."""
        try:
            self.control.sendall(b"kill %d\n" % pid)
            return bool(self._read_line())
        except OSError:
            return False

    def end_process(self) -> None:
        """Ends the server process, which stops with its input."""
        self.control.close()  # it ends with its input
        self._process.wait()

    def _read_line(self) -> str:
        """Returns one line from the server, "" if it is gone."""
        received = b""
        with contextlib.suppress(OSError):
            while not received.endswith(b"\n"):
                part = self.control.recv(4096)
                if not part:
                    break
                received += part
        return received.decode().strip()


class _Worker:
    """A worker process, as the pool sees it."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel

    def ask(self, request: Any, limit: float) -> dict[str, Any]:
        """Returns the worker's answer to a request; raises LateError at the limit, DeadError."""
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(self._read_reply(limit))  # type: ignore[no-any-return]
        except OSError as error:
            raise DeadError("worker died") from error

    def close_channel(self) -> None:
        """Closes the worker's channel, with which it ends."""
        self._channel.close()

    def _read_reply(self, limit: float) -> bytes:
        """Returns the bytes of one reply; raises LateError at the limit, DeadError."""
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
