"""Stages that train, run as users run them: killed and resumed, in two processes, with LoRA, with nothing to learn."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qwen_align.align.rows import Completion, Message, Pair, read_rows, to_json_line
from qwen_align.data_builders.arithmetic import Arithmetic, boxed
from qwen_align.reward.verdict import Verdict

pytestmark = pytest.mark.slow

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
    "samples": 4,
    "sampling": SAMPLING,
    "rewards": [{"kind": "math_answer"}],
}
EVALUATE = {
    "name": "evaluate",
    "kind": "evaluate",
    "from_model": "base",
    "from_data": ["problems"],
    "samples": 4,
    "sampling": SAMPLING,
    "switches": [{"switch": "default"}, {"switch": "kwarg", "mode": "no_think"}],
}
GRPO = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],  # so that every group has a signal
    "steps": 6,
    "prompts": 4,
    "samples": 4,
    "sampling": {**SAMPLING, "max_tokens": 64},
    "learning_rate": 1e-3,
    "schedule": "constant",
}


def write_pairs(folder: Path, n: int = 40) -> dict[str, Any]:
    """A file of typed pairs, the right answer over one that is off by one, and the stage that reads it."""
    lines = []
    for row in Arithmetic(rows="trace", n=n, steps=[2]).generate(7):
        assert row.row == "trace"
        wrong = boxed(str(int(row.gold) + 1))
        sides = [Message(role="assistant", content=said, thinking=row.thinking) for said in (row.answer, wrong)]
        pair = Pair(id=row.id, messages=row.messages, chosen=sides[0], rejected=sides[1], mode="think")
        lines.append(to_json_line(pair) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    return {
        "name": "pairs",
        "kind": "build_data",
        "builder": {"kind": "local_file", "path": "pairs.jsonl", "rows": "typed"},
    }


def write_recipe(folder: Path, *stages: dict[str, Any], **runtime: Any) -> Path:
    recipe = {
        "name": "trained",
        "models": {"base": {"shipped": "tiny_base"}},
        "runtime": {"checkpoint_every": 5, "rollout_rows": 16, "device": "cpu", "threads": 1, **runtime},
        "stages": list(stages),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, home: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", str(home)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(recipe: Path, home: Path, *, code: int = 0) -> str:
    process = start(recipe, home)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, said
    return said


def stage(home: Path, kind: str) -> Path:
    (folder,) = home.glob(f"store/{kind}-*")
    return folder


def outputs(home: Path) -> dict[str, str]:
    """Digests of everything that stages made, from their manifests."""
    return {
        f"{manifest.parent.name}/{name}": digest
        for manifest in home.glob("store/*/manifest.json")
        for name, digest in json.loads(manifest.read_text())["outputs"].items()
    }


def weights(home: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(stage(home, kind) / "model" / "model.safetensors")


def weights_of(path: Path, part: str) -> torch.Tensor:
    """All weights whose names hold `part`, flat."""
    return torch.cat([one.flatten() for name, one in load_file(path).items() if part in name])


def metrics(home: Path, kind: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage(home, kind) / "metrics.jsonl").read_text().splitlines()]


def wait_for(pattern: str, home: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not list(home.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.005)


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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    pairs = write_pairs(folder)
    recipe = write_recipe(folder, TRACES, PROBLEMS, pairs, SFT, DPO, ROLLOUT, EVALUATE, GRPO)
    run(recipe, folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="a killed run takes its children along on Linux only")
def test_killed_in_every_stage_and_resumed_equals_uninterrupted(uninterrupted: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TRACES, PROBLEMS, write_pairs(tmp_path), SFT, DPO, ROLLOUT, EVALUATE, GRPO)
    for sign in (
        "store/sft-*/checkpoints/checkpoint-*",
        "store/dpo-*/checkpoints/checkpoint-*",
        "store/rollout-*/parts/*.jsonl",
        "store/evaluate-*/parts/*/*.jsonl",
        "store/grpo-*/checkpoints/checkpoint-*",
    ):
        process = start(recipe, tmp_path)
        wait_for(sign, tmp_path, process)
        family = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        while any(is_alive(pid) for pid in family):
            time.sleep(0.02)
        kind = sign.split("/")[1].removesuffix("-*")
        assert not (stage(tmp_path, kind) / "manifest.json").exists(), f"{kind} was done before it was killed"
    run(recipe, tmp_path)
    assert outputs(tmp_path) == outputs(uninterrupted)
    assert metrics_without_times(tmp_path) == metrics_without_times(uninterrupted)


def metrics_without_times(home: Path) -> list[dict[str, float]]:
    lines = [line for kind in ("sft", "dpo", "grpo") for line in metrics(home, kind)]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def test_second_run_does_nothing_in_two_seconds(uninterrupted: Path) -> None:
    before = outputs(uninterrupted)
    times = {path: path.stat().st_mtime_ns for path in uninterrupted.glob("store/*/*")}
    started = time.monotonic()
    said = run(uninterrupted / "recipe.yaml", uninterrupted)
    assert time.monotonic() - started < 2
    assert said.count("stored") == 8
    assert "started" not in said
    assert outputs(uninterrupted) == before
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.glob("store/*/*") if path.name != "lock"} == {
        path: when for path, when in times.items() if path.name != "lock"
    }


def test_asked_to_stop_it_saves_and_ends_with_75(uninterrupted: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TRACES, SFT, checkpoint_every=1000)
    process = start(recipe, tmp_path)
    wait_for("store/sft-*/progress.json", tmp_path, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "run again to go on" in said
    assert list(stage(tmp_path, "sft").glob("checkpoints/checkpoint-*/complete.json"))
    run(recipe, tmp_path)
    whole, resumed = outputs(uninterrupted), outputs(tmp_path)
    assert resumed == {name: whole[name] for name in resumed}


def test_first_dpo_loss_is_ln_2_and_training_widens_the_margin(uninterrupted: Path) -> None:
    steps = metrics(uninterrupted, "dpo")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[-1]["rewards/margins"] > 0.05


def test_lora_stages_chain_and_the_reference_is_the_stage_before(tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8}
    sft = {**SFT, "lora": lora, "epochs": 1}
    dpo = {**DPO, "from_model": "sft", "epochs": 1, "lora": lora}
    full = {**DPO, "name": "full", "from_model": "dpo", "epochs": 0.5}
    run(write_recipe(tmp_path, TRACES, write_pairs(tmp_path), sft, dpo, full), tmp_path)
    after_lora, after_both = sorted(tmp_path.glob("store/dpo-*"), key=lambda path: (path / "model").exists())
    said = json.loads((after_lora / "model.json").read_text())
    assert [(after_lora / adapter).resolve().parent.name.split("-")[0] for adapter in said["adapters"]] == [
        "sft",
        "dpo",
    ]
    recipe = write_recipe(
        tmp_path, TRACES, PROBLEMS, sft, {**GRPO, "from_model": "sft", "kl": {"coefficient": 0.1}, "steps": 1}
    )
    run(recipe, tmp_path)
    assert metrics(tmp_path, "grpo")[0]["kl"] == pytest.approx(0, abs=1e-5)
    for folder in (after_lora, after_both):
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert (after_both / "model" / "model.safetensors").exists()


def test_grpo_with_lora_draws_from_the_adapted_model(tmp_path: Path) -> None:
    grpo = {**GRPO, "lora": {"rank": 4, "alpha": 8}, "steps": 2}
    run(write_recipe(tmp_path, PROBLEMS, grpo), tmp_path)
    assert (stage(tmp_path, "grpo") / "adapter" / "adapter_model.safetensors").exists()
    # At the second step the adapter is no longer zero; what drew must have been the model that is trained.
    assert metrics(tmp_path, "grpo")[1]["mismatch/mean"] < 1e-5
    assert weights_of(stage(tmp_path, "grpo") / "adapter" / "adapter_model.safetensors", "lora_B").abs().max() > 0


def test_several_rewards_in_rollout_and_grpo(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(completion, gold):\n    return {'value': len(completion.text) % 2, 'reason': str(gold)}\n"
    )
    rewards = [
        {"kind": "math_answer"},
        {"kind": "python", "file": "mine.py"},
        {"kind": "kimi_length", "weight": 0.2},
        {"kind": "format", "weight": 0.1},
    ]
    stages = [{**ROLLOUT, "rewards": rewards}, {**GRPO, "rewards": rewards, "steps": 1}]
    run(write_recipe(tmp_path, PROBLEMS, *stages), tmp_path)
    rows = list(read_rows(stage(tmp_path, "rollout") / "rows.jsonl"))
    for row in rows:
        assert isinstance(row, Completion)
        assert list(row.verdicts) == sorted(["math_answer", "judge", "kimi_length", "format"])
        assert row.verdicts["judge"] == Verdict(value=float(len(row.text) % 2), reason=str(row.gold))
    (line,) = metrics(tmp_path, "grpo")
    assert {f"reward/{label}" for label in ("math_answer", "judge", "kimi_length", "format")} <= set(line)


def test_constant_reward_leaves_the_model_bytes_as_they_are(tmp_path: Path) -> None:
    grpo = {**GRPO, "rewards": [{"kind": "constant"}], "steps": 2}
    run(write_recipe(tmp_path, PROBLEMS, grpo), tmp_path)
    assert {line["reward_std"] for line in metrics(tmp_path, "grpo")} == {0.0}
    base = load_file(Path(__file__).parents[2] / "recipes" / "tiny_base" / "model.safetensors")
    after = weights(tmp_path, "grpo")
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages of `uninterrupted` in two gloo processes."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(
        folder, TRACES, PROBLEMS, write_pairs(folder), SFT, DPO, ROLLOUT, EVALUATE, {**GRPO, "steps": 1}, processes=2
    )
    run(recipe, folder)
    return folder


def test_two_processes_of_sft_equal_one(tmp_path: Path) -> None:
    sft = {**SFT, "batch": 8, "epochs": 1}  # few steps: Adam makes much of rounding errors in time
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run(write_recipe(folder, TRACES, sft, processes=processes), folder)
    one, two = (weights(tmp_path / str(processes), "sft") for processes in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def test_two_processes_of_dpo_see_the_losses_of_one(uninterrupted: Path, in_two_processes: Path) -> None:
    one, two = ([line["loss"] for line in metrics(home, "dpo")] for home in (uninterrupted, in_two_processes))
    assert two == pytest.approx(one, abs=1e-4)


def test_two_processes_draw_what_one_draws(uninterrupted: Path, in_two_processes: Path) -> None:
    for kind, name in (("rollout", "rows.jsonl"), ("evaluate", "completions.jsonl")):
        one, two = (stage(home, kind) / name for home in (uninterrupted, in_two_processes))
        assert one.read_text() == two.read_text()
    step = [metrics(home, "grpo")[0] for home in (uninterrupted, in_two_processes)]
    for name in ("completions/mean_tokens", "completions/max_tokens", "reward"):
        assert step[0][name] == step[1][name], name


@pytest.mark.skipif(sys.platform != "linux", reason="a killed run takes its children along on Linux only")
def test_two_processes_die_with_their_run_and_go_on(tmp_path: Path, in_two_processes: Path) -> None:
    recipe = write_recipe(tmp_path, TRACES, SFT, processes=2)
    process = start(recipe, tmp_path)
    wait_for("store/sft-*/checkpoints/checkpoint-*", tmp_path, process)
    family = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in family):
        assert time.monotonic() < deadline, "a process outlived its run"
        time.sleep(0.05)
    run(recipe, tmp_path)
    one, two = (weights(home, "sft") for home in (tmp_path, in_two_processes))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_base_that_ends_and_pads_with_the_end_of_a_text_learns_to_end_its_turn(tmp_path: Path) -> None:
    """As the bases of Qwen2.5 and Qwen3 are published: vLLM and `generate` would never stop after an answer."""
    base = shutil.copytree(Path(__file__).parents[2] / "recipes" / "tiny_base", tmp_path / "base")
    said = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|endoftext|>"}))
    ends = json.loads((base / "generation_config.json").read_text())
    of_text, of_turn = ends["pad_token_id"], ends["eos_token_id"][0]
    (base / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": of_text}))
    recipe = write_recipe(tmp_path, TRACES, {**SFT, "epochs": 0.2})
    whole = {**yaml.safe_load(recipe.read_text()), "models": {"base": {"path": "base"}}}
    recipe.write_text(yaml.safe_dump(whole))
    run(recipe, tmp_path)
    model = stage(tmp_path, "sft") / "model"
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == [of_turn, of_text]


def test_without_data_a_stage_ends_with_3_or_hands_the_model_on(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("")
    builder = {"kind": "local_file", "path": "pairs.jsonl", "rows": "typed"}
    pairs = {"name": "pairs", "kind": "build_data", "builder": builder, "on_empty": "pass_through"}
    said = run(write_recipe(tmp_path, pairs, DPO), tmp_path, code=3)
    assert "on_empty: pass_through" in said
    handed_on = {**DPO, "on_empty": "pass_through"}
    rollout = {**ROLLOUT, "from_model": "dpo", "samples": 1}
    run(write_recipe(tmp_path, pairs, handed_on, PROBLEMS, rollout), tmp_path)
    (done,) = (path.parent for path in tmp_path.glob("store/dpo-*/manifest.json"))
    assert json.loads((done / "model.json").read_text())["adapters"] == []
    assert json.loads((done / "manifest.json").read_text())["summary"]["passed_through"] is True


def test_two_processes_of_online_rl_see_the_losses_of_one(tmp_path: Path) -> None:
    kl = {"coefficient": 0.05, "place": "reward", "estimator": "k1"}
    grpo = {**GRPO, "steps": 3, "updates": {"epochs": 2, "minibatches": 2}, "dynamic_sampling": {"most_prompts": 6}}
    ppo = {
        **{name: value for name, value in GRPO.items() if name != "kind"},
        "kind": "ppo",
        "name": "ppo",
        "prompts": 3,  # so that one process has more passes to make than the other
        "steps": 3,
        "critic": {"learning_rate": 1e-3, "warmup_steps": 1},
        "kl": kl,
        "updates": {"epochs": 2},
        "ptx": {"from_data": ["texts"], "coefficient": 0.1, "batch": 3, "max_tokens": 200},
    }
    texts = {**PROBLEMS, "name": "texts", "builder": {**PROBLEMS["builder"], "rows": "text", "n": 10}}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run(write_recipe(folder, PROBLEMS, texts, grpo, ppo, processes=processes, micro_batch=4), folder)
    for kind in ("grpo", "ppo"):
        one, two = (metrics(tmp_path / str(processes), kind) for processes in (1, 2))
        assert len(one) == len(two) == {"grpo": 12, "ppo": 6}[kind]
        for left, right in zip(one, two, strict=True):
            for name in ("loss", "entropy", "reward", "value/loss", "kl", "ptx/loss"):
                if name in left:
                    assert left[name] == pytest.approx(right[name], abs=1e-5), (left["step"], name)


def test_a_reward_model_learns_its_pairs_and_pays_in_grpo(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path)
    scorer = {
        "name": "rm",
        "kind": "reward_model",
        "from_model": "base",
        "from_data": ["pairs"],
        "max_tokens": 256,
        "batch": 8,
        "epochs": 12,
        "learning_rate": 2e-3,
    }
    small = {**scorer, "name": "rm_lora", "lora": {"rank": 4, "alpha": 8}, "epochs": 1}
    paid = [{**GRPO, "rewards": [{"kind": "learned", "from_scorer": name}], "steps": 1} for name in ("rm", "rm_lora")]
    shaped = {**GRPO, "name": "shaped", "rewards": [{"kind": "qwen2_5_math", "from_scorer": "rm"}], "steps": 1}
    stages = [scorer, small, paid[0], {**paid[1], "name": "grpo_lora"}, shaped]
    run(write_recipe(tmp_path, PROBLEMS, pairs, *stages), tmp_path)
    folders = sorted(tmp_path.glob("store/reward_model-*"), key=lambda path: (path / "adapter").exists())
    learned = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert learned[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "a new head says 0 of both sides"
    assert sum(one["accuracy"] for one in learned[-5:]) / 5 > 0.8
    assert (folders[1] / "adapter" / "adapter_model.safetensors").exists()
    labels = {
        label for path in tmp_path.glob("store/grpo-*/metrics.jsonl") for label in json.loads(path.open().readline())
    }
    assert {"reward/learned", "reward/qwen2_5_math"} <= labels
