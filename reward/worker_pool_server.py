"""The server process of a worker pool, which imports the needed modules once and forks the workers.

Started as `python -m qwen_align.reward.worker_pool_server FD`. On the control socket it reads one JSON line with entry,
argument and memory limit, answers "ready" or the error as JSON, and then reads `fork` with the worker's socket attached
(answer: its pid) and `kill PID`. It ends, with every worker, when the control socket does.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_MAX_TEXT = 2000  # characters of an error


def main() -> None:
    """Runs the worker pool's server on the socket whose file descriptor is the first argument.

    Whatever a user's file has started on import, threads and processes, ends with it.
    """
    adopt_orphans()
    try:
        _serve()
    except Exception:  # noqa: BLE001  # the process ends below, before Python would report it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        kill_descendants()
        os._exit(0)  # not waiting for threads


def _serve() -> None:
    """Imports what the work needs, then forks and kills workers as asked, until the control socket ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    start = json.loads(_read_first_line(control))
    module, _, function_name = start["entry"].partition(":")
    try:
        with _end_with_asker(control):
            handle = getattr(importlib.import_module(module), function_name)(start["argument"])
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a user's file may raise anything; the asker says so
        control.sendall(json.dumps({"error": describe_exception(error)[:_MAX_TEXT]}).encode() + b"\n")
        return
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, pages shared with the workers
    control.sendall(b'"ready"\n')
    workers: set[int] = set()
    try:
        while True:
            message, fds, _, _ = socket.recv_fds(control, 64, 1)
            if not message:
                return
            if fds:
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _run_worker(socket.socket(fileno=fds[0]), handle, start["memory_bytes"])
                os.close(fds[0])
                workers.add(pid)
                control.sendall(b"%d\n" % pid)
            else:
                pid = int(message.split()[1])
                _kill_workers({pid} & workers)
                workers.discard(pid)
                control.sendall(b"killed\n")
    finally:
        _kill_workers(workers)


@contextlib.contextmanager
def _end_with_asker(control: socket.socket) -> Iterator[None]:
    """Ends this process, and what it has started, if the asker ends inside the `with` block.

    A user's file may hang while it is imported, and nobody reads the control socket then.
    """
    reader, writer = os.pipe()

    def watch() -> None:
        poll = select.poll()
        poll.register(control, 0)  # only its end, which is always reported
        poll.register(reader, select.POLLIN)
        if reader not in [fd for fd, _ in poll.poll()]:
            kill_descendants()
            os.killpg(os.getpgid(0), signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.write(writer, b"x")
        watcher.join()  # threads do not survive the forks to come
        os.close(reader)
        os.close(writer)


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ends, so that it can find them. On Linux only."""
    if sys.platform == "linux":
        pr_set_child_subreaper = 36  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def kill_descendants(pid: int | None = None) -> None:
    """Kills all processes that descend from one, by default this, also those in sessions of their own. Linux only."""
    for _ in range(20):  # rounds: one that is killed may have started another
        descendants = _list_descendants(os.getpid() if pid is None else pid)
        if not descendants:
            return
        for descendant in descendants:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(descendant, signal.SIGKILL)
        time.sleep(0.005)


def _list_descendants(root: int) -> set[int]:
    """Lists the running descendants of a process. Returns none where there is no /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = path.read_text(errors="replace").rpartition(") ")[2].split()[:2]
            if state not in "ZX":
                parents[int(path.parent.name)] = int(parent)
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {root}


def describe_exception(error: BaseException) -> str:
    """Returns an exception's type and message with the line of the user's own code that it passed last.

    That is a line outside of this package, of Python and of installed packages; without one there is none.
    """
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.text:
        return f"{said}: {error.text.strip()}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users_own(frame.filename)]
    if not frames:
        return said
    last = frames[-1]
    return f"{said} ({Path(last.filename).name}, line {last.lineno}: {last.line})"


@cache
def _is_users_own(file: str) -> bool:
    """Returns whether a source file is neither this package's nor Python's nor an installed package's.

    Packages may lie in several folders: the environment's, the user's, those of a system that it builds on.
    """
    root, paths = Path(__file__).resolve().parents[1], sysconfig.get_paths()
    libraries = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    others = [root / "align", root / "reward", root / "data_builders", *libraries]
    return path.is_file() and not any(path.is_relative_to(other) for other in others)


def _kill_workers(workers: set[int]) -> None:
    """Kills worker processes and all processes they started."""
    for pid in workers:  # ours until waited for, so the number cannot have passed to another process
        with contextlib.suppress(ProcessLookupError):  # it has not got so far as to lead a group
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _read_first_line(control: socket.socket) -> bytes:
    """Reads the first line from the control socket. Exits if the socket closes before the line is complete."""
    received = b""
    while not received.endswith(b"\n"):
        part = control.recv(1 << 16)
        if not part:
            sys.exit(1)
        received += part
    return received


def _run_worker(channel: socket.socket, handle: Callable[[Any], Any], memory_bytes: int) -> None:
    """Answers requests in a forked worker process within a memory limit until the socket closes, and exits."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h; the server has one thread, whose death is its own
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))  # macOS refuses it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setsid()  # whatever the work starts is ended with it
    with contextlib.suppress(BrokenPipeError), channel, channel.makefile("rb") as requests:
        for line in requests:
            try:
                reply = {"reply": handle(json.loads(line))}
            except BaseException as error:  # noqa: BLE001  # whatever the work raises, sys.exit too, is the asker's to judge
                reply = {"raised": describe_exception(error)[:_MAX_TEXT]}
            channel.sendall(json.dumps(reply).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
