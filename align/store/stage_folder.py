"""Manages a stage's folder in the store: its manifest, its lock and its clean-up."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qwen_align.align.errors import AlignError, StageError
from qwen_align.align.store.files import read_json, remove_tree

UNFINISHED = ("checkpoints", "parts", "rendered")  # folders of a stage that is not complete


_MANIFEST_FIELDS = {"key": str, "kind": str, "outputs": dict, "summary": dict, "libraries": dict, "seconds": float}


class StageFolder:
    """A stage's folder in the store. It is complete if and only if it holds `manifest.json`, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_complete(self) -> bool:
        """Returns whether the stage's result is complete."""
        return (self.path / "manifest.json").exists()

    def read_manifest(self) -> dict[str, Any]:
        """Reads manifest.json, the record of a finished stage. Raises StageError when it is damaged."""
        try:
            manifest = read_json(self.path / "manifest.json")
        except ValueError:
            raise self._build_damage_error("cannot be read") from None
        for field, kind in _MANIFEST_FIELDS.items():
            if not isinstance(manifest.get(field, kind()), kind):
                raise self._build_damage_error(f"'{field}' is damaged")
        return manifest

    def _build_damage_error(self, problem: str) -> StageError:
        """Returns the error for a damaged manifest."""
        return StageError(f"{self.path / 'manifest.json'}: {problem}; delete it to make the stage again")

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
        with self._open_lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StageError(
                    f"{self.path}: process {lock.read().strip() or '?'} is working on this stage; "
                    "wait for it, or stop it and run again"
                ) from None
            if os.fstat(lock.fileno()).st_nlink == 0:
                raise StageError(f"{self.path}: was just deleted by another process; run again")
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

    def _open_lock_file(self) -> IO[str]:
        """Opens the lock file of the stage's folder, after making both where they are missing."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the folder was deleted in between
                return (self.path / "lock").open("a+")

    def delete_contents(self) -> None:
        """Deletes the stage's result and all checkpoints. The lock file stays."""
        (self.path / "manifest.json").unlink(missing_ok=True)  # first, or a kill here would leave half a result
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def explain_damage(name: str, folder: Path) -> Iterator[None]:
    """Turns what goes wrong while a stored stage's files are read into a StageError that names the stage."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, AlignError):
            raise
        problem = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise StageError(
            f"stage '{name}': {folder}: its files are damaged ({problem}); recompute it with --force {name}"
        ) from None
