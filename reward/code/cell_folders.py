"""Sandbox isolation without namespaces (`isolation: process`), in which each cell process has its own folder."""

import contextlib
import fcntl
import glob
import os
import resource
import signal
import sys
import tempfile
from typing import NoReturn

from qwen_align.reward.code import landlock, syscalls
from qwen_align.reward.code.namespaces import TIME_ZONES, list_library_folders
from qwen_align.reward.code.server_messages import Entry, Limits

_PREFIX = "qwen-align-cells-"
_LOCK = "lock"
_REMOVAL_LIMIT_S = 60
"""For what one cell left, wall clock and CPU: 100,000 files take 3 s."""
_REMOVE_COMMAND = 'rm -rf "$0" || { chmod -R u+rwx "$0"; exec rm -rf "$0"; }'
"""Not by our own code: `rm` needs no recursion for a folder nested deeper than a path can say."""


class CellFolders:
    """Isolation without namespaces, in which sandbox cells share the machine's file system, processes and network.

    Each cell has a folder of its own, and where the kernel has file rules it sees little else.
    """

    owns_processes = False

    def __init__(self, packages: list[str]) -> None:
        _remove_stale_folders()
        self._base = tempfile.mkdtemp(prefix=_PREFIX)
        _lock_folder(self._base)
        self._own: dict[int, str] = {}  # by process id
        self._next = ""
        self._readable = [*list_library_folders(), *packages] if _has_landlock() else None
        if self._readable and os.path.isdir(TIME_ZONES):
            self._readable.append(TIME_ZONES)
        self.packages = os.path.join(self._base, "packages")
        os.mkdir(self.packages)
        for path in packages:  # not the folder they are in: what else is installed may hold the answers
            os.symlink(path, os.path.join(self.packages, os.path.basename(path)))
        if self._readable:
            self._readable.append(self.packages)

    def fork_cell(self) -> int:
        """Forks a sandbox cell process with a folder of its own. Returns as os.fork does."""
        self._next = tempfile.mkdtemp(dir=self._base)
        pid = os.fork()
        if pid:
            self._own[pid] = self._next
        return pid

    def isolate_cell(self, entry: Entry, limits: Limits) -> None:
        """Moves a forked cell process into its folder and hides other files from it if the kernel supports it."""
        os.chdir(self._next)
        os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = self._next
        if sys.platform != "linux":
            return
        syscalls.drop_capabilities()  # root's cells could else raise their limits
        syscalls.forbid_new_privileges()
        if self._readable:
            landlock.restrict_files(self._readable, self._next)

    def kill_cell(self, pid: int) -> None:
        """Kills a sandbox cell's first process and all processes of its process group."""
        for send_signal in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send_signal(pid, signal.SIGKILL)

    def clean_up_cell(self, pid: int) -> None:
        """Removes the remaining processes and files of a sandbox cell after its first process has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        folder = self._own.pop(pid)
        try:
            os.rmdir(folder)
        except OSError:  # it left something, perhaps much: other cells' deadlines do not wait for that
            _start_removal(folder)

    def remove_all(self) -> None:
        """Removes the folders of all sandbox cells."""
        os.waitpid(_start_removal(self._base), 0)


def _lock_folder(folder: str) -> None:
    """Locks a folder to mark it as in use while this process lives."""
    unlocked = os.path.join(folder, "new")
    fcntl.flock(os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)
    os.rename(unlocked, os.path.join(folder, _LOCK))  # only now: nobody sees it before it is locked


def _remove_stale_folders() -> None:
    """Removes the sandbox folders that killed servers left on disk."""
    for folder in glob.glob(os.path.join(tempfile.gettempdir(), f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # another user's, or in use
            lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _start_removal(folder)
            finally:
                os.close(lock)


def _start_removal(folder: str) -> int:
    """Starts a child process that removes a folder within a time limit. Returns its process id."""
    pid = os.fork()
    if not pid:
        _run_removal(folder)
    return pid


def _run_removal(folder: str) -> NoReturn:
    """Removes a folder in a child process under resource limits, and exits."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        syscalls.close_files_from(3)
        resource.setrlimit(resource.RLIMIT_CPU, (_REMOVAL_LIMIT_S, _REMOVAL_LIMIT_S))
        signal.alarm(_REMOVAL_LIMIT_S)
        os.execv("/bin/sh", ["sh", "-c", _REMOVE_COMMAND, folder])
    finally:
        os._exit(1)


def _has_landlock() -> bool:
    """Returns whether this machine's kernel supports Landlock file rules."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        return landlock.get_landlock_version() > 0
    return False
