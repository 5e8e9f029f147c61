"""Locks a home: one process at a time renews the links of a run, or prunes."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"  # in the store's folder, beside the stages


@contextlib.contextmanager
def hold_home_lock(home: Path) -> Iterator[None]:
    """Holds the lock of a home inside the `with` block, after waiting for it."""
    store = home / "store"
    store.mkdir(parents=True, exist_ok=True)
    with (store / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
