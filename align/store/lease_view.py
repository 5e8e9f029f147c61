"""Looks at leases of others: who seems to hold one, and whether a run still holds that of a stage it has started."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.lease_record import (
    EXPIRY_S,
    FENCE_S,
    LeaseLost,
    LeaseRecord,
    LeaseWatch,
    build_loss_error,
    describe_holder,
    look,
)
from qwen_align.align.store.process_identity import identify_process

_LOOK_S = 0.5  # between two looks


class SeenHolder(NamedTuple):
    """Who seems to hold a lease: `process 12`, and its host where that is another than this, else ""."""

    process: str
    host: str


def find_holder(folder: Path) -> SeenHolder | None:
    """Returns who seems to hold the lease in a folder, for people to read. Returns None where nobody does.

    Whether a process on another host is alive is guessed from the time of its file, which another clock has set.
    """
    files, me = LeaseFiles(folder), identify_process()
    try:
        sight = look(files, LeaseWatch(), me)
    except OSError:  # hidden from this user
        return None
    if sight.state in ("free", "changing"):
        return None
    if sight.state == "unknown":
        age = files.measure_file_age(sight.number)
        if age is None or age > EXPIRY_S:
            return None
    is_here = sight.record is None or sight.record.holder.is_on_machine_of(me)
    return SeenHolder(
        describe_holder(sight.record, me), "" if is_here or sight.record is None else sight.record.holder.host
    )


def watch_unknown_holders(folders: Iterable[Path], watch: LeaseWatch, say: Callable[[str], None]) -> None:
    """Watches leases whose holders cannot be asked, all at once, until each was seen alive or silent long enough."""
    me, waiting, said = identify_process(), list(folders), False
    while waiting:
        files = [LeaseFiles(folder) for folder in waiting]
        sights = [look(one, watch, me) for one in files]
        left = [sight.seconds_left for sight in sights if sight.state == "unknown"]
        if left and not said:
            said = True
            say(f"other hosts may work on {len(left)} stages; waiting {max(left):.0f} s at most for a sign of life")
        waiting = [folder for folder, sight in zip(waiting, sights, strict=True) if sight.state == "unknown"]
        if waiting:
            files[0].sleep(_LOOK_S)


class _Beat(NamedTuple):
    """A heartbeat of another machine: its number, the holder's clock when it began, this one's when it was seen."""

    number: int
    begun_there: float
    seen_here: float


class LeaseView:
    """A lease as a process sees it that works for its holder, on whatever machine: one of the processes of a stage.

    `described`: what `Lease.describe` returns.
    """

    def __init__(self, described: Mapping[str, Any], files: LeaseFiles | None = None) -> None:
        self._files = files or LeaseFiles(Path(described["folder"]))
        self._number, self._token = int(described["number"]), str(described["token"])
        self._me = identify_process()
        self._beat: _Beat | None = None
        self._alive_at: float | None = None
        self._began = self._files.read_clock()

    @property
    def silence(self) -> float:
        """Returns for how many seconds the holder was not seen alive. Looks at no file."""
        return self._files.read_clock() - (self._began if self._alive_at is None else self._alive_at)

    def measure_silence(self) -> float | None:
        """Returns how many seconds ago the holder was alive, at most. Returns None before it was seen alive.

        Raises LeaseLost where the lease was given back or is another's by now.
        """
        record = self._read()
        if record:
            self._check_record(record)
            if record.holder.is_on_machine_of(self._me):
                self._alive_at = record.beat_at
            else:
                self._note_beat(record)
        return None if self._alive_at is None else self.silence

    def _read(self) -> LeaseRecord | None:
        try:
            if max(self._files.list_numbers(), default=0) > self._number:
                raise self._build_error("another process has it")
            return LeaseRecord.from_bytes(self._files.read(self._number) or b"")
        except OSError:  # out of reach for now
            return None

    def _check_record(self, record: LeaseRecord) -> None:
        if record.token != self._token:
            raise self._build_error("another process has it")
        if record.is_released:
            raise self._build_error("it was given back")

    def _note_beat(self, record: LeaseRecord) -> None:
        """Notes a heartbeat of another machine: it was begun when it was seen, or earlier by the holder's clock.

        One that a host without a connection had still to write may be seen long after it was begun.
        """
        now = self._files.read_clock()
        last = self._beat
        if last is None or record.beat > last.number:
            if last:
                self._alive_at = min(now, last.seen_here + record.beat_at - last.begun_there)
            self._beat = _Beat(record.beat, record.beat_at, now)

    def require_held(self) -> None:
        """Raises LeaseLost unless the holder was alive lately."""
        silence = self.measure_silence()
        if silence is None or silence > FENCE_S:
            raise self._build_error("its heartbeat has stopped")

    def _build_error(self, reason: str) -> LeaseLost:
        return build_loss_error(self._files.folder, f"the lease of its run is lost: {reason}")
