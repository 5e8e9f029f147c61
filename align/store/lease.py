"""Leases: which process, on any of several hosts, may write in a folder, without locks of the file system.

A lease's folder holds numbered files. Whoever creates the next number holds the lease, and creating is answered by the
file server, for one of those who ask alone. The next number may be created only when the holder of the last one has

- given it back, which its file says;
- died, which a process of the same boot and the same namespaces sees by its process number and start time; or
- not written its heartbeat for EXPIRY_S, by the clock of the one who watches. Clocks of two hosts are never compared.

A holder that has not written its heartbeat for FENCE_S, by its own clock, which goes on while the machine sleeps or the
process is stopped, has lost the lease, whether somebody else has it or not, and stops what it does.

Two never write at once as long as no host sees what another has written more than VISIBILITY_S late:

- Who sees a heartbeat unchanged for EXPIRY_S knows that it was written before that, and that no other was written until
  VISIBILITY_S ago. The holder has stopped FENCE_S after it began to write it. A process that works for the holder
  may have seen one heartbeat more, which never reached the others: it stops FENCE_S after that one was begun, less than
  FENCE_S later; if it is on another host, it may have seen the one before VISIBILITY_S late. So
  EXPIRY_S > 2 FENCE_S + VISIBILITY_S + the time between two looks and that of a process to end.
- Who sees old files only may create a number that was there and deleted. A file is deleted only when a later one has
  been there for VISIBILITY_S: whoever looks again after creating sees a later one, and leaves it to that one's holder.
- In a folder that was deleted and made anew numbers begin at 1 again. Before it creates a number one asks the server
  for the very file whose holder has gone.

What remains possible: a process that was stopped, or whose machine slept, for so long that its lease went to another
may write for a moment between going on and being ended (a stage's guard looks every second), and what a host without a
connection had still to write may reach the server when it is back. Neither becomes a stage's result, see
`align/pipeline/lease_guard.py`. Where a file system shows writes later than VISIBILITY_S nothing of this holds.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from qwen_align.align.errors import Preempted
from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.lease_record import (
    EXPIRY_S,
    FENCE_S,
    HEARTBEAT_S,
    VISIBILITY_S,
    LeaseHeld,
    LeaseLost,
    LeaseRecord,
    LeaseWatch,
    Sight,
    build_loss_error,
    describe_holder,
    held_tokens,
    judge_holder,
    look,
)
from qwen_align.align.store.process_identity import ProcessIdentity, identify_process

_LOOK_S = 0.5  # between two looks at a lease of another host
_QUEUE_S = (0.002, 0.2)  # between two looks at one of this machine, from the second on and at most
_HIDDEN_S = 1.0  # to wait for a file that is there but not seen, where nobody waits for another host
_RETRY_S = 1.0  # after a heartbeat that could not be written
_RELEASE_S = 5.0  # for a heartbeat that is being written, before the lease is left as it is
_FEW = 4  # files of one lease may lie there; more are looked at each time that so many are added


class Lease:
    """A lease that this process holds, or held: it is lost once the heartbeat could not be written for FENCE_S.

    `before`: the record of the one who held it before. `is_joint`: others may hold later numbers at the same time.
    """

    def __init__(
        self, files: LeaseFiles, number: int, record: LeaseRecord, *, before: LeaseRecord | None, is_joint: bool
    ) -> None:
        self.number = number
        self.record = replace(record, taken_at=files.read_clock())
        self.before = before
        self._files = files
        self._size = len(record.to_bytes())
        self._is_joint = is_joint
        self._process = os.getpid()
        self._writing = threading.Lock()
        self._is_over = False
        self._lost = ""
        self._problem = ""

    @property
    def members(self) -> list[int]:
        """Returns the earlier numbers of a joint lease whose holders may be at work still."""
        return self.record.members

    @property
    def follows_other_machine(self) -> bool:
        """Returns whether another machine has held it before and given it back, maybe a moment ago."""
        return (
            self.before is not None
            and self.before.is_released
            and not self.before.holder.is_on_machine_of(self.record.holder)
        )

    def describe(self) -> dict[str, Any]:
        """Returns what a process that works for the holder needs to see whether the lease is held: see `LeaseView`."""
        return {"folder": str(self._files.folder.resolve()), "number": self.number, "token": self.record.token}

    def check(self) -> None:
        """Raises LeaseLost unless the lease is held, by this process's clock. Reads no file."""
        silence = self._files.read_clock() - self.record.beat_at
        if not self._lost and silence > FENCE_S:
            problem = self._problem or "the process was stopped, the machine asleep or the disk out of reach"
            self._lost = f"no heartbeat could be written for {silence:.0f} s: {problem}"
        if self._lost:
            raise build_loss_error(self._files.folder, self._lost)

    def beat(self) -> None:
        """Writes the next heartbeat. Raises LeaseLost where the lease is lost, OSError where it cannot be written now.

        Deletes earlier files once nobody can take them for the last.
        """
        with self._writing:
            if not self._is_over:
                self._beat()

    def _beat(self) -> None:
        self.check()
        record = replace(self.record, beat=self.record.beat + 1, beat_at=self._files.read_clock())
        try:
            self._files.overwrite(self.number, record.to_bytes(self._size), record.may_replace)
        except FileNotFoundError:
            self._lost = f"{self.number}.json was deleted, or is another's"
        except OSError as error:
            self._problem = error.strerror or str(error)
            raise
        self.check()  # writing may have taken so long that another has the lease by now
        self.record, self._problem = record, ""
        numbers = self._files.list_numbers()
        if not self._is_joint and numbers and numbers[-1] > self.number:
            self._lost = f"another process has made {numbers[-1]}.json"
            self.check()
        if self._files.read_clock() - (self.record.taken_at or 0.0) > VISIBILITY_S:
            _delete_before(self._files, numbers, self.number, self.record)

    def end(self, *, release: bool = True) -> None:
        """Writes no more heartbeats and gives the lease back. One that is lost stays as it is.

        Does nothing in a fork of its holder. `release`: if false it is left to expire.
        """
        if os.getpid() != self._process:
            return
        is_quiet = self._writing.acquire(timeout=_RELEASE_S)
        self._is_over = True
        try:
            if is_quiet and release:
                self.check()
                record = replace(self.record, is_released=True)
                self._files.overwrite(self.number, record.to_bytes(self._size), record.may_replace)
        except (OSError, LeaseLost):
            return  # others see the process end, or the heartbeat
        finally:
            held_tokens.discard(self.record.token)
            if is_quiet:
                self._writing.release()


def _delete_before(files: LeaseFiles, numbers: Sequence[int], number: int, record: LeaseRecord) -> None:
    """Deletes the files before one that has been there for so long that everybody sees it."""
    for earlier in numbers:
        if earlier < number and earlier not in record.members:
            files.remove(earlier)
    files.remove_unfinished()


def _delete_superseded(files: LeaseFiles, last: int, me: ProcessIdentity) -> None:
    """Deletes earlier files of leases that were held too shortly to do so, where this machine's clock tells their age.

    It does so now and then, and asks one file, in the middle: of many half go, and the next time half of the others.
    """
    if last % _FEW:
        return
    numbers = files.list_numbers()
    if len(numbers) <= _FEW:
        return
    number = numbers[len(numbers) // 2]
    record = LeaseRecord.from_bytes(files.read(number) or b"")
    if record is None or record.taken_at is None or not record.holder.is_on_machine_of(me):
        return
    if files.read_clock() - record.taken_at > VISIBILITY_S:
        _delete_before(files, numbers, number, record)


def _create(
    files: LeaseFiles,
    number: int,
    me: ProcessIdentity,
    before: LeaseRecord | None,
    members: Sequence[int] | None = None,
    *,
    spans_hosts: bool = False,
) -> Lease | None:
    """Creates a lease's next file. Returns None where another has created it, or a later one.

    `members`: of a joint lease.

    Raises OSError where it cannot be written.
    """
    is_shared = before is not None and (before.is_shared or not before.holder.is_on_machine_of(me))
    record = LeaseRecord(
        secrets.token_hex(8),
        me,
        beat_at=files.read_clock(),
        is_shared=is_shared,
        spans_hosts=spans_hosts,
        members=list(members or ()),
    )
    held_tokens.add(record.token)  # before it can be seen, or another thread would take it for left
    lease = None
    try:
        # One that is made after later ones stays: whoever holds the last deletes it, once everybody sees that one.
        if files.create(number, record.to_bytes()) and max(files.list_numbers(), default=0) <= number:
            lease = Lease(files, number, record, before=before, is_joint=members is not None)
    finally:
        if lease is None:
            held_tokens.discard(record.token)
    return lease


def take_lease(
    files: LeaseFiles,
    me: ProcessIdentity,
    *,
    queue: bool = False,
    may_wait: bool = True,
    spans_hosts: bool = False,
    watch: LeaseWatch | None = None,
    say: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
) -> Lease:
    """Takes a lease, once nobody holds it.

    `queue`: waits for a holder that is alive, else raises LeaseHeld. `may_wait`: watches one that cannot be asked, for
    EXPIRY_S at most, else raises LeaseHeld; `say` is told so. `watch`: what was seen of it before. `spans_hosts`:
    whether processes on other hosts will write under it.

    Raises Preempted once `stop` returns true, OSError where the lease cannot be written.
    """
    watch, has_said, hidden_since, pause = watch or LeaseWatch(), False, None, _QUEUE_S[0]
    while True:
        sight = look(files, watch, me)
        if sight.state == "free" and (lease := _follow(files, sight, me, spans_hosts=spans_hosts)):
            return lease
        if sight.state in ("free", "changing"):  # another file is there, which is not seen yet
            hidden_since = hidden_since or files.read_clock()
            if files.read_clock() - hidden_since > (EXPIRY_S if may_wait else _HIDDEN_S):
                raise LeaseHeld(None, me)
        else:
            hidden_since = None
            if not queue and (sight.state != "unknown" or not may_wait):
                raise LeaseHeld(sight.record, me)
        if stop():
            raise Preempted("stopped as asked; run again to go on")
        if sight.state == "unknown" and not has_said:
            has_said = True
            say(
                f"{files.folder.parent}: {describe_holder(sight.record, me)} had this before and did not give it back; "
                f"waiting {sight.seconds_left:.0f} s at most for a sign of life"
            )
        files.sleep(_LOOK_S if sight.state in ("unknown", "moved") else pause)
        pause = min(1.5 * pause, _QUEUE_S[1])


def _follow(files: LeaseFiles, sight: Sight, me: ProcessIdentity, *, spans_hosts: bool) -> Lease | None:
    """Creates the file after the last that was seen, if that is there still.

    Returns None where others have one, or may have by now: a process can be stopped between creating and returning.
    """
    if sight.number and not files.confirm(sight.number, sight.content or b""):
        return None
    lease = _create(files, sight.number + 1, me, sight.record, spans_hosts=spans_hosts)
    if lease is None:
        return None
    _delete_superseded(files, lease.number, me)
    try:
        lease.check()
    except LeaseLost:
        held_tokens.discard(lease.record.token)
        return None
    return lease


def join_lease(files: LeaseFiles, me: ProcessIdentity) -> Lease:
    """Takes a lease that others may have too; `members` are the earlier ones that may be at work. Never waits.

    What cannot be seen counts as at work. Raises OSError where it cannot be written.
    """
    while True:
        numbers = files.list_numbers()
        last = numbers[-1] if numbers else 0
        record = LeaseRecord.from_bytes(files.read(last) or b"") if last else None
        earlier = set(numbers) if record is None else {*record.members, last}
        for number in count(last + 1):
            members = [one for one in sorted(earlier) if not _is_known_to_be_free(files, one, me)]
            if lease := _create(files, number, me, record, members):
                _delete_superseded(files, number, me)
                return lease
            if max(files.list_numbers(), default=0) > number:
                break
            earlier.add(number)


def _is_known_to_be_free(files: LeaseFiles, number: int, me: ProcessIdentity) -> bool:
    content = files.read(number)
    return content is not None and judge_holder(LeaseRecord.from_bytes(content), me) == "free"


@contextlib.contextmanager
def hold_lease(
    folder: Path,
    *,
    queue: bool = False,
    may_wait: bool = True,
    spans_hosts: bool = False,
    watch: LeaseWatch | None = None,
    say: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Lease]:
    """Holds the lease in a folder inside the `with` block. Arguments and errors are those of `take_lease`.

    Who writes for long asks `check` of the lease before.
    """
    files, me = LeaseFiles(folder), identify_process()
    lease = take_lease(
        files, me, queue=queue, may_wait=may_wait, spans_hosts=spans_hosts, watch=watch, say=say, stop=stop
    )
    with _keep(lease):
        yield lease


@contextlib.contextmanager
def hold_joint_lease(folder: Path) -> Iterator[Lease]:
    """Holds a lease inside the `with` block that others may hold too: its `members`. Raises OSError.

    Those that cannot be asked are watched meanwhile. Who gives no sign of life until the end, and for long enough, is
    no member for the next.
    """
    files, me, watch = LeaseFiles(folder), identify_process(), LeaseWatch()
    with _keep(join_lease(files, me)) as lease:
        for number in lease.members:
            _watch_member(files, watch, number)
        yield lease
        for number in lease.members:
            _watch_member(files, watch, number)


def _watch_member(files: LeaseFiles, watch: LeaseWatch, number: int) -> None:
    """Looks at a member of a joint lease, and gives its lease back if it was silent for EXPIRY_S."""
    before = files.read_clock()
    content = files.read(number)
    if content is None:
        return
    unchanged = watch.note(files, number, content, before=before, after=files.read_clock())
    record = LeaseRecord.from_bytes(content)
    if record and unchanged is not None and unchanged >= EXPIRY_S:
        with contextlib.suppress(OSError):
            files.overwrite(number, replace(record, is_released=True).to_bytes(len(content)), record.may_replace)


@contextlib.contextmanager
def _keep(lease: Lease) -> Iterator[Lease]:
    """Writes a lease's heartbeat inside the `with` block, from a thread, and gives the lease back at its end.

    After an error it is not given back where processes on other hosts may not have ended: it expires.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(lease, is_over), name="lease heartbeat", daemon=True)
    may_release = not lease.record.spans_hosts
    try:
        thread.start()
        yield lease
        may_release = True
    except Preempted:
        may_release = True  # all of them have saved what they had
        raise
    finally:
        is_over.set()
        lease.end(release=may_release)


def _beat_until(lease: Lease, is_over: threading.Event) -> None:
    pause = HEARTBEAT_S
    while not is_over.wait(pause):
        try:
            lease.beat()
            pause = HEARTBEAT_S
        except LeaseLost:
            return
        except OSError:
            pause = _RETRY_S
