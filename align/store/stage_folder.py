"""Manages a stage's folder in the store: its manifest, its lease and its clean-up."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen_align.align.errors import AlignError, Preempted, StageError
from qwen_align.align.store.files import read_json, remove_tree
from qwen_align.align.store.lease import Lease, hold_lease
from qwen_align.align.store.lease_record import VISIBILITY_S, LeaseHeld, LeaseWatch
from qwen_align.align.store.lease_view import SeenHolder, find_holder

LEASE = "lease"  # the folder of the lease in a stage's folder, and in a run's
OLD_LOCK = "lock"  # what versions before leases left in its place

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
        """Deletes checkpoints and partial files that a killed process may have left in a finished stage's folder.

        Where a process may be about to do so itself they are left to it.
        """
        for name in UNFINISHED:
            if (self.path / name).exists():
                with contextlib.suppress(StageError), self.hold_lease(may_wait=False):
                    remove_tree(self.path / name)

    @contextlib.contextmanager
    def hold_lease(
        self,
        *,
        may_wait: bool = True,
        spans_hosts: bool = False,
        watch: LeaseWatch | None = None,
        say: Callable[[str], None] = lambda message: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Lease]:
        """Holds the lease of the stage's folder inside the `with` block. `may_wait` and on are those of `take_lease`.

        Raises StageError when another process has it or may have it, Preempted once `stop` returns true.
        """
        try:
            with hold_lease(
                self.path / LEASE, may_wait=may_wait, spans_hosts=spans_hosts, watch=watch, say=say, stop=stop
            ) as lease:
                if may_wait and lease.follows_other_machine:
                    self._wait_for_visibility(lease, say, stop)
                yield lease
        except LeaseHeld as error:
            raise StageError(
                f"{self.path}: {error} is working on this stage; wait for it, or stop it and run again"
            ) from None

    def _wait_for_visibility(self, lease: Lease, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Waits until all that another host has written here can be seen: at most until the stage is seen complete."""
        assert lease.before
        until = time.monotonic() + VISIBILITY_S
        if not self.is_complete:
            host = lease.before.holder.host
            say(f"{self.path}: waiting until all that {host} has written there is seen ({VISIBILITY_S:.0f} s at most)")
        while not self.is_complete and time.monotonic() < until:
            if stop():
                raise Preempted("stopped as asked; run again to go on")
            time.sleep(0.2)

    def find_holder(self) -> SeenHolder | None:
        """Returns the process that seems to be working on the stage, for people to read. Returns None if none does."""
        return find_holder(self.path / LEASE)

    def delete_contents(self) -> None:
        """Deletes the stage's result and all checkpoints. The lease stays."""
        (self.path / "manifest.json").unlink(missing_ok=True)  # first, or a kill here would leave half a result
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name != LEASE:
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
