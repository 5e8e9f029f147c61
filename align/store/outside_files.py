"""Notices that a file of the user's is no longer what it was when the keys were computed.

A stage's key holds the digests of the files it reads, and they are taken before the first stage runs. What a stage
makes of a file that was edited since then would be stored under the key of the file's earlier content.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.references import OutsideFile, PythonFile, find_outside_files
from qwen_align.align.settings.recipe import StageSpec
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.training import Optimizer
from qwen_align.align.store.digest_cache import DigestCache
from qwen_align.align.store.files import compute_sha256
from qwen_align.align.store.python_imports import find_dependencies

# Bytes up to which a file is read again. Of a larger one, inode, size and times tell, as it takes longer to write than
# they are coarse.
READ_AGAIN = 64 * 2**20
SECONDS_BETWEEN_LOOKS = 1.0


class OutsideFileChanged(StageError):
    """The error for a file that was edited after the keys were computed."""


def find_deepspeed_file(settings: StageSpec, runtime: Runtime) -> OutsideFile | None:
    """Returns the DeepSpeed file of a stage that trains with it, which may say another optimiser or learning rate."""
    return runtime.deepspeed if isinstance(settings, Optimizer) else None


def list_model_files(folder: Path) -> list[Path]:
    """Lists the files of a model folder that are in its key: all but hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


class OutsideFiles(NamedTuple):
    """The files outside the store that a stage's result depends on.

    digests: their sha256 by path, as they are in the stage's key. folders: model folders, all of whose files count.
    """

    digests: dict[str, str]
    folders: list[str]


NO_OUTSIDE_FILES = OutsideFiles({}, [])


def list_outside_files(settings: StageSpec, runtime: Runtime, model_folders: Iterable[Path]) -> list[Path]:
    """Lists the files outside the store that a stage's result depends on.

    They are those that its settings name, what Python files among them import, its DeepSpeed file, and the files of
    the given model folders.
    """
    paths: list[Path] = []
    for _, path in find_outside_files(settings):
        paths.append(Path(path))
        if isinstance(path, PythonFile):
            paths += find_dependencies(Path(path)).files.values()
    if deepspeed := find_deepspeed_file(settings, runtime):
        paths.append(Path(deepspeed))
    for folder in model_folders:
        paths += list_model_files(folder)
    return list(dict.fromkeys(paths))


def verify_outside_files(outside: OutsideFiles, cache: Path) -> None:
    """Compares the files that a stage depends on with the digests they had when its key was computed.

    `cache`: the store's file of known digests. Raises OutsideFileChanged, with the file's name, if one has changed or
    gone, or if a model folder has one more.
    """
    known = DigestCache(cache)
    for name, digest in outside.digests.items():
        path = Path(name)
        try:
            actual = compute_sha256(path) if path.stat().st_size <= READ_AGAIN else known.get_digest(path)
        except OSError:
            raise _build_error(name, "can no longer be read") from None
        if actual != digest:
            raise _build_error(name, "has changed")
    for path in (path for folder in outside.folders for path in list_model_files(Path(folder))):
        if str(path) not in outside.digests:
            raise _build_error(str(path), "has come")


def _build_error(name: str, what: str) -> OutsideFileChanged:
    """Returns the error for a file that is not what it was."""
    return OutsideFileChanged(
        f"{name}: {what} since the run began, when the stage's key was computed of it; nothing is stored. Run again, "
        "with the files left alone meanwhile"
    )


class OutsideFileWatch:
    """Watches the files that a running stage depends on, so that an edit which is undone before its end is noticed."""

    def __init__(self, outside: OutsideFiles, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = outside.digests
        self._clock = clock
        self._next_look = 0.0
        self._seen: dict[str, tuple[int, ...] | None] = {name: _get_identity(name) for name in outside.digests}
        self.error: OutsideFileChanged | None = None

    def has_changed(self) -> bool:
        """Returns whether a file has been seen with another content. Looks once a second, at times and sizes first."""
        if self.error is None and self._clock() >= self._next_look:
            self._next_look = self._clock() + SECONDS_BETWEEN_LOOKS
            self._digest_changed_files()
        return self.error is not None

    def _digest_changed_files(self) -> None:
        """Digests the files that have been written since the last time."""
        for name, digest in self._expected.items():
            identity = _get_identity(name)
            if identity == self._seen[name]:
                continue
            self._seen[name] = identity
            with contextlib.suppress(OSError):
                if identity is not None and compute_sha256(Path(name)) == digest:
                    continue
            self.error = _build_error(name, "has changed")
            return


def _get_identity(name: str) -> tuple[int, ...] | None:
    """Returns what changes when a file is written. Returns None if it is not there."""
    try:
        stat = Path(name).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
