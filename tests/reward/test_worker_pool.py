"""Worker processes: replies, limits that hold, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.worker_pool import DeadError, LateError, Pool, StartError, UnservedError, WorkError

WORK = """
import os, signal, time

def serve(argument):
    if argument == "broken":
        raise ValueError("no such thing\\nas this")
    start = {"pid": os.getppid()}
    def handle(request):
        what, value = request
        if what == "add":
            return value + argument
        if what == "pids":
            return [os.getpid(), os.getppid()]
        if what == "power":
            return len(str(9 ** 9 ** 9))
        if what == "swallow":
            while True:
                try:
                    time.sleep(10)
                except BaseException:
                    pass
        if what == "memory":
            return len(bytearray(4 << 30))
        if what == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "exit":
            os._exit(0)
        if what == "long":
            return "x" * value
        if what == "sleep":
            time.sleep(value)
            return value
        raise KeyError(what)
    return handle
"""


@pytest.fixture
def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    (tmp_path / "pool_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    made: list[Pool] = []

    def make(argument: Any = 1, workers: int = 2, limit_s: float = 0.5) -> Pool:
        made.append(Pool("pool_work:serve", argument, workers=workers, limit_s=limit_s, memory_gib=1.0))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 5.0) -> bool:
    limit = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not alive(pid)


def test_replies_in_any_thread(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(argument=100)
    replies: dict[int, int] = {}

    def ask(number: int) -> None:
        replies[number] = pool.ask(["add", number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {number: number + 100 for number in range(24)}


@pytest.mark.parametrize("what", ["power", "swallow"])
def test_what_takes_too_long_is_killed_and_the_next_answered(make_pool: Callable[..., Pool], what: str) -> None:
    pool = make_pool(workers=1)
    pid, _ = pool.ask(["pids", None])
    started = time.monotonic()
    with pytest.raises(LateError, match="time limit"):
        pool.ask([what, None])
    assert time.monotonic() - started < 0.5 + 0.5
    assert gone(pid)
    assert pool.ask(["add", 1]) == 2


@pytest.mark.parametrize(("what", "value"), [("die", None), ("exit", None), ("long", 3 << 20)])
def test_a_worker_that_dies_is_replaced(make_pool: Callable[..., Pool], what: str, value: Any) -> None:
    pool = make_pool(workers=1, limit_s=5.0)
    with pytest.raises(DeadError):
        pool.ask([what, value])
    assert pool.ask(["add", 1]) == 2


def test_what_the_work_raises_is_told(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1, limit_s=5.0)
    with pytest.raises(WorkError, match="KeyError: 'nonsense'"):
        pool.ask(["nonsense", None])
    with pytest.raises(WorkError, match="MemoryError"):
        pool.ask(["memory", None])
    assert pool.ask(["add", 1]) == 2


def test_waiting_for_a_worker_does_not_count_as_work(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1, limit_s=1.0)
    pool.warm_up()
    done: list[float] = []
    threads = [threading.Thread(target=lambda: done.append(pool.ask(["sleep", 0.5]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [0.5] * 4


def test_a_deadline_ends_the_wait(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1, limit_s=5.0)
    pool.warm_up()
    busy = threading.Thread(target=pool.ask, args=(["sleep", 1.0],))
    busy.start()
    time.sleep(0.2)
    with pytest.raises(UnservedError):
        pool.ask(["add", 1], deadline=time.monotonic() + 0.2)
    busy.join()
    with pytest.raises(UnservedError):
        pool.ask(["sleep", 1.0], deadline=time.monotonic() + 0.2)
    assert pool.ask(["add", 1], deadline=time.monotonic() + 5.0) == 2


def test_a_file_that_cannot_start_is_told(make_pool: Callable[..., Pool]) -> None:
    with pytest.raises(StartError, match=r"ValueError: no such thing\nas this \(pool_work\.py, line 6: raise"):
        make_pool(argument="broken").warm_up()


def test_a_killed_server_is_replaced(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1)
    worker, server = pool.ask(["pids", None])
    os.kill(server, signal.SIGKILL)
    assert gone(worker)
    assert pool.ask(["add", 1]) == 2


def test_a_forked_process_has_workers_of_its_own(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1, limit_s=5.0)
    ours = pool.ask(["pids", None])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, repr(pool.ask(["pids", None])).encode())
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert not set(map(str, ours)) & set(theirs.strip("[]").split(", "))
    assert pool.ask(["pids", None]) == ours


def test_nothing_is_left_when_the_asker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pool_work.py").write_text(WORK)
    program = """
import threading, time
from qwen_align.reward.worker_pool import Pool
pool = Pool("pool_work:serve", 1, workers=1, limit_s=60.0, memory_gib=1.0)
print(*pool.ask(["pids", None]), flush=True)
pool.ask(["power", None])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    asker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env, text=True)
    assert asker.stdout is not None
    worker, server = map(int, asker.stdout.readline().split())
    asker.kill()
    asker.wait()
    asker.stdout.close()
    assert gone(server)
    assert gone(worker)


def test_kills_from_outside_cost_no_reply(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=4, limit_s=5.0)
    _, server = pool.ask(["pids", None])
    found: list[Any] = []

    def ask() -> None:
        for number in range(10):
            try:
                found.append(pool.ask(["sleep", 0.01]) and pool.ask(["add", number]) - number)
            except Exception as error:  # noqa: BLE001  # told below
                found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    os.kill(server, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert found == [1] * 60


def test_who_came_first_is_served_first(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(workers=1, limit_s=5.0)
    pool.warm_up()
    done: list[int] = []

    def ask(number: int) -> None:
        pool.ask(["sleep", 0.02])
        done.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    assert done == sorted(done)


def test_a_users_files_do_not_stand_for_pythons_own(
    make_pool: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for name in ("random", "numbers", "json", "socket"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path / "here")
    assert make_pool().ask(["add", 1]) == 2


STARTED_AT_IMPORT = """
import os, subprocess, sys, threading, time

subprocess.Popen(["sleep", "300.{tag}1"])
subprocess.Popen(["sleep", "300.{tag}2"], start_new_session=True)
if os.fork() == 0:  # as daemons do: a child of a child, in a session of its own
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "300.{tag}3"])
    os._exit(0)
threading.Thread(target=time.sleep, args=(300,)).start()

def serve(argument):
    if argument == "broken":
        raise ValueError("broken")
    if argument == "loop":
        while True:
            pass
    return lambda request: request
"""


def list_sleepers(tag: str) -> list[str]:
    """The command lines of running processes with the tag."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode())
        except OSError:
            continue
    return [line for line in found if f"300.{tag}" in line]


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux")
@pytest.mark.parametrize("way", ["closed", "gone", "broken", "loop"])
def test_what_an_import_starts_ends_with_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Processes in sessions of their own, orphans and threads: they outlived the command."""
    tag = f"{os.getpid() % 10_000}{['closed', 'gone', 'broken', 'loop'].index(way)}"
    (tmp_path / "starting_work.py").write_text(STARTED_AT_IMPORT.format(tag=tag))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("qwen_align.reward.worker_pool.START_LIMIT_S", 1.5)
    if way == "gone":
        asks = (
            "import os; from qwen_align.reward.worker_pool import Pool; "
            "pool = Pool('starting_work:serve', 1, workers=1, limit_s=5, memory_gib=1); print(pool.ask(7)); os._exit(0)"
        )
        assert subprocess.run([sys.executable, "-c", asks], capture_output=True, check=True).stdout == b"7\n"
    else:
        pool = Pool("starting_work:serve", way, workers=1, limit_s=5.0, memory_gib=1.0)
        if way == "closed":
            assert pool.ask(7) == 7
            assert len(list_sleepers(tag)) == 3
            pool.close()
        else:
            with pytest.raises(StartError, match="broken" if way == "broken" else "what is done on import takes too"):
                pool.ask(7)
    deadline = time.monotonic() + 5
    while list_sleepers(tag) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list_sleepers(tag)
