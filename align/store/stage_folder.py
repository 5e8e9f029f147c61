"""Manages a stage's folder in the store: its manifest, its lock and its clean-up."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_align.align.errors import StageError
from qwen_align.align.store.files import read_json, remove_tree

UNFINISHED = ("checkpoints", "parts")  # folders of a stage that is not complete


class StageFolder:
    """A stage's folder in the store. It is complete if and only if it holds `manifest.json`, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_complete(self) -> bool:
        """Returns whether the stage's result is complete."""
        return (self.path / "manifest.json").exists()

    def read_manifest(self) -> dict[str, Any]:
        """Reads manifest.json, the record of a finished stage. Raises StageError when it cannot be read."""
        try:
            return read_json(self.path / "manifest.json")
        except ValueError:
            raise StageError(
                f"{self.path / 'manifest.json'}: cannot be read; delete it to make the stage again"
            ) from None

    def remove_leftovers(self) -> None:
        """Deletes checkpoints and partial files that a killed process may have left in a finished stage's folder."""
        for name in UNFINISHED:
            if (self.path / name).exists():
                with self.hold_lock():
                    remove_tree(self.path / name)

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Holds the lock of the stage's folder inside the `with` block.

        Raises StageError when another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StageError(
                    f"{self.path}: process {lock.read().strip() or '?'} is working on this stage; "
                    "wait for it, or stop it and run again"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @property
    def is_locked(self) -> bool:
        """Returns whether a process is working on the stage."""
        try:
            with (self.path / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def delete_contents(self) -> None:
        """Deletes the stage's result and all checkpoints. The lock file stays."""
        (self.path / "manifest.json").unlink(missing_ok=True)  # first, or a kill here would leave half a result
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
