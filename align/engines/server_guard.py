"""Runs a server until it ends or whoever started it does, and then ends every process that the server has started.

`python server_guard.py COMMAND...`, a script of its own without imports of this package. Its standard input is a pipe:
when that is closed, by a death of any kind too, the server is ended. A server has processes of its own, which outlive
it where it is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

GRACE_S = 10.0  # our choice: a vLLM that is asked to end does so in 2 to 5 s
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(command: list[str]) -> int:
    """Runs the command and returns its exit code."""
    _ask_kernel(_SET_CHILD_SUBREAPER, 1)  # what the server leaves behind becomes a child of this process
    is_over = threading.Event()

    def end(*_: int | FrameType | None) -> None:
        is_over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: _ask_kernel(_SET_PDEATHSIG, signal.SIGKILL)
    )
    threading.Thread(target=_wait_for_end_of_input, args=(is_over,), daemon=True).start()
    while not is_over.is_set() and server.poll() is None:
        is_over.wait(0.2)
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
    _kill_descendants()
    code = server.wait()
    return code if code >= 0 else 128 - code  # as a shell says it of a signal


def _wait_for_end_of_input(is_over: threading.Event) -> None:
    """Waits until standard input is closed. Unbuffered: Python aborts where it ends while a thread reads its buffer."""
    while os.read(0, 1):
        pass
    is_over.set()


def _kill_descendants() -> None:
    """Kills all processes below this one, until there is none."""
    deadline = time.monotonic() + GRACE_S
    while (children := _list_children()) and time.monotonic() < deadline:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.05)


def _list_children() -> list[int]:
    """Returns the ids of this process's children, orphans of its descendants among them."""
    own = os.getpid()
    children = []
    for entry in os.listdir("/proc") if sys.platform == "linux" else []:
        if entry.isdecimal():
            with suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if int(parent) == own and state != "Z":
                    children.append(int(entry))
    return children


def _ask_kernel(what: int, value: int) -> None:
    """Sets an attribute of this process, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(what, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
