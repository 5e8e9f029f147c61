"""A model whose files are bf16 through every kind of stage: what is trained is fp32, the rest as the files have it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qwen_align.align.context import Context
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.models.weight_precision import read_precision
from qwen_align.align.rows import to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.training import fit
from qwen_align.data_builders.arithmetic import Arithmetic
from tests.align.stages.test_reward_model import pairs

LORA = {"rank": 2, "alpha": 4}
RATE = 1e-3
TRAINED = {"batch": 2, "epochs": 1, "max_tokens": 400, "learning_rate": RATE}
RL = {
    "rewards": [{"kind": "random", "p": 0.5}], "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 4}, "kl": {"coefficient": 0.1}, "learning_rate": RATE,
}  # fmt: skip


@pytest.fixture
def inputs(bf16_model: Path, tmp_path: Path) -> dict[str, Path]:
    rows = {
        "problems": list(Arithmetic(rows="problem", n=2, steps=[1]).generate(0)),
        "traces": list(Arithmetic(rows="trace", n=2, steps=[1]).generate(0)),
        "pairs": pairs([0.5, 1.0]),
    }
    for name, some in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in some))
    return {"base": bf16_model, **{name: tmp_path / name for name in rows}}


def run(inputs: dict[str, Path], out: Path, **settings: Any) -> list[dict[str, Any]]:
    """Runs a stage on the base; returns what was logged."""
    spec: Any = TypeAdapter[Any](AnyStage).validate_python({"name": "s", "from_model": "base", **settings})
    out.mkdir()
    import_function(STAGE_KINDS[spec.kind].run)(spec, inputs, out, Context(out, 0, Runtime(device="cpu")))
    metrics = out / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """The precisions of the weights of every model that was trained or drawn from."""
    seen: dict[str, set[torch.dtype]] = {"trained": set(), "frozen": set(), "drawn": set()}
    run_trainer, generate = fit.run_trainer, LocalEngine.generate

    def record_trained(trainer: Any, *arguments: Any) -> None:
        for weight in trainer.model.parameters():
            seen["trained" if weight.requires_grad else "frozen"].add(weight.dtype)
        run_trainer(trainer, *arguments)

    def record_drawn(self: LocalEngine, requests: Any) -> Iterator[Any]:
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: seen["drawn"].update(weight.dtype for weight in module.parameters(recurse=False))
        )
        with torch.no_grad():
            yield from generate(self, requests)
        hook.remove()

    monkeypatch.setattr(fit, "run_trainer", record_trained)
    monkeypatch.setattr(LocalEngine, "generate", record_drawn)
    return seen


BF16, FP32 = {torch.bfloat16}, {torch.float32}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "from_data": ["traces"], **TRAINED},
    "dpo": {"kind": "dpo", "from_data": ["pairs"], "beta": 0.1, **TRAINED},
    "grpo": {"kind": "grpo", "from_data": ["problems"], **RL},
    "ppo": {"kind": "ppo", "from_data": ["problems"], "critic": {"learning_rate": RATE}, **RL},
}
IN_FAST = {("sft", True), ("dpo", False), ("grpo", False)}


@pytest.mark.parametrize(
    ("kind", "is_adapted"),
    [
        case if case in IN_FAST else pytest.param(*case, marks=pytest.mark.slow(seconds=2))
        for case in ((kind, is_adapted) for kind in STAGES for is_adapted in (True, False))
    ],
)
def test_a_stage_trains_fp32_weights_on_a_bf16_model(
    inputs: dict[str, Path], tmp_path: Path, dtypes: dict[str, set[torch.dtype]], kind: str, is_adapted: bool
) -> None:
    (first,) = run(inputs, tmp_path / "out", **STAGES[kind], **({"lora": LORA} if is_adapted else {}))
    assert dtypes["trained"] == FP32
    assert dtypes["frozen"] == (BF16 if is_adapted else set())
    assert dtypes["drawn"] == (BF16 if kind in ("grpo", "ppo") else set())
    if kind in ("grpo", "ppo"):
        assert first["kl"] == 0, "policy and reference round the same weights to bf16"
    if kind == "dpo":
        assert first["rewards/chosen"] == 0
    assert read_precision(tmp_path / "out").precision == "bf16"
    handed_on = load_file(next((tmp_path / "out").glob("*/*.safetensors")))
    assert {weight.dtype for weight in handed_on.values()} == (FP32 if is_adapted else BF16)
    if not is_adapted:
        stored = load_file(inputs["base"] / "model.safetensors")
        assert handed_on.keys() == stored.keys()
        assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["dtype"] == "bfloat16"
        assert any(not torch.equal(handed_on[name], stored[name]) for name in stored)
    assert {weight.dtype for weight in loading.load_model(tmp_path / "out").parameters()} == BF16


@pytest.mark.slow(seconds=3)
def test_the_reference_of_an_adapter_on_an_adapter_is_what_lies_below(
    inputs: dict[str, Path], tmp_path: Path, dtypes: dict[str, set[torch.dtype]]
) -> None:
    """The adapter below is merged into bf16 once, so policy and reference start as one model."""
    run(inputs, tmp_path / "sft", **STAGES["sft"], lora=LORA)
    inputs["base"] = tmp_path / "sft"
    (first,) = run(inputs, tmp_path / "grpo", **STAGES["grpo"], lora=LORA)
    assert first["kl"] == 0
    (first,) = run(inputs, tmp_path / "dpo", **STAGES["dpo"], lora=LORA)
    assert first["rewards/chosen"] == 0
    assert dtypes["frozen"] == BF16
    assert len(locate_model_files(tmp_path / "dpo").adapters) == 2


def test_a_reward_model_has_a_bf16_trunk_and_scores_in_fp32(
    inputs: dict[str, Path], tmp_path: Path, dtypes: dict[str, set[torch.dtype]]
) -> None:
    """Scores differ by less than bf16 tells apart, and GRPO with the scorer runs."""
    run(inputs, tmp_path / "scorer", kind="reward_model", from_data=["pairs"], lora=LORA, **TRAINED)
    assert (dtypes["trained"], dtypes["frozen"]) == (FP32, BF16 | FP32), "PEFT keeps the head that it copied"
    scorer = reward_scorer.load_scorer(tmp_path / "scorer", Runtime(device="cpu"))
    assert scorer.model.score.weight.dtype == torch.float32
    assert scorer.model.model.norm.weight.dtype == torch.bfloat16
    scores = scorer.score_token_ids([[5, 6, 7], [5, 6, 8], [9, 10, 11, 12]])
    assert any(score != float(torch.tensor(score).to(torch.bfloat16)) for score in scores)


@pytest.mark.parametrize("precision", ["auto", pytest.param("fp32", marks=pytest.mark.slow(seconds=2))])
def test_rollouts_and_evaluations_draw_in_the_models_precision(
    inputs: dict[str, Path], tmp_path: Path, dtypes: dict[str, set[torch.dtype]], precision: str
) -> None:
    asked = {"completions_per_prompt": 2, "sampling": {"temperature": 1.0, "max_tokens": 4}, "precision": precision}
    expected = FP32 if precision == "fp32" else BF16
    rewards = [{"kind": "random", "p": 0.5}]
    run(inputs, tmp_path / "r", kind="rollout", from_data="problems", rewards=rewards, keep_tokens=True, **asked)
    assert dtypes["drawn"] == expected
    drawn = [json.loads(line) for line in (tmp_path / "r" / "rows.jsonl").read_text().splitlines()]
    assert len(drawn) == 4
    run(inputs, tmp_path / "e", kind="evaluate", from_data=["problems"], **asked)
    assert dtypes["drawn"] == expected


def test_handing_on_in_bf16_loses_nothing_that_a_bf16_stage_computes_with(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """What is handed on in fp32 gives, under autocast, the loss of what is handed on in bf16, up to the norms."""
    for held in ("fp32", "bf16"):
        run(inputs, tmp_path / held, **STAGES["sft"], save_weights=held)
    full, rounded = (load_file(tmp_path / held / "model" / "model.safetensors") for held in ("fp32", "bf16"))
    assert all(torch.equal(full[name].to(torch.bfloat16), rounded[name]) for name in full)
    assert any(not torch.equal(full[name], rounded[name].float()) for name in full)
    assert read_precision(tmp_path / "fp32").precision == "bf16", "it is computed with as before"
    assert {weight.dtype for weight in loading.load_model(tmp_path / "fp32").parameters()} == BF16
    masters = loading.load_model(tmp_path / "fp32", "fp32")
    assert torch.equal(masters.model.norm.weight, full["model.norm.weight"]), "and trained on from what it was"
    AutoModelForCausalLM.from_pretrained(tmp_path / "bf16" / "model")
