"""Cells without namespaces: each has a folder, and where the kernel has file rules sees little else."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile

from qwen_align.reward.code import kernel, landlock
from qwen_align.reward.code.job import Entry, Limits
from qwen_align.reward.code.namespaces import library_folders


class Folders:
    """Where cells leave a server that shares the machine's file system, processes and network."""

    owns_processes = False

    def __init__(self, packages: list[str]) -> None:
        self._base = tempfile.mkdtemp(prefix="qwen-align-cells-")
        self._own: dict[int, str] = {}  # by process id
        self._next = ""
        self._readable = [*library_folders(), *packages] if _has_file_rules() else None
        self.packages = os.path.join(self._base, "packages")
        os.mkdir(self.packages)
        for path in packages:  # not the folder they are in: what else is installed may hold the answers
            os.symlink(path, os.path.join(self.packages, os.path.basename(path)))
        if self._readable:
            self._readable.append(self.packages)

    def fork(self) -> int:
        """As os.fork; the child has a folder."""
        self._next = tempfile.mkdtemp(dir=self._base)
        pid = os.fork()
        if pid:
            self._own[pid] = self._next
        return pid

    def close_behind(self, entry: Entry, limits: Limits) -> None:
        """In the child: goes into its folder, and leaves the files of others where the kernel has rules for that."""
        os.chdir(self._next)
        os.environ["HOME"] = self._next
        if sys.platform != "linux":
            return
        kernel.drop_capabilities()  # root's cells could else raise their limits
        kernel.no_new_privileges()
        if self._readable:
            landlock.only_files(self._readable, self._next)

    def kill(self, pid: int) -> None:
        """Ends a cell: its first process and all of its session's group."""
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)

    def ended(self, pid: int) -> None:
        """Removes what a cell whose first process ended left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(self._own.pop(pid), ignore_errors=True)

    def close(self) -> None:
        """Removes all folders."""
        shutil.rmtree(self._base, ignore_errors=True)


def _has_file_rules() -> bool:
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        return landlock.version() > 0
    return False
