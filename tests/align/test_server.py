"""The warm server forks stages: it must have started no thread, and end with its parent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_align.align.server import NO_THREADS


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_align.align.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **NO_THREADS},
    )
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
    request = {"folder": str(tmp_path), "report": str(report), "log": str(log)}
    for _ in range(2):
        print(json.dumps(request), file=server.stdin, flush=True)
        assert json.loads(server.stdout.readline())["pid"] > 0
        assert json.loads(server.stdout.readline())["exit"] == 4
        assert "stage.json" in json.loads(report.read_text())["message"]
    assert "FileNotFoundError" in log.read_text()
    server.stdin.close()
    assert server.wait(timeout=30) == 0
