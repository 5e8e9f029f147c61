"""How servers are started, waited for and ended, with a script in the place of vLLM that has a child as vLLM does."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_align.align.engines.vllm_client import VllmClient
from qwen_align.align.engines.vllm_server import Place, ServedModel, list_server_arguments, run_servers
from qwen_align.align.errors import RecipeError, StageError
from tests.align.engines.made_up_environment import make_environment

CPU = Place((), 0.9, can_sleep=False)

# Answers /health and /version, has a child of its own that outlives it, and writes down both their ids.
SERVER = """
import http.server, json, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
arguments = sys.argv[1:]
port = int(arguments[arguments.index("--port") + 1])
with open({pids!r}, "a") as file:
    print(os.getpid(), child.pid, file=file)
print("arguments", arguments, os.environ["PYTHONPATH"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = json.dumps({{"version": "0.32.0"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
{start}
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return ServedModel(tmp_path / "model", "fp32", 96, 64, 1024, 2**26)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """The file of the ids of all processes that are started, which are ended in any case."""
    path = tmp_path / "pids"
    yield path
    for pid in list_alive(path):
        os.kill(pid, signal.SIGKILL)


def install(monkeypatch: pytest.MonkeyPatch, pids: Path, start: str = "") -> None:
    """Makes the script the Python of vLLM's environment."""
    python = make_environment(pids.parent / "engines")
    python.write_text(f"#!{sys.executable}\n{SERVER.format(pids=str(pids), start=start)}")
    python.chmod(0o755)
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(pids.parent / "engines"))


def list_alive(pids: Path) -> list[int]:
    """The processes that were started and have not ended."""
    found = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    return [pid for pid in found if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pids: Path) -> None:
    deadline = time.monotonic() + 30
    while alive := list_alive(pids):
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def test_servers_answer_and_end_with_all_that_they_have_started(
    model: ServedModel, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, pids)
    said: list[str] = []
    with run_servers(model, [CPU, CPU], tmp_path / "logs", time_limit_s=60, report=said.append) as urls:
        assert len(set(urls)) == 2
        assert VllmClient(urls, stop_ids=[], vocab_size=9).read_version() == ["0.32.0", "0.32.0"]
        assert len(list_alive(pids)) == 4
    assert list_alive(pids) == []
    assert said == [f"starting 2 vLLM on the CPU; {tmp_path}/logs/vllm-*.log says how far it is"]
    log = (tmp_path / "logs" / "vllm-0.log").read_text()
    assert "'--worker-extension-cls', 'qwen_align_worker.WeightUpdates'" in log
    assert "align/engines/worker" in log


def test_a_server_that_ends_at_once_is_an_error_with_the_end_of_its_log(
    model: ServedModel, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, pids, start="print('no such model', flush=True); sys.exit(3)")
    with (
        pytest.raises(StageError, match=r"(?s)vllm-0.log: vLLM has ended with code 3; .*no such model"),
        run_servers(model, [CPU], tmp_path / "logs", time_limit_s=60, report=print),
    ):
        pass
    wait_until_dead(pids)


def test_a_server_that_is_never_ready_is_an_error(
    model: ServedModel, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, pids, start="import time; time.sleep(600)")
    with (
        pytest.raises(StageError, match=r"was not ready in 3 s \(runtime.engine.start_timeout_s\)"),
        run_servers(model, [CPU], tmp_path / "logs", time_limit_s=3, report=print),
    ):
        pass
    wait_until_dead(pids)


def test_a_server_that_is_killed_is_named_where_requests_fail(
    model: ServedModel, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, pids)
    with (
        pytest.raises(StageError, match=r"(?s)the engine does not answer: .*vllm-0.log ends with:.*arguments"),
        run_servers(model, [CPU], tmp_path / "logs", time_limit_s=60, report=print) as urls,
    ):
        ask_a_killed_server(urls, pids)


def ask_a_killed_server(urls: list[str], pids: Path) -> None:
    """Kills the server, whose child ends too, and asks it."""
    os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)
    wait_until_dead(pids)
    VllmClient(urls, stop_ids=[], vocab_size=9).read_version()


STAGE = """
import os, sys, time
from pathlib import Path
from qwen_align.align.engines.vllm_server import Place, ServedModel, run_servers
folder = Path(sys.argv[1])
model = ServedModel(folder, "fp32", 96, 64, 1024, None)
with run_servers(model, [Place((), 0.9, False)], folder, time_limit_s=60, report=print):
    (folder / "ready").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("kills", ["stage", "stage and server"])
def test_a_stage_that_is_killed_takes_its_servers_along(
    pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: str
) -> None:
    install(monkeypatch, pids)
    stage = subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if kills == "stage and server":
        os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)
    stage.kill()
    stage.wait()
    wait_until_dead(pids)


def test_vllm_that_is_not_installed_is_asked_for(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(tmp_path))
    with (
        pytest.raises(RecipeError, match="qwen-align engines install vllm"),
        run_servers(model, [CPU], tmp_path, time_limit_s=1, report=print),
    ):
        pass


def test_gpus_have_their_share_of_memory_and_a_cpu_its_bytes(model: ServedModel) -> None:
    on_gpus = list_server_arguments(model._replace(cache_bytes=None), Place((2, 3), 0.4, can_sleep=True))
    pairs = dict(itertools.pairwise(on_gpus))
    assert (pairs["--tensor-parallel-size"], pairs["--gpu-memory-utilization"]) == ("2", "0.4")
    assert "--enable-sleep-mode" in on_gpus
    assert "--enforce-eager" not in on_gpus
    on_cpu = list_server_arguments(model, CPU)
    assert dict(itertools.pairwise(on_cpu))["--kv-cache-memory-bytes"] == str(2**26)
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(on_cpu)
    bf16 = list_server_arguments(model._replace(precision="bf16"), CPU)
    assert dict(itertools.pairwise(bf16))["--dtype"] == "bfloat16"
