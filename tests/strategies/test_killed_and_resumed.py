"""Every kind of stage under every strategy, killed and gone on with, ends as one that nobody touched."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = ROOT / "tests" / "evidence" / "strategy_kills.py"
KINDS = ("sft", "dpo", "reward_model", "grpo", "ppo")

# DeepSpeed is installed by `make engines` alone.
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]


def kill(home: Path, cells: list[str], *options: str) -> None:
    """Kills each of the cells once; fails where one does not end as the untouched one."""
    paths = [str(ROOT / "tests" / "fsdp2_on_gloo"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            str(KILLS),
            "--kills",
            str(len(cells)),
            "--cells",
            ",".join(cells),
            "--home",
            str(home),
            *options,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "zero3+parameters", "fsdp2"])
def test_killed_and_resumed_equals_untouched(strategy: str, tmp_path: Path) -> None:
    """PPO with texts and GRPO with a renewed reference among them."""
    kill(tmp_path, [f"{kind}:{strategy}" for kind in KINDS])


def test_other_numbers_of_processes_go_on(tmp_path: Path) -> None:
    kill(tmp_path / "1", ["sft:ddp", "grpo:ddp"], "--continue-by", "1")
    kill(tmp_path / "3", ["sft:ddp", "grpo:ddp", "sft:fsdp2", "grpo:fsdp2"], "--continue-by", "3")
