"""Two processes load a model as shards and train it with FSDP2 as one does; the checks are in sharded_models.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_models.py")
CHECKS = [part.split("(")[0].removeprefix("def ") for part in WORKER.read_text().split("\n@check\n")[1:]]


def run_checks(home: Path, strategy: str) -> dict[str, list[str]]:
    """Returns what both processes say of each check: nothing, or a fault. Of one that did not end there is less."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (home / "log.txt").open("w") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), port, str(home), strategy],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=600)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    said = [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]
    faults: dict[str, list[str]] = {}
    for one in said:
        faults.setdefault(one["check"], []).append(one["fault"])
    return faults


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return run_checks(tmp_path_factory.mktemp("sharded"), "fsdp2")


@pytest.mark.slow(seconds=25)
@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_and_one(faults: dict[str, list[str]], name: str) -> None:
    assert faults.get(name) == ["", ""], "\n".join(faults.get(name, ["it did not end"]))


@pytest.mark.engine
def test_zero3_takes_what_was_loaded(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    assert run_checks(tmp_path, "zero3") == {"hands_its_rows_to_zero3": ["", ""]}
