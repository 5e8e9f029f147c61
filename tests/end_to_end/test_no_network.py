"""The whole ladder where there is no network: it asks for nothing, waits for nothing, and judges code all the same."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Message, Problem, to_json_line

# Runs the command line in a network namespace of its own, whose only interface is loopback, brought up as anywhere.
ALONE = """
import fcntl, os, socket, struct, sys
siocsifflags, up_and_running = 0x8914, 0x41  # linux/sockios.h, linux/if.h
with socket.socket() as anything:
    fcntl.ioctl(anything, siocsifflags, struct.pack("16sh14x", b"lo", up_and_running))
assert [name for _, name in socket.if_nameindex()] == ["lo"]
os.execv(sys.executable, [sys.executable, "-m", "qwen_align.cli", *sys.argv[1:]])
"""
TIME_LIMIT_S = 570  # the ladder takes half a minute; waiting for a name that never resolves takes longer
SAMPLING = {"temperature": 1.0, "max_tokens": 48}
TUNED = {"max_tokens": 256, "batch": 4, "epochs": 0.25, "learning_rate": 1e-4}
ONLINE = {
    "from_model": "dpo",
    "from_data": ["problems"],
    "rewards": [{"kind": "math_answer"}],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": SAMPLING,
    "learning_rate": 1e-4,
}
COIN_AND_ANSWER = [{"kind": "math_answer"}, {"kind": "random"}]
DRAWN = {"completions_per_prompt": 4, "sampling": SAMPLING}
STAGES: list[dict[str, Any]] = [
    {"name": "traces", "kind": "build_data", "builder": {"kind": "arithmetic", "rows": "trace", "n": 16, "steps": [1]}},
    {
        "name": "problems",
        "kind": "build_data",
        "builder": {"kind": "arithmetic", "rows": "problem", "n": 12, "steps": [1]},
    },
    {"name": "code", "kind": "build_data", "builder": {"kind": "local_file", "path": "code.jsonl", "rows": "typed"}},
    {**TUNED, "name": "sft", "kind": "sft", "from_model": "base", "from_data": ["traces"]},
    {
        **DRAWN,
        "name": "rollouts",
        "kind": "rollout",
        "from_model": "sft",
        "from_data": "problems",
        "thinking_switch": {"method": "kwarg", "mode": "no_think"},
        "rewards": COIN_AND_ANSWER,
    },
    {"name": "pairs", "kind": "build_data", "builder": {"kind": "pairs", "from_data": "rollouts", "reward": "random"}},
    {**TUNED, "name": "dpo", "kind": "dpo", "from_model": "sft", "from_data": ["pairs"], "beta": 0.1},
    {**TUNED, "name": "scorer", "kind": "reward_model", "from_model": "sft", "from_data": ["pairs"]},
    {**ONLINE, "name": "grpo", "kind": "grpo", "runtime": {"processes": 2}},
    {**ONLINE, "name": "coder", "kind": "grpo", "from_data": ["code"], "rewards": [{"kind": "code_tests"}]},
    {**ONLINE, "name": "ppo", "kind": "ppo", "critic": {"learning_rate": 1e-4}},
    {
        **DRAWN,
        "name": "evaluated",
        "kind": "evaluate",
        "from_model": "grpo",
        "from_data": ["problems", "code"],
    },
]


def write_code(path: Path) -> None:
    """Two questions whose answers are code."""
    questions = [("adds one to", "f(1) == 2"), ("doubles", "f(3) == 6")]
    rows = [
        Problem(
            id=f"code-{place}",
            messages=[Message(role="user", content=f"Write f(x), which {does} x.")],
            gold={"tests": [f"assert {test}"]},
            reward="code_tests",
        )
        for place, (does, test) in enumerate(questions)
    ]
    path.write_text("".join(to_json_line(row) + "\n" for row in rows))


@pytest.mark.slow
def test_every_stage_runs_without_any_network(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    probe = ["unshare", "-rn", sys.executable, "-c", ALONE, "--help"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs `unshare -rn`: a network namespace of its own")
    write_code(tmp_path / "code.jsonl")
    runtime = {"device": "cpu", "threads": 1, "generation_batch": 32}
    recipe = write_recipe(STAGES, models={"base": {"shipped": "tiny_base"}}, runtime=runtime)
    online = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    home = tmp_path / "home"
    run = [*probe[:-1], "run", str(recipe), "--home", str(home)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False, env=online)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(home.glob("store/*/manifest.json"))) == len(STAGES)
    report = (home / "runs" / "trial" / "report.md").read_text()
    assert "evaluated" in report or "grpo" in report
