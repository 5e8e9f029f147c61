"""A lack of memory is named with what to turn, and what was done before it is gone on with, in every phase of a stage."""

import hashlib
import importlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from qwen_align.align.context import MEASURED, Context, Phase
from qwen_align.align.errors import OutOfMemory
from qwen_align.align.generation.batched_decoding import DecodingSlots
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.models import loading
from qwen_align.align.pipeline.worker import _run_in_memory
from qwen_align.align.rl.scoring import Scorer
from qwen_align.align.rows import Message, Pair, Row, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.memory_advice import advise
from qwen_align.align.training.out_of_memory import is_out_of_memory
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
    "grpo ahead": {"kind": "grpo", **ONLINE, "async_steps": 1},
    "ppo": {"kind": "ppo", **ONLINE, "critic": {"learning_rate": 1e-2}},
    "rollout": {"kind": "rollout", **DRAWN, "from_data": "problems", "rewards": [{"kind": "random"}]},
    "evaluate": {"kind": "evaluate", **DRAWN, "from_data": ["problems"]},
}
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


def run(name: str, inputs: dict[str, Path], out: Path, *, settings: dict[str, Any] | None = None, **runtime: Any) -> Any:
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
    """Raises an out-of-memory error when a function of the product or a library returns for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, n: int, *, forever: bool = False) -> None:
        original = getattr(owner, name)
        self.calls = 0

        def fail(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            result = original(*args, **kwargs)
            if self.calls == n or (forever and self.calls > n):
                raise torch.OutOfMemoryError(CUDA_MESSAGE)
            return result

        monkeypatch.setattr(owner, name, fail)


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
    ("dpo", {"sft_weight": 1.0}, {"micro_batch": 8}, Phase("update", 1, 4, 9), ("runtime.micro_batch", 2, True)),
    ("grpo", {}, {"micro_batch": 8}, Phase("score", 1, None, 9), ("runtime.micro_batch", 4, False)),
    ("grpo", {}, {"generation_batch": 64}, Phase("draw", 1, 8, 9), ("runtime.generation_batch", 4, False)),
    ("grpo", {}, {"kv_cache_gib": 8.0}, Phase("draw", 1, 8, 9), ("runtime.kv_cache_gib", 4.0, False)),
    ("evaluate", {}, {"generation_batch": 1}, Phase("draw", None, 8, 9), ("sampling.max_tokens", 3, True)),
    ("evaluate", {}, {}, Phase("load"), ("precision", "bf16", True)),
    ("evaluate", {"precision": "bf16"}, {}, Phase("load"), None),
    ("sft", {"lora": LORA}, {}, Phase("load"), ("lora.base_weights", "bf16", True)),
    ("sft", {"lora": {**LORA, "base_weights": "bf16"}}, {}, Phase("load"), ("lora.base_weights", "nf4", True)),
    ("sft", {"lora": NF4}, {}, Phase("load"), None),
    ("sft full", {}, {"micro_batch": 4}, Phase("save", 1), ("runtime.micro_batch", 2, False)),
    (
        "grpo",
        {"engine": {"kind": "vllm", "gpu_memory_utilization": 0.4}},
        {},
        Phase("sync", 1),
        ("engine.gpu_memory_utilization", 0.3, True),
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
    advice = advise(spec, Runtime.model_validate({"device": "cpu", **runtime}), phase)
    assert (advice and (advice.setting, advice.value, advice.in_key)) == turned


# Where memory is short, for the n-th time: (stage, owner and name of a function, n, phase, what is said, checkpoint).
BACKWARD = (accelerate.Accelerator, "backward")
SHORT: dict[str, tuple[str, tuple[Any, str], int, str, list[str]]] = {
    "load": ("sft", (loading, "check_weights"), 1, "the load phase of a sft stage", []),
    "first step": ("sft", BACKWARD, 2, "the update phase of step 1 of a sft stage", []),
    # Of the third step's two micro-batches the first has been added to the gradients.
    "second micro-batch": ("sft", BACKWARD, 5, "the update phase of step 3 of a sft stage", ["checkpoint-2"]),
}


@pytest.mark.parametrize("short", SHORT)
def test_sft_goes_on_from_the_last_completed_step(
    short: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout makes it see random numbers that the failed pass has drawn."""
    name, place, n, said, left = SHORT[short]
    with monkeypatch.context() as patch:
        Lack(patch, *place, n)
        message = run_out(name, inputs, tmp_path / "out")
    assert said in message
    assert find_checkpoints(tmp_path / "out") == left
    if short != "second micro-batch":
        return
    longest = int(message.partition("longest row ")[2].split()[0])
    assert 20 < longest < 200
    assert "Set runtime.micro_batch: 1 (now 2). Step 2 is saved: `run` goes on from it" in message
    assert "CUDA out of memory" in message
    run(name, inputs, tmp_path / "out")
    run(name, inputs, tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
