"""Stages that train, in recipes of the embedded model, and what is read of what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from qwen_align.align.context import MEASURED
from qwen_align.align.rows import Message, Pair, to_json_line
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

BASE = Path(__file__).parents[2] / "recipes" / "tiny_base"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 48}
TRACES = {
    "name": "traces",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 40, "steps": [2]},
}
PROBLEMS = {
    "name": "problems",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 48, "steps": [2]},
}
TEXTS = {**PROBLEMS, "name": "texts", "builder": {"kind": "arithmetic", "rows": "text", "n": 10, "steps": [2]}}
PAIRS = {
    "name": "pairs",
    "kind": "build_data",
    "builder": {"kind": "local_file", "path": "pairs.jsonl", "rows": "typed"},
}
SFT = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 256,
    "batch": 4,
    "epochs": 6,
    "learning_rate": 1e-3,
}
DPO = {
    "name": "dpo",
    "kind": "dpo",
    "from_model": "base",
    "from_data": ["pairs"],
    "max_tokens": 256,
    "batch": 4,
    "epochs": 6,
    "beta": 0.1,
    "learning_rate": 1e-4,
}
ROLLOUT = {
    "name": "rollout",
    "kind": "rollout",
    "from_model": "base",
    "from_data": "problems",
    "completions_per_prompt": 4,
    "sampling": SAMPLING,
    "rewards": [{"kind": "math_answer"}],
}
EVALUATE = {
    "name": "evaluate",
    "kind": "evaluate",
    "from_model": "base",
    "from_data": ["problems"],
    "completions_per_prompt": 4,
    "sampling": SAMPLING,
    "thinking_switches": [{"method": "default"}, {"method": "kwarg", "mode": "no_think"}],
}
GRPO = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],  # so that every group has a signal
    "steps": 6,
    "prompts_per_step": 4,
    "completions_per_prompt": 4,
    "sampling": {**SAMPLING, "max_tokens": 64},
    "learning_rate": 1e-3,
    "schedule": "constant",
}
KINDS = [TRACES, PROBLEMS, PAIRS, SFT, DPO, ROLLOUT, EVALUATE, GRPO]

SMALL = {"rank": 4, "alpha": 8}
ADAPTERS = [
    {**SFT, "name": "lora_sft", "lora": SMALL, "epochs": 1},
    {**DPO, "name": "lora_dpo", "from_model": "lora_sft", "epochs": 1, "lora": SMALL},
    {**DPO, "name": "full_dpo", "from_model": "lora_dpo", "epochs": 0.5},
    {**GRPO, "name": "kl_grpo", "from_model": "lora_sft", "kl": {"coefficient": 0.1}, "steps": 1},
    {**GRPO, "name": "lora_grpo", "lora": SMALL, "steps": 2},
]
JUDGE = "def judge(completion, gold):\n    return {'value': len(completion.text) % 2, 'reason': str(gold)}\n"
SEVERAL = [
    {"kind": "math_answer"},
    {"kind": "python", "file": "mine.py"},
    {"kind": "kimi_length", "weight": 0.2},
    {"kind": "format", "weight": 0.1},
]
REWARDED = [
    {**ROLLOUT, "name": "several_rollout", "rewards": SEVERAL},
    {**GRPO, "name": "several_grpo", "rewards": SEVERAL, "steps": 1},
    {**GRPO, "name": "constant", "rewards": [{"kind": "constant"}], "steps": 2},
]
SCORER = {
    "name": "rm",
    "kind": "reward_model",
    "from_model": "base",
    "from_data": ["pairs"],
    "max_tokens": 256,
    "batch": 8,
    "epochs": 12,
    "learning_rate": 2e-3,
}
SCORED = [
    SCORER,
    {**SCORER, "name": "rm_lora", "lora": SMALL, "epochs": 1},
    {**GRPO, "name": "paid", "rewards": [{"kind": "learned", "from_scorer": "rm"}], "steps": 1},
    {**GRPO, "name": "paid_lora", "rewards": [{"kind": "learned", "from_scorer": "rm_lora"}], "steps": 1},
    {**GRPO, "name": "shaped", "rewards": [{"kind": "qwen2_5_math", "from_scorer": "rm"}], "steps": 1},
]
ENDED = {**SFT, "name": "ended", "from_model": "ends_with_text", "epochs": 0.2}
NO_PAIRS = {
    **PAIRS,
    "name": "no_pairs",
    "builder": {**PAIRS["builder"], "path": "none.jsonl"},
    "on_empty": "pass_through",
}
PASSED_ON = [
    NO_PAIRS,
    {**DPO, "name": "handed_on", "from_data": ["no_pairs"], "on_empty": "pass_through"},
    {**ROLLOUT, "name": "of_handed_on", "from_model": "handed_on", "completions_per_prompt": 1},
]
# What is compared between one process and two; few steps, as Adam makes much of rounding errors in time.
SHARED = [
    TEXTS,
    {**SFT, "name": "few_sft", "batch": 8, "epochs": 1},
    {
        **GRPO,
        "name": "updates_grpo",
        "steps": 3,
        "updates": {"epochs": 2, "minibatches": 2},
        "dynamic_sampling": {"max_prompts": 6},
        "runtime": {"micro_batch": 4},
    },
    {
        **GRPO,
        "name": "ppo",
        "kind": "ppo",
        "prompts_per_step": 3,  # so that one process has more passes to make than the other
        "steps": 3,
        "critic": {"learning_rate": 1e-3, "warmup_steps": 1},
        "kl": {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"},
        "updates": {"epochs": 2},
        "ptx": {"from_data": ["texts"], "coefficient": 0.1, "batch": 3, "max_tokens": 200},
        "runtime": {"micro_batch": 4},
    },
]


def write_inputs(folder: Path) -> None:
    """The files that stages name: typed pairs, the right answer over one that is off by one; none; a reward; a base."""
    lines = []
    for row in Arithmetic(rows="trace", n=40, steps=[2]).generate(7):
        assert row.row == "trace"
        wrong = box_answer(str(int(row.gold) + 1))
        sides = [Message(role="assistant", content=said, thinking=row.thinking) for said in (row.answer, wrong)]
        pair = Pair(id=row.id, messages=row.messages, chosen=sides[0], rejected=sides[1], mode="think")
        lines.append(to_json_line(pair) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    (folder / "none.jsonl").write_text("")
    (folder / "mine.py").write_text(JUDGE)


def write_base_that_ends_with_text(folder: Path) -> None:
    """As the bases of Qwen2.5 and Qwen3 are published: vLLM and `generate` would never stop after an answer."""
    folder.mkdir()
    for path in BASE.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "eos_token": "<|endoftext|>"}))
    ends = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": ends["pad_token_id"]}))


def write_recipe(folder: Path, *stages: dict[str, Any], **runtime: Any) -> Path:
    """A recipe `trained` of these stages, and the files they name, in the folder."""
    write_inputs(folder)
    recipe = {
        "name": "trained",
        "models": {"base": {"shipped": "tiny_base"}},
        "runtime": {"checkpoint_every": 5, "generation_batch": 16, "device": "cpu", "threads": 1, **runtime},
        "stages": list(stages),
    }
    if any(stage.get("from_model") == "ends_with_text" for stage in stages):
        write_base_that_ends_with_text(folder / "ends_with_text")
        recipe["models"] |= {"ends_with_text": {"path": "ends_with_text"}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, home: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", str(home)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(recipe: Path, home: Path, *, code: int = 0) -> str:
    """What the run printed; it has to end with `code`."""
    process = start(recipe, home)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == code, said
    return said


def stage(home: Path, name: str) -> Path:
    """The folder of a stage of the last run."""
    return (home / "runs" / "trained" / "stages" / name).resolve()


def outputs(home: Path) -> dict[str, str]:
    """Digests of everything that stages made, from their manifests."""
    return {
        f"{manifest.parent.name}/{name}": digest
        for manifest in home.glob("store/*/manifest.json")
        for name, digest in json.loads(manifest.read_text())["outputs"].items()
    }


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(stage(home, name) / "model" / "model.safetensors")


def metrics(home: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage(home, name) / "metrics.jsonl").read_text().splitlines()]


def metrics_without_measured(home: Path, *names: str) -> list[dict[str, float]]:
    lines = [line for name in names for line in metrics(home, name)]
    return [{name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines]


def wait_for(pattern: str, home: Path, process: "subprocess.Popen[str]") -> None:
    """Until a path under `home` matches."""
    deadline = time.monotonic() + 300
    while not list(home.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.005)


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its run"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def children(pid: int) -> list[int]:
    said = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in said.splitlines()[1:]]
    direct = [child for child, parent in pairs if parent == pid]
    return direct + [below for child in direct for below in children(child)]
