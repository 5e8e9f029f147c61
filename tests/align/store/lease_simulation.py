"""Hosts that share a folder over a file server, on a clock of its own: what others have written is seen late.

The product's code takes, renews and gives back the leases. Made here are the server, delays of every listing, opening
and reading, pauses of processes between any two calls, kills, clocks that go wrong, and who counts as writing when.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qwen_align.align.errors import StageError
from qwen_align.align.store import lease, lease_record
from qwen_align.align.store.lease import Lease, take_lease
from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.lease_record import FENCE_S, HEARTBEAT_S, LeaseHeld, LeaseLost, LeaseRecord
from qwen_align.align.store.lease_view import LeaseView
from qwen_align.align.store.process_identity import ProcessIdentity

END = 2.5  # seconds that a guard takes from the end of its patience to that of the stage: two looks


class Killed(BaseException):
    """The process was killed."""


@dataclass
class Inode:
    """A file: its contents with time and host of their writing, and whether it has been deleted."""

    versions: list[tuple[float, str, bytes]]
    is_deleted: bool = False


@dataclass
class Server:
    """The file server: for every name what it meant since when and by whom, and partly written results by name."""

    names: dict[int, list[tuple[float, str, Inode | None]]] = field(default_factory=dict)
    partial: dict[str, tuple[float, str]] = field(default_factory=dict)

    def get(self, number: int) -> Inode | None:
        return self.names[number][-1][2] if number in self.names else None

    def unlink(self, number: int, now: float, host: str) -> None:
        if inode := self.get(number):
            inode.is_deleted = True
            self.names[number].append((now, host, None))


class World:
    """A simulation: processes of several hosts, one of which does one thing at a time, in an order drawn at random."""

    def __init__(self, seed: int, *, delay: float, longest_pause: float, seconds: float, resets: bool = False) -> None:
        self.rng = random.Random(seed)
        self.delay, self.longest_pause, self.seconds, self.resets = delay, longest_pause, seconds, resets
        self.caches = self.rng.random() < 0.6
        self.share_stopped = self.rng.choice([0.002, 0.01, 0.04])
        self.now = 0.0
        self.server = Server()
        self.processes: list[Process] = []
        self.writers: list[Writer] = []
        self.counts = Counter[str]()
        self.problems: list[str] = []
        self.linked: set[Process] = set()  # those that a run has linked the stage for: `prune` leaves it alone
        self._back = threading.Semaphore(0)

    def run(self) -> None:
        """Lets processes do what they do until the time is over. Raises what they raise."""
        while waiting := [one for one in self.processes if not one.is_over]:
            process = min(waiting, key=lambda one: one.ready_at)
            self.now = max(self.now, process.ready_at)
            process.go.release()
            self._back.acquire()
        assert not self.problems, self.problems[0]

    def give_back(self) -> None:
        self._back.release()

    def is_alive(self, identity: ProcessIdentity) -> bool:
        return any(one.me == identity and not one.is_over for one in self.processes)

    def require_alone(self, writer: "Writer | None", what: str) -> None:
        """Notes a problem if a process other than a writer may be writing now."""
        for other in self.writers:
            if other is not writer and other.may_write(self.now):
                self.problems.append(f"{self.now:.1f}: {what}, while {other.name} may write")


class Process:
    """A process on a host: a thread that goes on when the simulation lets it."""

    def __init__(self, world: World, host: str, name: str, program: "Callable[[Process], None]") -> None:
        self.world, self.host, self.name, self.rng = world, host, name, world.rng
        self.me = ProcessIdentity(host, host, "one", len(world.processes) + 1, name)
        self.rate, self.offset = world.rng.uniform(0.999, 1.001), world.rng.uniform(0, 1e6)
        self.go = threading.Semaphore(0)
        self.ready_at = world.now + world.rng.uniform(0, 20)
        self.is_over = False
        self._program = program
        world.processes.append(self)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self.go.acquire()
        try:
            self._program(self)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised by the simulation
            self.world.problems.append(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self.is_over = True
            self.world.give_back()

    def wait(self, seconds: float) -> None:
        """Lets others go on for a time."""
        self.ready_at = self.world.now + seconds
        self.world.give_back()
        self.go.acquire()
        if self.world.now > self.world.seconds:
            raise Killed

    def step(self) -> None:
        """Waits as long as a call takes, now and then for as long as a stopped process or a server out of reach."""
        is_stopped = self.rng.random() < self.world.share_stopped
        self.wait(self.world.longest_pause * self.rng.random() ** 2 if is_stopped else self.rng.uniform(0, 0.2))

    def read_clock(self) -> float:
        return self.world.now * self.rate + self.offset

    def to_world_time(self, clock: float) -> float:
        return (clock - self.offset) / self.rate


class DelayedFiles(LeaseFiles):
    """The folder of a lease as one process sees it: its own host's work at once, that of others up to a delay late."""

    def __init__(self, process: Process) -> None:
        super().__init__(Path("/shared/stage/lease"))
        self.process, self.world, self.server = process, process.world, process.world.server

    def _choose(self, events: list[Any], what: object) -> Any:
        """The last event that this host sees, of (time, host, value). None where it sees none.

        A host sees all up to the time at which it asked last, every `delay` seconds, as where attributes are cached, or
        each time something as old as chance will have it.
        """
        delay = self.world.rng.uniform(0, self.world.delay)
        if self.world.caches:
            phase = random.Random(f"{self.process.host} {what}").uniform(0, self.world.delay)
            delay = (self.world.now + phase) % self.world.delay
        seen_until = self.world.now - delay
        seen = [event for event in events if event[0] <= seen_until or event[1] == self.process.host]
        return seen[-1][2] if seen else None

    def list_numbers(self) -> list[int]:
        self.process.step()
        return sorted(number for number, events in self.server.names.items() if self._choose(events, "folder"))

    def read(self, number: int) -> bytes | None:
        self.process.step()
        inode = self._choose(self.server.names.get(number, []), number)
        content = self._choose(inode.versions, (number, "content")) if inode else None
        return content or (inode.versions[0][2] if inode else None)

    def create(self, number: int, content: bytes) -> bool:
        self.process.step()
        if self.server.get(number):
            return False
        inode = Inode([(self.world.now, self.process.host, content)])
        self.server.names.setdefault(number, []).append((self.world.now, self.process.host, inode))
        return True

    def confirm(self, number: int, content: bytes) -> bool:
        self.process.step()
        inode = self._choose(self.server.names.get(number, []), number)
        return bool(inode and not inode.is_deleted and self._choose(inode.versions, (number, "content")) == content)

    def overwrite(self, number: int, content: bytes, may_replace: Callable[[bytes], bool]) -> None:
        self.process.step()
        inode = self.server.get(number)
        if inode is None or not may_replace(inode.versions[-1][2]):
            raise FileNotFoundError
        if self.process.rng.random() < 0.01:
            raise OSError(28, "No space left on device")
        inode.versions.append((self.world.now, self.process.host, content))

    def remove(self, number: int) -> None:
        self.process.step()
        self.server.unlink(number, self.world.now, self.process.host)

    def remove_unfinished(self) -> None:
        pass

    def read_clock(self) -> float:
        return self.process.read_clock()

    def sleep(self, seconds: float) -> None:
        self.process.wait(seconds)


class Writer:
    """The processes of a stage that was begun under a lease. They write until they end, or their guards end them."""

    def __init__(self, holder: Process, held: Lease) -> None:
        self.holder, self.name = holder, holder.name
        self.inode = holder.world.server.get(held.number)
        self.is_ended = False
        self.token = held.record.token
        self.view: LeaseView | None = None  # of a process on another host
        self.viewer: Process | None = None

    def may_write(self, now: float) -> bool:
        """Whether they may write: until FENCE_S after the last heartbeat that their guard has seen was begun."""
        if self.is_ended:
            return False
        if self.viewer:
            assert self.view
            return now < self.viewer.to_world_time(self.view._alive_at or -1e9) + FENCE_S + END
        assert self.inode
        record = LeaseRecord.from_bytes(self.inode.versions[-1][2])
        assert record
        return now < self.holder.to_world_time(record.beat_at) + FENCE_S + END


def work(process: Process) -> None:
    """Takes the lease again and again, works under it and publishes; is killed, stopped or refused now and then."""
    world, rng = process.world, process.rng
    while True:
        process.wait(rng.expovariate(1 / 40))
        watched: list[str] = []
        world.linked.add(process)
        try:
            has_rank = rng.random() < 0.3
            held = take_lease(DelayedFiles(process), process.me, spans_hosts=has_rank, say=watched.append)
        except LeaseHeld:
            world.counts["refused"] += 1
            world.linked.discard(process)
            continue
        writer = Writer(process, held)
        world.require_alone(writer, f"{process.name} took {held.number}")
        world.writers.append(writer)
        world.counts["taken"] += 1
        world.counts["taken over"] += bool(watched and held.before and not held.before.is_released)
        for name, (written, host) in list(world.server.partial.items()):  # as a stage does before it begins
            if host == process.host or written <= world.now - rng.uniform(0, world.delay):
                del world.server.partial[name]
        if has_rank:
            Process(world, f"{process.host}'", f"{process.name}/rank of {held.number}", partial(rank, held=held))
        try:
            _work_under(process, held, writer)
        except Killed:
            writer.is_ended = True  # with its run
            world.linked.discard(process)
            raise
        except LeaseLost:
            world.counts["lost"] += 1
            writer.is_ended = True
        world.linked.discard(process)


def _work_under(process: Process, held: Lease, writer: Writer) -> None:
    """Works for a while under a lease, then publishes and gives it back, or is killed."""
    world, rng = process.world, process.rng
    until = world.now + rng.expovariate(1 / 100)
    while world.now < until:
        process.wait(HEARTBEAT_S if rng.random() > 0.01 else rng.uniform(0, world.longest_pause))
        try:
            held.beat()
        except OSError:
            process.wait(1.0)
        held.check()
    if rng.random() < 0.25:
        Process(world, process.host, f"{process.name}+", work)
        raise Killed
    _publish(process, held)
    for one in world.writers:
        one.is_ended = one.is_ended or one.token == held.record.token  # all processes of the stage have
    held.end()


def _publish(process: Process, held: Lease) -> None:
    """Writes a result beside its place, looks at the lease and moves it there, if nobody has deleted it meanwhile."""
    world, name = process.world, held.record.token
    process.step()
    world.server.partial[name] = (world.now, process.host)
    process.step()
    held.check()
    process.step()
    if world.server.partial.pop(name, None):
        world.counts["published"] += 1
        own = next(writer for writer in world.writers if writer.holder is process and not writer.is_ended)
        later = [one for one in world.writers[world.writers.index(own) + 1 :] if not one.viewer]
        if later:
            world.problems.append(f"{world.now:.1f}: {process.name} published after {later[0].name} had taken over")
    else:
        world.counts["not published"] += 1


def rank(process: Process, held: Lease) -> None:
    """A process of a stage on another host: it begins with a sign of life, and its guard looks every second."""
    world = process.world
    view = LeaseView(held.describe(), DelayedFiles(process))
    view._me = process.me
    if any(one.token == held.record.token and one.is_ended for one in world.writers):
        return  # the stage ended before this began
    writer = Writer(process, held)
    writer.view, writer.viewer = view, process
    world.writers.append(writer)
    try:
        while not writer.is_ended:
            process.wait(1.0)
            silence = view.measure_silence()
            if silence is not None and silence > FENCE_S:
                break
    except LeaseLost:
        pass
    finally:
        writer.is_ended = True


def reset(process: Process) -> None:
    """Deletes the folder under its lease now and then, as `prune` does, from the first host."""
    world = process.world
    while True:
        process.wait(process.rng.expovariate(1 / 60))
        if world.linked:
            continue
        try:
            held = take_lease(DelayedFiles(process), process.me, may_wait=False)
        except StageError:
            continue
        writer = Writer(process, held)
        world.require_alone(writer, f"{process.name} took {held.number} to delete all")
        world.writers.append(writer)
        if world.linked:  # which the lease of runs/ rules out
            writer.is_ended = True
            held.end()
            continue
        for number in sorted(world.server.names):
            world.server.unlink(number, world.now, process.host)
        world.counts["reset"] += 1
        writer.is_ended = True


@contextmanager
def simulate(seed: int, *, delay: float, longest_pause: float, resets: bool = False) -> Iterator[World]:
    """Yields a world of two to four processes on one to three hosts, which has run for half an hour of its time."""
    world = World(seed, delay=delay, longest_pause=longest_pause, seconds=1800, resets=resets)
    saved = lease_record.is_process_alive, lease._LOOK_S
    lease_record.is_process_alive, lease._LOOK_S = world.is_alive, 5.0  # type: ignore[assignment]
    try:
        for number in range(world.rng.randint(2, 4)):
            Process(world, f"host{world.rng.randrange(3)}", f"process{number}", work)
        if resets:
            Process(world, "host0", "prune", reset)
        world.run()
        yield world
    finally:
        lease_record.is_process_alive, lease._LOOK_S = saved
