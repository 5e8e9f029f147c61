"""Seals folders with the digest of every file and verifies them before use."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.store.files import compute_sha256, read_json, to_canonical_json, write_json

COMPLETE = "complete.json"
_GONE_ON_NFS = ".nfs"  # what NFS calls a deleted file that a process still has open


class Damaged(ValueError):
    """The error for a file that is missing or differs from what was written. The message says which file."""


class Digest(NamedTuple):
    """What a file's bytes are known by: their sha256 and their number."""

    sha256: str
    size: int


def list_files(folder: Path) -> list[str]:
    """Returns the names of all files in a folder and below, relative to it and sorted."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_GONE_ON_NFS))
    return sorted(str(path.relative_to(folder)) for path in paths)


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, Digest]:
    """Returns the digest of each of the given files of a folder. They are on disk when this returns."""
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        digests[name] = Digest(compute_sha256(folder / name), (folder / name).stat().st_size)
    return digests


def seal_folder(folder: Path, digests: Mapping[str, Digest], **facts: Any) -> None:
    """Writes complete.json with the given digests of a folder's files, which others may have made, and given facts.

    It is on disk when this returns.
    """
    record = {
        "files": {name: digest.sha256 for name, digest in digests.items()},
        "sizes": {name: digest.size for name, digest in digests.items()},
        **facts,
    }
    write_json(folder / COMPLETE, {**record, "sha256": _compute_record_digest(record)})


def read_seal(folder: Path) -> dict[str, Any]:
    """Reads what a folder was sealed with; its files are not looked at.

    Raises Damaged unless the record is what was written.
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
    return record


def verify_names(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises Damaged where a sealed folder holds a file that it was not sealed with: a loader might read it."""
    foreign = [name for name in list_files(folder) if name != COMPLETE and name not in digests]
    if foreign:
        raise Damaged(f"{foreign[0]} was not there when it was sealed")


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
