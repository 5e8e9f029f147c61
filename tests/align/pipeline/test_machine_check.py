"""What this machine lacks is found before anything is trained, by `check` and `run` alike, without torch."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import check
from qwen_align.align.errors import DataError, RecipeError, StageError
from qwen_align.align.pipeline import launcher, machine_check, strategy_check
from qwen_align.align.pipeline.plan import Plan, check_can_start
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.reward.base import count_cores

BUILDER = {"kind": "arithmetic", "rows": "trace", "n": 4, "steps": [1]}
DATA = {"name": "data", "kind": "build_data", "builder": BUILDER}
PROBLEMS = {"name": "problems", "kind": "build_data", "builder": {**BUILDER, "rows": "problem"}}
SFT = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["data"],
    "max_tokens": 128,
    "batch": 4,
    "epochs": 1,
    "learning_rate": 1e-4,
}
RL = {
    "name": "rl",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 8},
    "rewards": [{"kind": "math_answer"}],
    "learning_rate": 1e-4,
}
LORA = {"rank": 2, "alpha": 4}
NF4 = {**LORA, "base_weights": "nf4"}
PPO = {**RL, "kind": "ppo", "lora": LORA, "critic": {"learning_rate": 1e-4}}


@pytest.fixture
def planned(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Plan]:
    def of(*stages: dict[str, Any], **rest: Any) -> Plan:
        return make_plan(write_recipe(list(stages), models={"base": {"path": str(tiny_model)}}, **rest), tmp_path)

    return of


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`gpus(2)`: torch would see two."""
    return lambda n_gpus: monkeypatch.setattr(machine_check, "count_gpus", lambda: n_gpus)


@pytest.mark.parametrize(
    ("n_gpus", "runtime", "said"),
    [
        (0, {"device": "cuda"}, r"stage 'sft': runtime\.device: cuda, but torch sees no GPU here"),
        (0, {"device": "cuda", "processes": 2}, r"runtime\.device: cuda, but torch sees no GPU here"),
        (1, {"device": "cuda", "processes": 2}, r"runtime\.processes: 2, but torch sees 1 GPUs; ask for fewer, or"),
        (1, {"processes": 2}, r"runtime\.processes: 2, but torch sees 1 GPUs"),
        (1, {"device": "cuda"}, None),
        (0, {"processes": 2}, None),
        (1, {"device": "cpu", "processes": 2}, None),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    planned: Callable[..., Plan],
    gpus: Callable[[int], None],
    n_gpus: int,
    runtime: dict[str, Any],
    said: str | None,
) -> None:
    gpus(n_gpus)
    plan = planned(DATA, SFT, runtime=runtime)
    for look in (check_can_start, lambda plan: list(check.describe_plan(plan))):
        if said is None:
            look(plan)
        else:
            with pytest.raises(RecipeError, match=said):
                look(plan)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({**RL, "engine": "vllm"}, "stage 'rl': engine vllm: not installed"),
        (
            {**RL, "engine": "vllm", "runtime": {"engine": {"where": "server", "urls": ["http://127.0.0.1:9"]}}},
            "stage 'rl': runtime.engine.urls: http://127.0.0.1:9/version: the engine does not answer: Connection",
        ),
        ({**RL, "engine": "vllm", "runtime": {"nodes": 2}}, "engine: vllm: was not made for runtime.nodes above 1"),
        (
            {**PPO, "runtime": {"gradient_checkpointing": True}},
            "runtime.gradient_checkpointing: with critic: separate",
        ),
        ({**RL, "runtime": {"deepspeed": "ds.json"}}, "stage 'rl': runtime.deepspeed: deepspeed is not installed"),
        ({**RL, "lora": NF4}, "lora.base_weights: nf4: bitsandbytes is not installed: pip install 'qwen-align[qlora]'"),
        ({**RL, "optimizer": "adamw_8bit"}, "optimizer: adamw_8bit: bitsandbytes is not installed: pip install"),
        ({**RL, "runtime": {"attention": "flash_attention_2"}}, "flash_attention_2: flash_attn is not installed"),
        (
            {**RL, "runtime": {"attention": "flash_attention_2", "device": "cpu"}},
            "stage 'rl': runtime.attention: flash_attention_2: it runs on GPUs alone",
        ),
    ],
)
def test_what_cannot_start_here_is_refused(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: False)
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(tmp_path / "none"))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(RecipeError) as error:
        list(check.describe_plan(planned(PROBLEMS, stage)))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            {"lora": NF4, "runtime": {"deepspeed": "ds.json"}},
            "lora.base_weights: nf4: does not run under strategy zero2",
        ),
        (
            {"optimizer": "paged_adamw"},
            "optimizer: paged_adamw: pages between a GPU and host memory, and there is no GPU",
        ),
        ({"optimizer": "paged_adamw_8bit", "runtime": {"device": "auto"}}, "optimizer: paged_adamw_8bit: pages"),
        ({"optimizer": "adamw_8bit"}, None),
        ({"lora": NF4}, None),
    ],
)
def test_what_bitsandbytes_does_not_do_here_is_refused(
    planned: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: Callable[[int], None],
    stage: dict[str, Any],
    said: str | None,
) -> None:
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: True)
    gpus(0)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    plan = planned(DATA, {**SFT, **stage}, runtime={"device": "cpu"})
    if said is None:
        check_can_start(plan)
    else:
        with pytest.raises(RecipeError, match=re.escape(said)):
            check_can_start(plan)


ZERO2 = {"zero_optimization": {"stage": 2}}
MINE = {"runtime": {"deepspeed": "ds.json"}}


@pytest.mark.parametrize(
    ("stage", "file", "said"),
    [
        ({"runtime": {"strategy": "zero2"}}, {}, None),
        (
            {"runtime": {"strategy": "fsdp2", "processes": 2}},
            {},
            "strategy: fsdp2: there is no GPU here, and accele",
        ),
        ({"runtime": {"strategy": "fsdp2"}}, {}, "runtime.strategy: fsdp2: one process has nobody to share with"),
        ({"lora": NF4, "runtime": {"strategy": "fsdp2"}}, {}, "base_weights: nf4: does not run under strategy fsdp2"),
        (
            {"lora": {"rank": 4, "alpha": 8, "dora": True}, "runtime": {"strategy": "zero3"}},
            {},
            "strategy: zero3: lora.dora: DoRA starts with norms of whole weights",
        ),
        ({"optimizer": "adamw_8bit", "runtime": {"strategy": "zero1"}}, {}, "adamw_8bit: does not run under strategy"),
        ({**RL, "trainer": "trl", "runtime": {"strategy": "zero3"}}, {}, "trainer: trl runs with strategy ddp alone"),
        (
            {**RL, "engine": "vllm", "runtime": {"strategy": "zero3"}},
            {},
            "engine: vllm is not sent weights that processes",
        ),
        ({**RL, "lora": {**LORA, "dora": True}, "runtime": {"strategy": "fsdp2"}}, {}, "lora.dora: its magnitudes are"),
        ({**RL, "lora": {**LORA, "dora": True}, "runtime": {"strategy": "zero2"}}, {}, None),
        (MINE, ZERO2, None),
        (MINE, {**ZERO2, "train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}}, None),
        (MINE, {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-8}}}, None),
        (MINE, {}, "zero_optimization.stage is 0; it has to be 1, 2 or 3"),
        (
            MINE,
            {**ZERO2, "train_batch_size": 64},
            'ds.json: train_batch_size is 64: the recipe says the batch; write "',
        ),
        (MINE, {**ZERO2, "gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4: the recipe says"),
        (MINE, {**ZERO2, "fp16": {"enabled": True}}, "fp16 is enabled: weights are trained in fp32 or bf16"),
        (MINE, {**ZERO2, "bf16": {"enabled": True}}, "bf16.enabled is said: the recipe says the precision"),
        (MINE, {**ZERO2, "torch_autocast": {"enabled": True}}, "torch_autocast is said: the recipe says the precision"),
        (MINE, {**ZERO2, "sequence_parallel_size": 2}, "sequence_parallel_size is said: rows are not divided"),
        (MINE, {**ZERO2, "gradient_clipping": 0.5}, "gradient_clipping is 0.5, and max_grad_norm 1.0"),
        (MINE, {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001, and"),
        ({**RL, **MINE}, {**ZERO2, "scheduler": {"type": "WarmupLR"}}, "scheduler: grpo and ppo build their own"),
    ],
)
def test_a_strategy_that_cannot_train_here_is_refused(
    planned: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: Callable[[int], None],
    stage: dict[str, Any],
    file: dict[str, Any],
    said: str | None,
) -> None:
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: True)
    monkeypatch.setattr(strategy_check, "find_missing_program", lambda runtime: None)
    gpus(0)
    (tmp_path / "ds.json").write_text(json.dumps(file))
    plan = planned(DATA, PROBLEMS, stage if "kind" in stage else {**SFT, **stage})
    for look in (check_can_start, lambda plan: list(check.describe_plan(plan))):
        if said is None:
            look(plan)
        else:
            with pytest.raises(RecipeError, match=re.escape(said)):
                look(plan)


def test_what_deepspeed_needs_is_named_where_it_is_missing(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, gpus: Callable[[int], None]
) -> None:
    gpus(0)
    plan = planned(DATA, {**SFT, "runtime": {"strategy": "zero3"}})
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: False)
    with pytest.raises(RecipeError, match="zero3: deepspeed is not installed: pip inst"):
        check_can_start(plan)
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: True)
    monkeypatch.setattr(strategy_check, "find_missing_program", lambda runtime: "c++")
    with pytest.raises(RecipeError, match=r"DeepSpeed compiles an operator, and c\+\+ is not installed here"):
        check_can_start(plan)


def test_a_strategy_of_a_whole_recipe_leaves_stages_alone_that_do_not_train(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no training state: neither does DeepSpeed have to be there for them, nor do they form a group."""
    monkeypatch.setattr(machine_check, "_is_installed", lambda package: False)
    evaluate = {"name": "ask", "kind": "evaluate", "from_model": "base", "from_data": ["problems"]}
    evaluate |= {"completions_per_prompt": 1, "sampling": {"max_tokens": 8}}
    plan = planned(PROBLEMS, evaluate, runtime={"strategy": "zero3"})
    check_can_start(plan)
    (stage,) = plan.find_stages("ask")
    assert not launcher.needs_process_group(stage.stage)


def test_more_processes_than_cores_are_noted(planned: Callable[..., Plan]) -> None:
    n_processes = 2 * count_cores()
    runtime = {"device": "cpu", "processes": n_processes}
    lines = list(check.describe_plan(planned(DATA, {**SFT, "batch": n_processes}, runtime=runtime)))
    (note,) = [line for line in lines if line.startswith("note: stage")]
    expected = f"note: stage 'sft': runtime.processes: {n_processes}, but this process may use {count_cores()} cores"
    assert note.startswith(expected)
    lines = list(check.describe_plan(planned(DATA, SFT, runtime={"device": "cpu"})))
    assert not any(line.startswith("note: stage") for line in lines)


def test_more_in_a_step_than_there_is_is_said(planned: Callable[..., Plan]) -> None:
    lines = "\n".join(check.describe_plan(planned(DATA, PROBLEMS, {**SFT, "batch": 6}, {**RL, "prompts_per_step": 5})))
    assert "batch 6 is more than the 4 samples: a step takes some several times" in lines
    assert "prompts_per_step 5 is more than the 4 problems: a step takes some several times" in lines
    lines = "\n".join(check.describe_plan(planned(DATA, PROBLEMS, {**SFT, "batch": 4}, {**RL, "prompts_per_step": 4})))
    assert "several times" not in lines


def test_documents_that_do_not_fill_a_batch_are_refused(planned: Callable[..., Plan]) -> None:
    texts = {"name": "texts", "kind": "build_data", "builder": {**BUILDER, "rows": "text"}}
    pretrain = {"name": "small", "kind": "pretrain", "from_data": "texts", "steps": 100}
    with pytest.raises(DataError, match=r"stage 'small': 4 documents do not fill one batch of 20 x 161 tokens; lower"):
        list(check.describe_plan(planned(texts, pretrain)))
    assert "4 documents" in "\n".join(
        check.describe_plan(planned(texts, {**pretrain, "batch": 1, "sequence_length": 40}))
    )


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(code: int, out: str = "", err: str = "") -> None:
        machine_check.count_gpus.cache_clear()
        done = subprocess.CompletedProcess([], code, out, err)
        monkeypatch.setattr(machine_check.subprocess, "run", lambda *_, **__: done)

    monkeypatch.setattr(machine_check, "_GPU_DEVICES", (str(tmp_path),))
    answer(0, "a warning\n3\n")
    assert machine_check.count_gpus() == 3
    answer(1, err="Traceback\nImportError: no libcuda")
    with pytest.raises(RecipeError, match="torch cannot be imported: ImportError: no libcuda"):
        machine_check.count_gpus()
    monkeypatch.setattr(machine_check, "_GPU_DEVICES", ())
    machine_check.count_gpus.cache_clear()
    assert machine_check.count_gpus() == 0, "without a driver torch is not asked"


@pytest.fixture(autouse=True)
def _forget_count() -> Iterator[None]:
    yield
    machine_check.count_gpus.cache_clear()


@pytest.mark.parametrize("home", ["a_file", "a_file/below"])
def test_a_home_that_cannot_be_written_is_refused_before_anything_runs(
    planned: Callable[..., Plan], tmp_path: Path, home: str
) -> None:
    (tmp_path / "a_file").touch()
    plan = replace(planned(DATA), home=tmp_path / home)
    for look in (check_can_start, lambda plan: list(check.describe_plan(plan))):
        with pytest.raises(StageError, match=r"a_file.*: cannot be written: .*a_file is no folder; name another"):
            look(plan)


def test_a_home_of_somebody_else_is_refused(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(DATA)
    check_can_start(plan)
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    with pytest.raises(StageError, match=r"cannot be written; name another folder with --home"):
        check_can_start(plan)
