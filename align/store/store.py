"""The store: a folder a stage, named by the key of everything its result depends on."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.models.model_files import model_folder
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.references import OutsideFile, Ref, outside_files, to_plain_value
from qwen_align.align.settings.recipe import ModelSource
from qwen_align.align.stages.registry import CODE_VERSIONS
from qwen_align.align.store.files import compute_sha256, read_json, remove_tree, to_canonical_json, write_json
from qwen_align.align.store.keys import list_key_fields

UNFINISHED = ("checkpoints", "parts")  # folders of a stage that is not complete
_NOT_IN_KEY = {"name", "runtime", "seed"}  # the seed stands beside the settings, resolved


class Folder:
    """A stage's folder. It is complete if and only if it holds `manifest.json`, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_complete(self) -> bool:
        return (self.path / "manifest.json").exists()

    def manifest(self) -> dict[str, Any]:
        """Raises StageError when it cannot be read."""
        try:
            return read_json(self.path / "manifest.json")
        except ValueError:
            raise StageError(
                f"{self.path / 'manifest.json'}: cannot be read; delete it to make the stage again"
            ) from None

    def remove_leftovers(self) -> None:
        """Deletes what a finished stage needs no more: checkpoints and parts, which a kill at its end may have left."""
        for name in UNFINISHED:
            if (self.path / name).exists():
                with self.locked():
                    remove_tree(self.path / name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock; raises StageError when another process has it."""
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

    def clear(self) -> None:
        """Forgets the result and all checkpoints."""
        (self.path / "manifest.json").unlink(missing_ok=True)  # first, or a kill here would leave half a result
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests = _DigestCache(root / "digests.json")

    def folder(self, kind: str, key: str) -> Folder:
        return Folder(self.root / f"{kind}-{key[:16]}")

    def key(self, stage: Stage, input_keys: Mapping[str, str]) -> str:
        """sha256 of what the result depends on; `input_keys` maps each reference to its target's key.

        Raises RecipeError naming the setting when an outside file cannot be read.
        """
        for place, path in outside_files(stage.settings):
            try:
                self.file_digest(path)
            except OSError as error:
                what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
                raise RecipeError(
                    f"stage '{stage.origin}': {place}: {path}: {what}; a relative path starts at the recipe's folder"
                ) from None

        def ref(one: Ref) -> dict[str, str]:
            return {"input": input_keys[one]}

        def file(path: OutsideFile) -> dict[str, str]:
            return {"sha256": self.file_digest(path)}

        settings = {
            name: to_plain_value(value, ref=ref, file=file, fields=list_key_fields)
            for name, value in list_key_fields(stage.settings)
            if name not in _NOT_IN_KEY
        }
        whole: dict[str, Any] = {"settings": settings, "code": CODE_VERSIONS[stage.kind], "seed": stage.seed}
        if depends := stage.settings.runtime_in_key(stage.runtime):
            whole["runtime"] = depends
        return hashlib.sha256(to_canonical_json(whole).encode()).hexdigest()

    def model_key(self, source: ModelSource) -> str:
        """Key of a model from outside: its files' digests, or its hub id and commit; raises RecipeError."""
        if source.hub:
            return f"hub:{source.hub}@{source.revision}"
        folder = model_folder(source)
        digests = {
            str(path.relative_to(folder)): self.file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        return hashlib.sha256(to_canonical_json(digests).encode()).hexdigest()

    def file_digest(self, path: Path | str) -> str:
        return self._digests.of(Path(path))

    def save_digests(self) -> None:
        """Keeps the digests of outside files for the next time."""
        self._digests.save()


class _DigestCache:
    """sha256 of files by (path, size, mtime, inode), so that big ones are read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] | None = None
        self._is_new = False

    def of(self, path: Path) -> str:
        """Raises OSError when the file cannot be read."""
        if self._known is None:
            self._known = self._read()
        stat = path.stat()
        name = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        if name not in self._known:
            for stale in [known for known in self._known if known.startswith(f"{path.resolve()}:")]:
                del self._known[stale]
            self._known[name] = compute_sha256(path)
            self._is_new = True
        return self._known[name]

    def save(self) -> None:
        """A cache that cannot be written costs time and nothing else: a run says itself when the disk is full."""
        with contextlib.suppress(OSError):
            if self._known and self._is_new and self.path.parent.exists():
                write_json(self.path, self._known)

    def _read(self) -> dict[str, str]:
        try:
            return read_json(self.path)
        except (OSError, ValueError):  # none yet, or not ours: it is made anew
            return {}
