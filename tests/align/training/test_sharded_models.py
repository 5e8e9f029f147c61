"""Two processes load a model as shards and train it with FSDP2 as one does; the checks are in sharded_models.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_models.py")
CHECKS = [line.split("(")[0][4:] for line in WORKER.read_text().split("@check\n")[1:]]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What both processes say of each check; of one that did not come to its end, nothing."""
    home = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(WORKER), str(rank), str(port), str(home)] for rank in range(2)]
    logs = [(home / f"log-{rank}.txt").open("w") for rank in range(2)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        for command, log in zip(commands, logs, strict=True)
    ]
    found: dict[str, list[str]] = {name: [] for name in CHECKS}
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            for line in output.splitlines():
                if line.startswith("{"):
                    said = json.loads(line)
                    found[said["check"]].append(said["fault"])
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            log.close()
    return found


@pytest.mark.slow(seconds=25)
@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_and_one(faults: dict[str, list[str]], name: str) -> None:
    assert faults[name] == ["", ""], "\n".join(faults[name]) or "it did not end"
