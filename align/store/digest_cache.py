"""Caches the sha256 of the user's files, so that a plan reads big files once."""

import contextlib
from pathlib import Path

from qwen_align.align.store.files import compute_sha256, read_json, write_json

DIGESTS = "digests.json"  # in the store's folder: the cache of digests of the user's files


class DigestCache:
    """A cache of the sha256 of files by path, size, times of modification and of change, and inode.

    Whoever overwrites a file can set its modification time back, but not the time of change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] | None = None
        self._has_new = False

    def get_digest(self, path: Path) -> str:
        """Returns a file's sha256, from the cache if the file is unchanged. Raises OSError when it cannot be read."""
        if self._known is None:
            self._known = self._load()
        stat = path.stat()
        identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"
        if identity not in self._known:
            for stale in [known for known in self._known if known.startswith(f"{path.resolve()}:")]:
                del self._known[stale]
            self._known[identity] = compute_sha256(path)
            self._has_new = True
        return self._known[identity]

    def save(self) -> None:
        """Writes new digests to the cache file. A cache that cannot be written costs time and nothing else."""
        with contextlib.suppress(OSError):
            if self._known and self._has_new and self.path.parent.exists():
                write_json(self.path, self._known)

    def _load(self) -> dict[str, str]:
        """Reads the cached digests of earlier runs. Returns {} when there are none."""
        try:
            known = read_json(self.path)
            return {identity: digest for identity, digest in known.items() if isinstance(digest, str)}
        except (OSError, ValueError):  # none yet, or damaged: it is written anew
            return {}
