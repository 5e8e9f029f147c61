"""The warm server forks stages: it must have started no thread, and end with its parent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_align.align.pipeline.warm_server import NO_THREADS


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "qwen_align.align.pipeline.warm_server", str(writer)],
        stdin=subprocess.PIPE,
        pass_fds=[writer],
        text=True,
        env={**os.environ, **NO_THREADS},
    )
    os.close(writer)
    process.stdout = os.fdopen(reader)  # what it answers
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_it_forks_from_one_thread_and_ends_with_its_input(server: "subprocess.Popen[str]", tmp_path: Path) -> None:
    assert server.stdin
    assert server.stdout
    assert json.loads(server.stdout.readline())["ready"] > 0
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1
    # A folder without stage.json: the fork says so and the server lives on.
    report, log = tmp_path / "report.json", tmp_path / "log.txt"
    request = {"folder": str(tmp_path), "report": str(report), "log": str(log), "processes": 1, "is_group": False}
    for _ in range(2):
        print(json.dumps(request), file=server.stdin, flush=True)
        assert len(json.loads(server.stdout.readline())["pids"]) == 1
        assert json.loads(server.stdout.readline())["exit"] == 4
        assert "stage.json" in json.loads(report.read_text())["message"]
    assert "FileNotFoundError" in log.read_text()
    server.stdin.close()
    assert server.wait(timeout=30) == 0


def test_when_one_of_a_stages_processes_has_died_the_others_are_stopped() -> None:
    program = """
import subprocess, sys, time
from qwen_align.align.pipeline import warm_server
warm_server.TERMINATE_GRACE_S = 0.5
def started(code):
    return subprocess.Popen([sys.executable, "-c", code]).pid
def waited(*codes):
    began = time.monotonic()
    return warm_server.wait_for_processes([started(code) for code in codes]), time.monotonic() - began < 30
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
print(waited("", ""), waited("raise SystemExit(3)", "import time; time.sleep(60)"))
print(waited(deaf, "import time; time.sleep(.5); raise SystemExit(4)"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, True) (3, True)\n(4, True)\n"


@pytest.mark.slow
def test_a_stages_processes_find_each_other_and_share_the_cores(tmp_path: Path) -> None:
    program = """
import os, sys, torch
from qwen_align.align.pipeline import warm_server
from qwen_align.align.pipeline import worker
def run_stage(folder, report, **_):
    assert abs(worker.measure_cpu_seconds() - sum(os.times()[:4])) < 0.3, "they have not met"
    torch.distributed.init_process_group("gloo")
    sum(i * i for i in range(10_000_000))  # longer than the tolerance
    parts = [None, None]
    torch.distributed.all_gather_object(parts, (os.getpid(), torch.get_num_threads(), sum(os.times()[:4])))
    assert abs(worker.measure_cpu_seconds() - sum(part[2] for part in parts)) < 0.3
    report.write_text(repr([part[:2] for part in parts]))
    return 0
worker.run_stage = run_stage
torch.set_num_threads(2)
request = {"processes": 2, "is_group": True, "folder": "", "report": sys.argv[1], "log": sys.argv[1] + ".log"}
pids = warm_server.fork_stage(request, 0.0)
assert warm_server.wait_for_processes(pids) == 0
assert eval(open(sys.argv[1]).read()) == [(pid, 1) for pid in pids]
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "said")], check=True)
