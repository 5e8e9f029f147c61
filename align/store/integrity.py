"""Seals folders with the digest of every file and verifies them before use."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.store.files import compute_sha256, read_json, to_canonical_json, write_json

COMPLETE = "complete.json"


class Damaged(ValueError):
    """The error for a file that is missing or differs from what was written. The message says which file."""


def seal_folder(folder: Path, **facts: Any) -> None:
    """Writes complete.json with the sha256 of every file in a folder and with the given facts.

    All of it is on disk when this returns.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = compute_sha256(path)
    record = {"files": files, **facts}
    write_json(folder / COMPLETE, {**record, "sha256": _compute_record_digest(record)})


def verify_sealed_folder(folder: Path) -> dict[str, Any]:
    """Verifies a sealed folder and returns its record.

    Raises Damaged unless the record and every file are unchanged.
    """
    try:
        record = read_json(folder / COMPLETE)
        digest = record.pop("sha256")
    except FileNotFoundError:
        raise Damaged(f"{COMPLETE} is missing") from None
    except (ValueError, KeyError):
        raise Damaged(f"{COMPLETE} is cut, or of another version") from None
    if digest != _compute_record_digest(record):
        raise Damaged(f"{COMPLETE} is not what was written")
    verify_digests(folder, record["files"])
    return record


def verify_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Compares files with the sha256 given for each. Raises Damaged for the first file that differs or is missing."""
    for name, digest in digests.items():
        try:
            actual_digest = compute_sha256(folder / name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        if actual_digest != digest:
            raise Damaged(f"{name} is not what was written: its sha256 is {actual_digest[:12]}, not {digest[:12]}")


def _compute_record_digest(record: Mapping[str, Any]) -> str:
    """Returns the sha256 of the content of a seal record."""
    return hashlib.sha256(to_canonical_json(record).encode()).hexdigest()
