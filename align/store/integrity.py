"""Folders that are read only as they were written: sealed with every file's digest, compared before use."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.store.files import compute_sha256, read_json, to_canonical_json, write_json

COMPLETE = "complete.json"


class Damaged(ValueError):
    """A file is missing, or not what was written; the message says which."""


def seal(folder: Path, **facts: Any) -> None:
    """Writes complete.json, with these facts and every file's sha256; all of it is on disk when this returns."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = compute_sha256(path)
    record = {"files": files, **facts}
    write_json(folder / COMPLETE, {**record, "sha256": _digest(record)})


def opened(folder: Path) -> dict[str, Any]:
    """What the folder was sealed with; raises Damaged unless that and every file are as they were."""
    try:
        record = read_json(folder / COMPLETE)
        digest = record.pop("sha256")
    except FileNotFoundError:
        raise Damaged(f"{COMPLETE} is missing") from None
    except (ValueError, KeyError):
        raise Damaged(f"{COMPLETE} is cut, or of another version") from None
    if digest != _digest(record):
        raise Damaged(f"{COMPLETE} is not what was written")
    compare(folder, record["files"])
    return record


def compare(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises Damaged for the first file whose sha256 is not the one given."""
    for name, digest in digests.items():
        try:
            found = compute_sha256(folder / name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        if found != digest:
            raise Damaged(f"{name} is not what was written: its sha256 is {found[:12]}, not {digest[:12]}")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_canonical_json(record).encode()).hexdigest()
