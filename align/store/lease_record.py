"""What a lease's file says, what an observer may conclude from it, and the times that all hosts agree on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self

from qwen_align.align.errors import StageError
from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.process_identity import ProcessIdentity, is_process_alive

HEARTBEAT_S = 5.0
# NFS clients keep what they know of a folder, a missing file included, for up to 60 s (acdirmax of nfs(5)).
VISIBILITY_S = 60.0
# A file server that is restarted is away for tens of seconds. A stage stops where it is away for longer.
FENCE_S = 45.0
# More than 2 FENCE_S + VISIBILITY_S and some seconds, see `lease.py`.
EXPIRY_S = 180.0
_BLOCK = 512  # a file's length is a multiple of it, with room for the figures in it to grow

held_tokens: set[str] = set()  # of the leases of this process


class LeaseLost(StageError):
    """The error for a lease that its holder could not renew in time, or that another has taken."""


class LeaseHeld(StageError):
    """The error for a lease that another process holds. `holder` is None where it cannot be read."""

    def __init__(self, holder: "LeaseRecord | None", me: ProcessIdentity) -> None:
        super().__init__(describe_holder(holder, me))
        self.holder = holder


def build_loss_error(folder: Path, reason: str) -> LeaseLost:
    """Returns the error for a lease that is lost."""
    return LeaseLost(
        f"{folder.parent}: this process may no longer write there, as another host's may by now: {reason}; "
        "run again to go on"
    )


@dataclass(frozen=True)
class LeaseRecord:
    """The content of a lease's file.

    `beat`: counts heartbeats; `beat_at` and `taken_at`: seconds of the holder's own clock, when it began to write the
    last one and after it had created the file. `members`: earlier numbers of a joint lease that may be held still.
    `is_shared`: whether processes of several machines have had the lease. `spans_hosts`: whether processes on other
    hosts write under it, which do not die with its holder.
    """

    token: str
    holder: ProcessIdentity
    beat: int = 0
    beat_at: float = 0.0
    taken_at: float | None = None
    is_released: bool = False
    is_shared: bool = False
    spans_hosts: bool = False
    members: list[int] = field(default_factory=list)

    def to_bytes(self, size: int = 0) -> bytes:
        """Returns the record as JSON, filled up with spaces to a size: a file of one length is never half old."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        size = size or (len(content) // _BLOCK + 2) * _BLOCK
        return content.ljust(size - 1) + b"\n"

    def may_replace(self, content: bytes) -> bool:
        """Returns whether a file's content is of this lease, or of none that can be read."""
        found = self.from_bytes(content)
        return found is None or found.token == self.token

    @classmethod
    def from_bytes(cls, content: bytes) -> Self | None:
        """Reads a record. Returns None where there is none, as after a loss of power in the middle of writing it."""
        try:
            raw = json.loads(content)
            record = cls(**{**raw, "holder": ProcessIdentity(**raw["holder"])})
        except (ValueError, TypeError, KeyError):
            return None
        numbers = (record.holder.pid, record.beat, record.beat_at, record.taken_at or 0.0, *record.members)
        return record if all(isinstance(number, int | float) for number in numbers) else None


def describe_holder(holder: LeaseRecord | None, me: ProcessIdentity) -> str:
    """Returns `process 12`, with the host where it is another."""
    if holder is None:
        return "a process that cannot be told"
    at = "" if holder.holder.is_on_machine_of(me) else f" on {holder.holder.host}"
    return f"process {holder.holder.pid}{at}"


State = Literal["free", "alive", "unknown"]


def judge_holder(record: LeaseRecord | None, me: ProcessIdentity) -> State:
    """Returns what a lease's file says of its holder to a process that may be on another machine."""
    if record is None:
        return "unknown"
    if record.is_released:
        return "free"
    if not record.holder.is_on_machine_of(me):
        return "unknown"
    if (record.holder.pid, record.holder.started) == (me.pid, me.started):
        return "alive" if record.token in held_tokens else "free"
    is_alive = is_process_alive(record.holder)
    if is_alive is None or (not is_alive and record.spans_hosts):
        return "unknown"
    return "alive" if is_alive else "free"


class LeaseWatch:
    """What an observer has seen of leases whose holders it cannot ask: since when each file is as it is."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Path, int], tuple[bytes, float]] = {}

    def note(self, files: LeaseFiles, number: int, content: bytes, *, before: float, after: float) -> float | None:
        """Notes a file's content and returns for how many seconds it has not changed. Returns None where it just has.

        `before` and `after`: the clock around the reading.
        """
        known, since = self._seen.get((files.folder, number), (content, after))
        has_changed = known != content
        self._seen[files.folder, number] = (content, after if has_changed else since)
        return None if has_changed else max(0.0, before - since)


class Sight(NamedTuple):
    """What one look at a lease's folder has shown: the last number, its record and whether it may be followed."""

    number: int
    record: LeaseRecord | None
    content: bytes | None
    state: Literal["free", "alive", "moved", "unknown", "changing"]
    seconds_left: float = 0.0  # until a lease of an unknown state may be followed


def look(files: LeaseFiles, watch: LeaseWatch, me: ProcessIdentity) -> Sight:
    """Looks at the last file of a lease."""
    numbers = files.list_numbers()
    if not numbers:
        return Sight(0, None, None, "free")
    number = numbers[-1]
    before = files.read_clock()
    content = files.read(number)
    if content is None:
        return Sight(number, None, None, "changing")
    record = LeaseRecord.from_bytes(content)
    state = judge_holder(record, me)
    if state != "unknown":
        return Sight(number, record, content, state)
    unchanged = watch.note(files, number, content, before=before, after=files.read_clock())
    if unchanged is None:
        return Sight(number, record, content, "moved")
    left = EXPIRY_S - unchanged
    return Sight(number, record, content, "free" if left <= 0 else "unknown", left)
