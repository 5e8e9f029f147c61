"""Reads, digests and atomically writes files. JSON and text are complete on disk or not there at all."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def compute_sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Deletes a folder with all it contains. Does nothing if the folder does not exist."""
    if folder.exists():
        shutil.rmtree(folder)


def to_canonical_json(value: Any) -> str:
    """Returns a value as JSON with sorted keys, the form over which digests are taken."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises ValueError when the file holds none."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: nested too deep") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: not a JSON object")
    return loaded


def write_json(path: Path, value: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> None:
    """Writes a JSON object atomically, with sorted keys. `check` is that of `write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n", check)


def write_text(path: Path, text: str, check: Callable[[], None] = lambda: None) -> None:
    """Writes a text file atomically. A kill leaves the old file. The text is on disk when this returns.

    `check` is called when all is written but not in its place; with an error it raises the old file stays.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        check()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def get_new_file_mode() -> int:
    """Returns the mode that files get here which are made as usual, from the umask."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def measure_gib(folder: Path) -> float:
    """Returns the total size of all files in a folder, in GiB."""
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 2**30
