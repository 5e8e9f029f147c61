"""DeepSpeed's operators are built by a run itself, also after one that was killed while it built them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_align.align.pipeline.deepspeed_operators import UNFINISHED
from tests.end_to_end import ladder

pytestmark = pytest.mark.engine

SFT = {**ladder.SFT, "batch": 8, "epochs": 0.2, "runtime": {"strategy": "zero2"}}


def test_a_run_builds_them_after_a_killed_build_and_a_lock_that_was_left(tmp_path: Path) -> None:
    operators = tmp_path / "operators"
    recipe = ladder.write_recipe(tmp_path, ladder.TRACES, SFT)
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", str(tmp_path)]
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(operators), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list((operators / UNFINISHED).glob("*/build.ninja")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    left = operators / "deepspeed_shm_comm" / "lock"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building DeepSpeed's operator deepspeed_shm_comm for this CPU, once" in done.stdout
    assert not left.exists()
    assert not (operators / UNFINISHED).exists()
