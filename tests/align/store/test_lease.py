"""Leases: one holder at a time among processes of one machine and of several, whatever they see late or miss."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted, StageError
from qwen_align.align.pipeline import worker
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store import lease_files, lease_record
from qwen_align.align.store.lease import Lease, hold_joint_lease, hold_lease, take_lease
from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.lease_record import (
    EXPIRY_S,
    FENCE_S,
    HEARTBEAT_S,
    VISIBILITY_S,
    LeaseHeld,
    LeaseLost,
    LeaseRecord,
)
from qwen_align.align.store.lease_view import LeaseView
from qwen_align.align.store.process_identity import ProcessIdentity, identify_process, is_process_alive
from qwen_align.align.store.stage_folder import StageFolder
from tests.align.store.lease_simulation import simulate

ME = identify_process()
OTHER = ProcessIdentity("far", "another boot", "its own", 77, "5")


class ClockedFiles(LeaseFiles):
    """The real files, on a clock that stands still but while something waits, and what happens meanwhile."""

    def __init__(self, folder: Path, happens: Callable[[float], None] = lambda now: None) -> None:
        super().__init__(folder)
        self.now = 1000.0
        self._happens = happens

    def read_clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._happens(self.now - 1000.0)


def write(folder: Path, number: int, record: LeaseRecord) -> Path:
    """A lease's file as its holder has left it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.json"
    path.write_bytes(record.to_bytes())
    return path


def read(path: Path) -> LeaseRecord:
    record = LeaseRecord.from_bytes(path.read_bytes())
    assert record
    return record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_times_leave_room_for_all_that_may_be_late() -> None:
    between_looks, end = 2.0, 10.0
    assert 2 * FENCE_S + VISIBILITY_S + between_looks + end < EXPIRY_S
    assert 3 * HEARTBEAT_S < FENCE_S


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("resets", [False, True], ids=["", "folders deleted"])
def test_two_never_write_at_once_whatever_is_seen_late(resets: bool) -> None:
    """Half an hour of two to four processes on three hosts, again and again: see the simulation."""
    counts = Counter[str]()
    for seed in range(30):
        with simulate(seed, delay=VISIBILITY_S if seed % 2 else 30.0, longest_pause=400, resets=resets) as world:
            counts += world.counts
    assert counts["taken"] > 150
    assert counts["taken over"] > 20, counts
    assert counts["lost"] > 10, counts
    assert bool(counts["reset"]) == resets


@pytest.mark.evidence
def test_two_never_write_at_once_in_thousands_of_worlds() -> None:
    for seed in range(1000, 4000):
        with simulate(seed, delay=VISIBILITY_S, longest_pause=400, resets=seed % 3 == 0):
            pass


def test_who_was_stopped_while_it_took_a_lease_takes_another(tmp_path: Path) -> None:
    """Others may have waited for its heartbeat for so long that they hold the next one."""

    class Stopped(ClockedFiles):
        def list_numbers(self) -> list[int]:
            numbers = super().list_numbers()
            if numbers == [1]:
                self.now += FENCE_S + 1
            return numbers

    lease = take_lease(Stopped(tmp_path / "lease"), ME)
    assert lease.number == 2
    lease.check()
    lease.end()


def test_a_lease_says_who_holds_it_and_is_given_back(tmp_path: Path) -> None:
    with hold_lease(tmp_path / "lease") as held:
        record = json.loads((tmp_path / "lease" / "1.json").read_text())
        assert record["holder"] == vars(ME)
        assert record["token"] == held.record.token
        with pytest.raises(LeaseHeld, match=f"^process {os.getpid()}$"), hold_lease(tmp_path / "lease"):
            pass
        held.beat()
        assert read(tmp_path / "lease" / "1.json").beat == 1
    assert read(tmp_path / "lease" / "1.json").is_released
    with pytest.raises(RuntimeError, match="mine"), hold_lease(tmp_path / "lease"):
        raise RuntimeError("mine")
    with hold_lease(tmp_path / "lease") as held:
        assert held.number == 3


def test_one_of_another_host_is_followed_only_after_it_was_silent_for_long(tmp_path: Path) -> None:
    folder, said = tmp_path / "stage" / "lease", list[str]()
    write(folder, 4, LeaseRecord("t", OTHER, beat=9))
    files = ClockedFiles(folder)
    with pytest.raises(LeaseHeld, match="process 77 on far"):
        take_lease(files, ME, may_wait=False)
    held = take_lease(files, ME, say=said.append)
    assert (held.number, held.record.is_shared) == (5, True)
    assert EXPIRY_S <= files.now - 1000 < EXPIRY_S + 2
    assert said == [
        f"{tmp_path / 'stage'}: process 77 on far had this before and did not give it back; "
        "waiting 180 s at most for a sign of life"
    ]


def test_a_sign_of_life_refuses_at_once_and_a_stop_ends_the_wait(tmp_path: Path) -> None:
    folder = tmp_path / "lease"
    path = write(folder, 1, LeaseRecord("t", OTHER))
    beating = ClockedFiles(folder, lambda now: write(folder, 1, LeaseRecord("t", OTHER, beat=1)) if now > 20 else None)
    with pytest.raises(LeaseHeld, match="process 77 on far"):
        take_lease(beating, ME)
    assert beating.now - 1000 < 22
    stopped = ClockedFiles(folder)
    with pytest.raises(Preempted):
        take_lease(stopped, ME, stop=lambda: stopped.now > 1010)
    queued = ClockedFiles(folder, lambda now: write(folder, 1, LeaseRecord("t", OTHER, beat=int(min(now, 400) / 5))))
    assert take_lease(queued, ME, queue=True).number == 2
    assert 400 + EXPIRY_S - 5 < queued.now - 1000 < 405 + EXPIRY_S
    path.unlink()


def test_one_that_is_given_back_while_it_is_watched_is_taken_at_once(tmp_path: Path) -> None:
    folder, record = tmp_path / "lease", LeaseRecord("t", OTHER)
    write(folder, 1, record)
    files = ClockedFiles(folder, lambda now: write(folder, 1, replace(record, is_released=True)) if now > 20 else None)
    held = take_lease(files, ME)
    assert files.now - 1000 < 22
    assert held.follows_other_machine


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 512, b'{"token": "t"', b"[1]", b'{"token": "t", "holder": {"pid": "x"}}']
)
def test_a_damaged_file_is_waited_out(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "lease"
    folder.mkdir()
    (folder / "1.json").write_bytes(content)
    files = ClockedFiles(folder)
    assert take_lease(files, ME).number == 2
    assert files.now - 1000 >= EXPIRY_S


def test_a_holder_of_this_machine_that_died_is_followed_at_once_unless_others_wrote_for_it(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = lease_record.ProcessIdentity(**{**vars(ME), "pid": process.pid, "started": "?"})
    alive = replace(started, started=_start_time(process.pid))
    assert (is_process_alive(alive), is_process_alive(started)) == (True, False), "another with its number"
    write(tmp_path / "lease", 1, LeaseRecord("t", alive))
    with pytest.raises(LeaseHeld, match=f"^process {process.pid}$"):
        take_lease(ClockedFiles(tmp_path / "lease"), ME)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    files = ClockedFiles(tmp_path / "lease")
    assert take_lease(files, ME).number == 2
    assert files.now == 1000
    process.communicate()
    assert is_process_alive(alive) is False
    write(tmp_path / "lease", 3, LeaseRecord("t", alive, spans_hosts=True))
    assert take_lease(files, ME).number == 4
    assert files.now >= 1000 + EXPIRY_S


def _start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


class LateFiles(ClockedFiles):
    """Files of which the first look shows only an old one, that was given back and deleted since."""

    def __init__(self, folder: Path, old: int, *, is_there: bool) -> None:
        super().__init__(folder)
        self._old, self._is_there, self._looks = old, is_there, 0
        self._content = LeaseRecord("old", OTHER, is_released=True).to_bytes()

    def list_numbers(self) -> list[int]:
        self._looks += 1
        return [self._old] if self._looks == 1 else super().list_numbers()

    def read(self, number: int) -> bytes | None:
        return self._content if number == self._old else super().read(number)

    def confirm(self, number: int, content: bytes) -> bool:
        return self._is_there if number == self._old else super().confirm(number, content)


@pytest.mark.parametrize("is_there", [True, False])
def test_who_saw_an_old_file_only_withdraws(tmp_path: Path, is_there: bool) -> None:
    write(tmp_path / "lease", 7, LeaseRecord("t", OTHER))
    with pytest.raises(LeaseHeld, match="process 77 on far"):
        take_lease(LateFiles(tmp_path / "lease", 3, is_there=is_there), ME, may_wait=False)
    made = ["4.json"] if is_there else []  # the holder of the last deletes it
    assert names(tmp_path / "lease") == [*made, "7.json"]
    write(tmp_path / "new", 1, LeaseRecord("t", OTHER))  # the folder was deleted, and another is in the new one
    with pytest.raises(LeaseHeld, match="process 77 on far"):
        take_lease(LateFiles(tmp_path / "new", 3, is_there=False), ME, may_wait=False)
    assert names(tmp_path / "new") == ["1.json"]


def test_earlier_files_go_once_everybody_sees_a_later_one(tmp_path: Path) -> None:
    folder = tmp_path / "lease"
    write(folder, 1, LeaseRecord("t", OTHER, is_released=True))
    (folder / ".new.0123").touch()  # a kill left it
    files = ClockedFiles(folder)
    held = take_lease(files, ME)
    for _ in range(2):
        files.now += VISIBILITY_S / 2
        held.beat()
    assert names(folder) == [".new.0123", "1.json", "2.json"]
    files.now += 1
    held.beat()
    assert names(folder) == ["2.json"]
    held.end()
    for _ in range(40):
        files.now += VISIBILITY_S / 4
        take_lease(files, ME).end()
    assert len(names(folder)) < 16, "short ones are cleared away by those that follow"


def take(tmp_path: Path) -> tuple[ClockedFiles, Lease]:
    files = ClockedFiles(tmp_path / "lease")
    return files, take_lease(files, ME)


def test_a_holder_that_cannot_write_its_heartbeat_has_lost_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, held = take(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "overwrite", full)
        for _ in range(4):
            files.now += FENCE_S / 5
            with pytest.raises(OSError, match="No space left"):
                held.beat()
    held.beat()  # there is room again
    monkeypatch.setattr(files, "overwrite", full)
    files.now += FENCE_S + 1
    with pytest.raises(LeaseLost, match="no heartbeat could be written for 46 s"):
        held.check()
    held.end()
    assert not read(tmp_path / "lease" / "1.json").is_released


def test_a_holder_that_was_stopped_or_slept_has_lost_the_lease_for_good(tmp_path: Path) -> None:
    files, held = take(tmp_path)
    files.now += FENCE_S + 1
    with pytest.raises(LeaseLost, match="the process was stopped, the machine asleep or the disk out of reach"):
        held.beat()
    assert read(tmp_path / "lease" / "1.json").beat == 0
    files.now -= FENCE_S
    with pytest.raises(LeaseLost):
        held.check()


def test_a_heartbeat_that_took_too_long_to_write_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, held = take(tmp_path)
    real = files.overwrite

    def slow(*arguments: Any) -> None:
        files.now += FENCE_S + 1
        real(*arguments)

    monkeypatch.setattr(files, "overwrite", slow)
    with pytest.raises(LeaseLost):
        held.beat()


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_holder_whose_file_is_gone_or_followed_has_lost_the_lease(tmp_path: Path, is_replaced: bool) -> None:
    _, held = take(tmp_path)
    (tmp_path / "lease" / "1.json").unlink()
    if is_replaced:  # the folder was deleted, and somebody else has it
        write(tmp_path / "lease", 1, LeaseRecord("t", OTHER))
    with pytest.raises(LeaseLost, match="was deleted, or is another's"):
        held.beat()
    held.end()
    assert names(tmp_path / "lease") == (["1.json"] if is_replaced else [])
    assert not is_replaced or read(tmp_path / "lease" / "1.json").token == "t"
    files, held = take(tmp_path / "other")
    write(files.folder, 2, LeaseRecord("t", OTHER))
    with pytest.raises(LeaseLost, match=r"another process has made 2\.json"):
        held.beat()


def test_a_full_disk_leaves_no_lease_and_no_links_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LeaseFiles(tmp_path / "lease")

    def fail(number: int) -> Callable[..., None]:
        def raise_error(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return raise_error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            take_lease(files, ME)
    assert names(tmp_path / "lease") == []
    monkeypatch.setattr(lease_files.os, "link", fail(errno.EPERM))
    assert take_lease(files, ME).number == 1
    assert not files.create(1, b"mine"), "it is another's"
    assert names(tmp_path / "lease") == ["1.json"]


def test_an_answer_that_was_lost_and_asked_for_again_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client of NFS does when the server's answer gets lost: the second time the name is there."""
    real = os.link

    def link_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(lease_files.os, "link", link_twice)
    with hold_lease(tmp_path / "lease") as held:
        assert held.number == 1


def test_a_joint_lease_knows_who_may_be_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lease"
    with hold_joint_lease(folder) as first:
        assert first.members == []
        with hold_joint_lease(folder) as second:
            assert second.members == [1]
            first.beat()  # a later number is no loss
    with hold_joint_lease(folder) as third:
        assert third.members == []
    write(folder, 4, LeaseRecord("t", OTHER, members=[2, 3]))
    with hold_joint_lease(folder) as held:
        assert held.members == [4], "2 and 3 were given back"
        monkeypatch.setattr(LeaseFiles, "read_clock", lambda self: 1e9)
    with hold_joint_lease(folder) as held:
        assert held.members == [], "it was silent for as long as another ran"


def test_what_a_joint_lease_cannot_see_counts_as_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "lease"
    for number in (1, 2):
        write(folder, number, LeaseRecord("t", OTHER, is_released=True))
    folder.chmod(0o755)
    hidden = LeaseFiles.list_numbers
    with pytest.MonkeyPatch.context() as patch:
        looks: list[int] = []

        def list_late(self: LeaseFiles) -> list[int]:
            looks.append(1)
            return hidden(self) if len(looks) > 2 else [1]

        patch.setattr(LeaseFiles, "list_numbers", list_late)
        patch.setattr(LeaseFiles, "read", lambda self, n: None if n == 2 else (folder / f"{n}.json").read_bytes())
        with hold_joint_lease(folder) as held:
            assert (held.number, held.members) == (3, [2])


def test_status_says_where_a_stage_is_worked_on(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage")
    assert stage.find_holder() is None
    path = write(stage.path / "lease", 1, LeaseRecord("t", OTHER))
    assert stage.find_holder() == ("process 77 on far", "far")
    os.utime(path, (1, 1))
    assert stage.find_holder() is None, "it has been silent for years"
    path.unlink()
    with stage.hold_lease():
        assert stage.find_holder() == (f"process {os.getpid()}", "")
    write(stage.path / "lease", 2, LeaseRecord("t", OTHER))
    said = "process 77 on far is working on this stage; wait for it, or stop it"
    with pytest.raises(StageError, match=said), stage.hold_lease(may_wait=False):
        pass


def test_what_another_host_gave_back_is_gone_on_with_once_all_of_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_align.align.store.stage_folder.VISIBILITY_S", 0.3)
    stage, said = StageFolder(tmp_path / "stage"), list[str]()
    write(stage.path / "lease", 1, LeaseRecord("t", OTHER, is_released=True))
    began = time.monotonic()
    with stage.hold_lease(say=said.append):
        assert time.monotonic() - began >= 0.3
    assert len(said) == 1
    assert "waiting until all that far has written there is seen" in said[0]
    with stage.hold_lease(say=said.append):
        assert len(said) == 1, "this machine sees what it has written itself"


def test_a_view_from_another_host_goes_by_heartbeats_and_not_by_its_clock(tmp_path: Path) -> None:
    folder = tmp_path / "lease"
    files = ClockedFiles(folder)
    view = LeaseView({"folder": str(folder), "number": 1, "token": "t"}, files)
    write(folder, 1, LeaseRecord("t", OTHER, beat=4, beat_at=5e6))
    assert view.measure_silence() is None, "it may have been written long ago"
    with pytest.raises(LeaseLost, match="heartbeat has stopped"):
        view.require_held()
    files.now += 20
    write(folder, 1, LeaseRecord("t", OTHER, beat=5, beat_at=5e6 + 5))
    assert view.measure_silence() == 15, "its host was out of reach for a while"
    view.require_held()
    files.now += FENCE_S
    with pytest.raises(LeaseLost, match="heartbeat has stopped"):
        view.require_held()
    write(folder, 1, LeaseRecord("t", OTHER, beat=6, beat_at=5e6 + 6, is_released=True))
    with pytest.raises(LeaseLost, match="given back"):
        view.measure_silence()
    write(folder, 2, LeaseRecord("u", ME))
    with pytest.raises(LeaseLost, match="another process has it"):
        view.measure_silence()


def test_a_stage_whose_lease_is_lost_publishes_nothing_and_touches_nothing(tmp_path: Path) -> None:
    """Its folder is another host's by now, with files that are being written."""
    folder = tmp_path / "store" / "build_data-0123456789abcdef"
    write(folder / "lease", 2, LeaseRecord("theirs", OTHER))
    (folder / ".rows.jsonl").write_text("half")
    job = {"lease": {"folder": str(folder / "lease"), "number": 1, "token": "mine"}}
    (folder / "stage.json").write_text(json.dumps(job))
    report = tmp_path / "report.json"
    assert worker.run_stage(folder, report, started=0.0) == 4
    assert (
        "the lease of its run is lost: another process has it; run again" in json.loads(report.read_text())["message"]
    )
    assert names(folder) == [".rows.jsonl", "lease", "stage.json"]


def test_a_manifest_is_published_only_while_the_lease_is_held(tmp_path: Path) -> None:
    job = {"key": "0" * 64, "settings": {"kind": "build_data"}}
    context = Context(tmp_path, 0, Runtime())
    with hold_lease(tmp_path / "lease") as held:
        view = LeaseView(held.describe())
        worker._write_manifest(context, job, {"rows": 1}, {"seconds": 1.0}, view)
    with pytest.raises(LeaseLost, match="given back"):
        worker._write_manifest(context, job, {"rows": 2}, {"seconds": 1.0}, view)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["summary"], manifest["outputs"]) == ({"rows": 1}, {}), "files of the lease are no outputs"
    assert names(tmp_path) == ["lease", "manifest.json"]


RUN = """
import json, sys, pathlib, subprocess
from qwen_align.align.store import lease
lease.HEARTBEAT_S = 0.1
with lease.hold_lease(pathlib.Path(sys.argv[1])) as held:
    stage = subprocess.Popen([sys.executable, "-c", sys.argv[2], json.dumps(held.describe())], start_new_session=True)
    print(stage.pid, flush=True)
    print(stage.wait(), flush=True)
    sys.stdin.read()
"""
STAGE = """
import json, os, signal, sys, time
from qwen_align.align.pipeline import lease_guard
lease_guard.FENCE_S, lease_guard.LOOK_S = 4.0, 0.1
fork = os.fork
def fork_and_signal():
    pid = fork()
    if pid:
        os.kill(pid, signal.SIGTERM)  # before it has run a line
    return pid
os.fork = fork_and_signal
lease_guard.guard_lease(json.loads(sys.argv[1]))
print("guarded", flush=True)
while True: pass  # no other thread needs to be let run
"""


@pytest.mark.slow(seconds=12)
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_stage_ends_when_its_run_stops_renewing_the_lease(tmp_path: Path) -> None:
    line = [sys.executable, "-c", RUN, str(tmp_path / "lease"), STAGE]
    run = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stage = None
    try:
        assert run.stdout
        said = [run.stdout.readline().strip() for _ in range(2)]
        assert "guarded" in said
        stage = int(next(word for word in said if word != "guarded"))
        (guard,) = [int(word) for word in Path(f"/proc/{stage}/task/{stage}/children").read_text().split()]
        os.kill(guard, signal.SIGTERM)  # as a group of processes gets it that is asked to stop
        time.sleep(5)
        assert get_state(stage) == "R", "its lease is renewed"
        run.send_signal(signal.SIGSTOP)
        wait_until(lambda: get_state(stage) in "ZX")
        run.send_signal(signal.SIGCONT)
        assert run.stdout.readline().strip() == str(-signal.SIGKILL)
        wait_until(lambda: get_state(guard) in "ZX")
    finally:
        if stage and get_state(stage) not in "ZX":
            os.kill(stage, signal.SIGKILL)  # it holds the pipe that is read to its end
        run.kill()
        run.communicate()


def get_state(pid: int) -> str:
    path = Path(f"/proc/{pid}/stat")
    return path.read_text().rpartition(")")[2].split()[0] if path.exists() else "X"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
