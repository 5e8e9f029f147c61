"""A lack of memory is named with what to turn, and what was done before it is gone on with, in every phase."""

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from qwen_align.align.context import MEASURED, Context, Phase
from qwen_align.align.errors import OutOfMemory
from qwen_align.align.generation import resumable
from qwen_align.align.generation.batched_decoding import DecodingSlots
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.models import loading
from qwen_align.align.pipeline import launcher
from qwen_align.align.pipeline.worker import _run_in_memory
from qwen_align.align.rl.scoring import Scorer
from qwen_align.align.rows import Message, Pair, Row, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.memory_advice import choose_turn
from qwen_align.align.store import integrity
from qwen_align.align.training.out_of_memory import is_out_of_memory
from qwen_align.align.training.step_guard import StepGuard, _keep_last_step
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

TUNED = {"from_model": "base", "max_tokens": 200, "batch": 4, "epochs": 1, "learning_rate": 1e-3}
ONLINE = {
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 2,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 8},
    "learning_rate": 1e-3,
    "schedule": "constant",
    "updates": {"minibatches": 2},
    "kl": {"coefficient": 0.05, "target": 2.0, "horizon": 50},
    "entropy": {"coefficient": 0.01, "target": 9.0, "coefficient_delta": 0.002},
}
DRAWN = {
    "from_model": "base",
    "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 6},
}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", **TUNED, "from_data": ["traces"], "lora": {"rank": 2, "alpha": 4, "dropout": 0.5}},
    "sft full": {"kind": "sft", **TUNED, "from_data": ["traces"]},
    "dpo": {"kind": "dpo", **TUNED, "from_data": ["pairs"], "beta": 0.1},
    "reward_model": {"kind": "reward_model", **TUNED, "from_data": ["pairs"]},
    "grpo": {"kind": "grpo", **ONLINE},
    "grpo ahead": {"kind": "grpo", **ONLINE, "steps": 3, "async_steps": 1},
    "ppo": {"kind": "ppo", **ONLINE, "critic": {"learning_rate": 1e-2}},
    "rollout": {"kind": "rollout", **DRAWN, "from_data": "problems", "rewards": [{"kind": "random"}]},
    "evaluate": {"kind": "evaluate", **DRAWN, "from_data": ["problems"]},
}
SLOW = pytest.mark.slow(seconds=2)
CUDA_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB"


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that stages read, by reference."""
    home = tmp_path_factory.mktemp("inputs")
    traces = list(Arithmetic(rows="trace", n=12, steps=[1, 3]).generate(0))
    rows: dict[str, list[Row]] = {
        "traces": list(traces),
        "pairs": [_make_pair(row) for row in traces],
        "problems": list(Arithmetic(rows="problem", n=8, steps=[1, 2]).generate(0)),
    }
    for name, those in rows.items():
        (home / name).mkdir()
        (home / name / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in those))
    return {"base": tiny_model, **{name: home / name for name in rows}}


def _make_pair(row: Any) -> Pair:
    wrong = box_answer(str(int(row.gold) + 1))
    sides = [Message(role="assistant", content=said, thinking=row.thinking) for said in (row.answer, wrong)]
    return Pair(id=row.id, messages=row.messages, chosen=sides[0], rejected=sides[1], mode="think")


def run(
    name: str, inputs: dict[str, Path], out: Path, *, settings: dict[str, Any] | None = None, **runtime: Any
) -> Any:
    """Runs a stage in this process as its worker does, without the manifest."""
    spec: Any = TypeAdapter[Any](AnyStage).validate_python({"name": "stage", **STAGES[name], **(settings or {})})
    out.mkdir(parents=True, exist_ok=True)
    given = {"device": "cpu", "micro_batch": 2, "generation_batch": 4, "checkpoint_every": 100} | runtime
    context = Context(out, 0, Runtime.model_validate(given))
    stage = importlib.import_module(f"qwen_align.align.stages.{spec.kind}")
    return _run_in_memory(partial(stage.run, spec, inputs, out, context), spec, context)


def run_out(name: str, inputs: dict[str, Path], out: Path, **settings: Any) -> str:
    """Runs a stage that has to run out of memory and returns what it says."""
    with pytest.raises(OutOfMemory) as raised:
        run(name, inputs, out, **settings)
    assert raised.value.exit_code == 4
    return str(raised.value)


class Lack:
    """Raises an out-of-memory error when a function of the product or a library returns for the n-th time.

    `steps`: counted from when so many optimiser steps of the stage in `out` have been logged. `forever`: from then on.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        place: tuple[Any, str],
        out: Path,
        *,
        steps: int = 0,
        n: int = 1,
        forever: bool = False,
    ) -> None:
        original = getattr(*place)
        self.calls = 0

        def fail(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            logged = out / "metrics.jsonl"
            self.calls += not steps or (logged.exists() and len(logged.read_text().splitlines()) >= steps)
            if self.calls == n or (forever and self.calls > n):
                raise torch.OutOfMemoryError(CUDA_MESSAGE)
            return result

        monkeypatch.setattr(*place, fail)


def digest(out: Path) -> dict[str, str]:
    """Digests of what a stage hands on and of its logs, without measured figures."""
    files = [path for name in ("model", "adapter") for path in sorted((out / name).glob("*"))]
    files += [out / name for name in ("rows.jsonl", "completions.jsonl") if (out / name).exists()]
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for name in ("metrics.jsonl", "samples.jsonl", "notes.jsonl"):
        if (out / name).exists():
            lines = [json.loads(line) for line in (out / name).read_text().splitlines()]
            found[name] = json.dumps(
                [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in lines]
            )
    assert found
    return found


def find_checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError(CUDA_MESSAGE), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to mmap 2048 bytes from file <model.safetensors>: Cannot allocate memory (12)"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("The size of tensor a (16) must match the size of tensor b (640)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_its_type_or_words(error: Exception, is_lack: bool) -> None:
    assert is_out_of_memory(error) == is_lack


def test_torchs_own_error_on_a_cpu_is_known_also_behind_another() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    outer = ValueError("cannot load")
    outer.__cause__ = raised.value
    assert is_out_of_memory(outer)


LORA = {"rank": 2, "alpha": 4}
NF4 = {**LORA, "base_weights": "nf4"}
TURNED: list[tuple[str, dict[str, Any], dict[str, Any], Phase, tuple[str, Any, bool] | None]] = [
    ("sft", {}, {"micro_batch": 8}, Phase("update", 1, 4, 9), ("runtime.micro_batch", 2, False)),
    ("sft", {}, {"micro_batch": 1}, Phase("update", 1, 1, 9), ("runtime.gradient_checkpointing", True, False)),
    ("sft", {}, {"micro_batch_tokens": 4096}, Phase("update", 1, 4, 9), ("runtime.micro_batch_tokens", 2048, False)),
    ("sft", {}, {"micro_batch_tokens": 10}, Phase("update", 1, 4, 9), ("runtime.micro_batch_tokens", 9, False)),
    ("sft", {}, {"micro_batch_tokens": 9}, Phase("update", 1, 1, 9), ("runtime.gradient_checkpointing", True, False)),
    ("sft full", {}, {"micro_batch": 8}, Phase("update", 1), ("lora", {"rank": 16, "alpha": 32}, True)),
    ("dpo", {"sft_weight": 1.0}, {"micro_batch": 8}, Phase("update", 1, 4, 9), ("runtime.micro_batch", 2, False)),
    ("grpo", {}, {"micro_batch": 8}, Phase("score", 1, None, 9), ("runtime.micro_batch", 4, False)),
    ("grpo", {}, {"generation_batch": 64}, Phase("draw", 1, 8, 9), ("runtime.generation_batch", 4, False)),
    ("grpo", {}, {"kv_cache_gib": 8.0}, Phase("draw", 1, 8, 9), ("runtime.kv_cache_gib", None, False)),
    ("evaluate", {}, {"generation_batch": 1}, Phase("draw", None, 8, 9), ("sampling.max_tokens", 3, True)),
    ("evaluate", {}, {}, Phase("load"), ("precision", "bf16", True)),
    ("evaluate", {"precision": "bf16"}, {}, Phase("load"), None),
    ("sft", {"lora": LORA}, {}, Phase("load"), ("lora.base_weights", "nf4", True)),
    ("sft", {"lora": {**LORA, "base_weights": "bf16"}}, {}, Phase("load"), ("lora.base_weights", "nf4", True)),
    ("sft", {"lora": NF4}, {}, Phase("load"), None),
    (
        "grpo",
        {"lora": LORA, "engine": "vllm"},
        {"device": "cuda", "engine": {"gpu_memory_utilization": 0.1}},
        Phase("load"),
        None,  # vLLM does not draw from a base in 4 bits
    ),
    ("sft", {"lora": LORA, "precision": "fp32"}, {}, Phase("load"), ("precision", "bf16", True)),
    (
        "sft",
        {"lora": {**LORA, "base_weights": "fp32"}, "precision": "bf16"},
        {},
        Phase("load"),
        ("lora.base_weights", "bf16", True),
    ),
    ("sft full", {}, {"micro_batch": 4}, Phase("save", 1), ("runtime.micro_batch", 2, False)),
    (
        "grpo",
        {"engine": "vllm"},
        {"device": "cuda", "engine": {"gpu_memory_utilization": 0.4}},
        Phase("sync", 1),
        ("runtime.engine.gpu_memory_utilization", 0.3, False),
    ),
]


@pytest.mark.parametrize(("name", "settings", "runtime", "phase", "turned"), TURNED)
def test_the_setting_to_turn_is_the_first_that_leaves_less_in_memory(
    name: str,
    settings: dict[str, Any],
    runtime: dict[str, Any],
    phase: Phase,
    turned: tuple[str, Any, bool] | None,
) -> None:
    spec: Any = TypeAdapter[Any](AnyStage).validate_python({"name": "stage", **STAGES[name], **settings})
    turn = choose_turn(spec, Runtime.model_validate({"device": "cpu", **runtime}), phase)
    assert (turn and (turn.setting, turn.value, turn.in_key)) == turned


BACKWARD = (accelerate.Accelerator, "backward")
ADAM = (torch.optim.AdamW, "step")
LOADING = (loading, "check_weights")
DRAWING = (DecodingSlots, "_decode_step")
SCORING = (Scorer, "_score_tokens")
SAVING = (integrity, "seal_folder")


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a stage that had memory enough."""
    home = tmp_path_factory.mktemp("whole")

    def make(name: str) -> Path:
        if not (home / name).exists():
            run(name, inputs, home / name)
        return home / name

    return make


def test_sft_goes_on_from_the_last_completed_step(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the failed step a micro-batch has been added to the gradients, and dropout has drawn random numbers."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Lack(patch, BACKWARD, out, steps=2, n=2)
        message = run_out("sft", inputs, out)
    assert "out of memory in the update phase of step 3 of an sft stage" in message
    assert 20 < int(message.partition("longest row ")[2].split()[0]) < 200
    assert "Set runtime.micro_batch: 1 (now 2). Step 2 is saved: `run` goes on from it" in message
    assert "CUDA out of memory" in message
    assert find_checkpoints(out) == ["checkpoint-2"]
    run("sft", inputs, out)
    run("sft", inputs, tmp_path / "whole")
    assert digest(out) == digest(tmp_path / "whole")


def test_grpo_goes_on_with_a_batch_that_no_update_has_trained_on(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    """It is not drawn again: its rollouts, metrics, samples and the minibatch that was taken are in the checkpoint."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Lack(patch, BACKWARD, out, steps=2)
        assert "the update phase of step 3 of a grpo stage" in run_out("grpo", inputs, out)
    assert (out / "checkpoints" / "checkpoint-2" / "rollouts.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(DecodingSlots, "_decode_step", None)
        run("grpo", inputs, out)
    assert digest(out) == digest(whole("grpo"))


@pytest.mark.parametrize(("is_updating", "saves"), [(False, True), (True, False)])
def test_weights_that_are_half_written_are_not_saved(is_updating: bool, saves: bool, tmp_path: Path) -> None:
    saved = []
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=3),
        args=SimpleNamespace(output_dir=tmp_path),
        model=torch.nn.Linear(1, 1),
        last_saved_step=2,
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        _save_checkpoint=lambda model, trial: saved.append(model),
    )
    guard = StepGuard(Context(tmp_path, 0, Runtime()))
    guard.is_updating = is_updating
    kept = _keep_last_step(trainer, guard, resumed_from=0)
    assert kept.endswith("goes on from it" if saves else "goes on from the checkpoint of step 2")
    assert saved == [trainer.model] * saves


@pytest.mark.parametrize(
    ("place", "phase", "kept"),
    [
        (LOADING, "load phase", "starts it from the beginning"),
        (BACKWARD, "update phase of step 1", "goes on from the beginning"),
    ],
)
def test_before_the_first_step_nothing_is_saved(
    place: tuple[Any, str], phase: str, kept: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    Lack(monkeypatch, place, tmp_path)
    message = run_out("sft", inputs, tmp_path)
    assert f"the {phase} of an sft stage" in message
    assert kept in message
    assert not find_checkpoints(tmp_path)


# (stage, where memory is short, after how many steps, for the n-th time, phase, step of the checkpoint or None)
GRID: dict[str, tuple[str, tuple[Any, str], int, int, str, int | None]] = {
    "sft, weights half written": ("sft full", ADAM, 2, 1, "update phase of step 3", None),
    "sft, saved again": ("sft full", SAVING, 0, 1, "save phase of step 3", 3),
    "dpo": ("dpo", BACKWARD, 2, 2, "update phase of step 3", 2),
    "reward_model": ("reward_model", BACKWARD, 2, 1, "update phase of step 3", 2),
    "grpo, draw": ("grpo", DRAWING, 2, 3, "draw phase of step 3", 2),
    "grpo, score": ("grpo", SCORING, 2, 1, "score phase of step 3", 2),
    "grpo, second update of a batch": ("grpo", BACKWARD, 3, 1, "update phase of step 4", 3),
    "grpo, draw ahead": ("grpo ahead", DRAWING, 2, 3, "draw phase of step 3", 2),
    "ppo, score": ("ppo", SCORING, 2, 2, "score phase of step 3", 2),
}
# One of each way back; the others differ in the kind of stage alone.
IN_CI = {"sft, weights half written", "sft, saved again", "dpo", "grpo, draw", "grpo, second update of a batch"}


@pytest.mark.parametrize(
    "short", [pytest.param(one, marks=SLOW if one in IN_CI else pytest.mark.evidence) for one in GRID]
)
def test_gone_on_with_equals_uninterrupted(
    short: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    name, place, steps, n, phase, saved = GRID[short]
    with monkeypatch.context() as patch:
        Lack(patch, place, tmp_path / "out", steps=steps, n=n)
        message = run_out(name, inputs, tmp_path / "out")
    assert f"the {phase} of a" in message
    assert f" {name.split()[0]} stage" in message
    assert find_checkpoints(tmp_path / "out") == ([f"checkpoint-{saved}"] if saved else [])
    assert ("it was writing the weights" in message.lower()) == ("half written" in short)
    run(name, inputs, tmp_path / "out")
    assert digest(tmp_path / "out") == digest(whole(name))


@SLOW
@pytest.mark.parametrize("name", ["sft full", "grpo"])
def test_gone_on_with_a_smaller_micro_batch_equals_uninterrupted_up_to_rounding(
    name: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    with monkeypatch.context() as patch:
        Lack(patch, BACKWARD, tmp_path / "out", steps=2, n=2)
        run_out(name, inputs, tmp_path / "out")
    run(name, inputs, tmp_path / "out", micro_batch=1)
    one, two = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "out", whole(name)))
    for weight in one:
        torch.testing.assert_close(one[weight], two[weight], atol=2e-5, rtol=1e-4)


@SLOW
def test_a_checkpoint_that_cannot_be_saved_leaves_the_older_one(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Lack(patch, SAVING, tmp_path, steps=2, forever=True)
        message = run_out("sft full", inputs, tmp_path, checkpoint_every=1)
    assert "Saving step 2 failed too (OutOfMemoryError): `run` goes on from the checkpoint of step 1" in message
    assert find_checkpoints(tmp_path) == ["checkpoint-1"]
    run("sft full", inputs, tmp_path)


@SLOW
def test_an_engine_with_weights_of_its_own_runs_out_while_they_are_sent(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "has_own_weights", property(lambda self: True))
    Lack(monkeypatch, (LocalEngine, "sync_weights"), tmp_path, steps=2)
    message = run_out("grpo", inputs, tmp_path, settings={"kl": None})
    assert "the sync phase of step 3 of a grpo stage" in message
    assert "Step 2 is saved" in message


@pytest.mark.parametrize("name", ["rollout", "evaluate"])
def test_drawn_parts_are_kept_under_a_smaller_batch(
    name: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two parts with four prompts each the second runs out of memory."""
    with monkeypatch.context() as patch:
        Lack(patch, (resumable, "sort_completions"), tmp_path, n=2)
        message = run_out(name, inputs, tmp_path, generation_batch=2)
    assert "the draw phase of a" in message
    assert f" {name} stage" in message
    assert "Set runtime.generation_batch: 1 (now 2). `run` goes on from the completions that are drawn" in message
    drawn = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("parts/**/*.jsonl")}
    assert len(drawn) == 1
    run(name, inputs, tmp_path, generation_batch=1)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("parts/**/*.jsonl")}
    assert drawn.items() <= kept.items()
    assert len(kept) == 2, "cut as before"


RANKED = """
import json, os, sys, time
from pathlib import Path
import accelerate, torch
from qwen_align.align.pipeline import warm_server, worker
from qwen_align.align.stages import sft
backward = accelerate.Accelerator.backward
def fail(self, loss, **settings):
    backward(self, loss, **settings)
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
accelerate.Accelerator.backward = fail
began = time.monotonic()
folder = sys.argv[1]
files = {"folder": folder, "report": f"{folder}/report.json", "log": f"{folder}/log.txt"}
pids = warm_server.fork_stage({**files, "processes": 2, "is_group": True}, 0.0)
print(json.dumps([warm_server.wait_for_processes(pids), time.monotonic() - began]))
"""


@pytest.mark.slow(seconds=10)
def test_of_two_processes_one_ends_the_other(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The other waits for its gradients; what is said is what the one that ran out of memory says."""
    job = {
        "key": "key",
        "settings": {"name": "stage", **STAGES["sft full"]},
        "inputs": {name: {"folder": str(folder)} for name, folder in inputs.items()},
        "seed": 0,
        "runtime": {"device": "cpu", "processes": 2, "threads": 1},
    }
    (tmp_path / "stage.json").write_text(json.dumps(job))
    done = subprocess.run([sys.executable, "-c", RANKED, str(tmp_path)], capture_output=True, text=True, check=True)
    code, seconds = json.loads(done.stdout.splitlines()[-1])
    assert code == 4
    assert seconds < 60
    report = launcher._read_report(tmp_path / "report.json")
    assert report is not None
    assert "out of memory in the update phase of step 1" in report["message"]
    assert not find_checkpoints(tmp_path)
