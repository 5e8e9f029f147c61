"""Adapters of every kind on bases of every precision, trained by every stage: what they are, and what is handed on."""

import importlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rows import Message, Pair, Row, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

SLOW = pytest.mark.slow(seconds=2)

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
RANK, ALPHA = 4, 12
TUNED = {"from_model": "base", "max_tokens": 200, "batch": 4, "epochs": 1, "learning_rate": 3e-3}
ONLINE = {
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 2,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 8},
    "learning_rate": 1e-3,
}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**TUNED, "from_data": ["traces"]},
    "dpo": {**TUNED, "from_data": ["pairs"], "beta": 0.1},
    "reward_model": {**TUNED, "from_data": ["pairs"], "epochs": 2, "learning_rate": 1e-3},
    "grpo": {**ONLINE, "kl": {"coefficient": 0.05}},
    "ppo": {**ONLINE, "critic": {"learning_rate": 1e-2}},
}
NF4, DORA, RSLORA = {"base_weights": "nf4"}, {"dora": True}, {"rank_stabilized": True}


def pair(row: Any) -> Pair:
    wrong = box_answer(str(int(row.gold) + 1))
    sides = [Message(role="assistant", content=said, thinking=row.thinking) for said in (row.answer, wrong)]
    return Pair(id=row.id, messages=row.messages, chosen=sides[0], rejected=sides[1], mode="think")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that stages read, by reference."""
    home = tmp_path_factory.mktemp("inputs")
    traces = list(Arithmetic(rows="trace", n=16, steps=[1]).generate(0))
    rows: dict[str, list[Row]] = {
        "traces": traces,
        "pairs": [pair(row) for row in traces],
        "problems": list(Arithmetic(rows="problem", n=10, steps=[2]).generate(0)),
    }
    for name, those in rows.items():
        (home / name).mkdir()
        (home / name / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in those))
    return {"base": BASE, **{name: home / name for name in rows}}


Run = Callable[..., tuple[Path, dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture
def run(inputs: dict[str, Path], tmp_path: Path) -> Run:
    """`run(kind, lora, ...)`: a stage in this process: its folder, its summary, its metrics."""

    def run_stage(
        kind: str, lora: dict[str, Any] | None, *, runtime: Any = None, stop_after: int = 0, **more: Any
    ) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
        settings = {"name": kind, "kind": kind, **STAGES[kind], "schedule": "constant", **more}
        if lora is not None:
            settings["lora"] = {"rank": RANK, "alpha": ALPHA, **lora}
        spec: Any = TypeAdapter[Any](AnyStage).validate_python(settings)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        context = Context(out, 0, Runtime.model_validate({"device": "cpu", "micro_batch": 4, **(runtime or {})}))
        if stop_after:
            looks = itertools.count(1)
            context.is_stop_requested = lambda: next(looks) >= stop_after  # type: ignore[method-assign]
        summary = importlib.import_module(f"qwen_align.align.stages.{kind}").run(spec, inputs, out, context)
        return out, summary, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run_stage


def merge_by_hand(out: Path, *, dora: bool, rank_stabilized: bool) -> dict[str, Tensor]:
    """The adapted weights of the merged model by the papers' formulas, from the files."""
    adapter, base = load_file(out / "adapter" / "adapter_model.safetensors"), load_file(BASE / "model.safetensors")
    scale = ALPHA / math.sqrt(RANK) if rank_stabilized else ALPHA / RANK
    merged = {}
    for name in [name for name in adapter if name.endswith(".lora_A.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        layer = layer if layer.startswith("model.") else f"model.{layer}"
        stem = name.removesuffix("lora_A.weight")
        moved = base[f"{layer}.weight"] + scale * adapter[f"{stem}lora_B.weight"] @ adapter[name]
        if dora:
            moved = adapter[f"{stem}lora_magnitude_vector"][:, None] * moved / moved.norm(dim=1, keepdim=True)
        merged[f"{layer}.weight"] = moved
    return merged


@SLOW
@pytest.mark.parametrize(
    ("kind", "lora", "precision"),
    [
        ("sft", NF4 | DORA | RSLORA, "fp32"),
        ("dpo", NF4 | DORA, "bf16"),
        ("reward_model", NF4, "bf16"),
        ("grpo", NF4, "fp32"),
        ("ppo", NF4 | DORA, "fp32"),
        ("dpo", DORA | RSLORA, "fp32"),
    ],
)
def test_an_adapter_of_any_kind_is_trained_merged_and_described(
    run: Run, kind: str, lora: dict[str, Any], precision: str
) -> None:
    out, summary, metrics = run(kind, lora, precision=precision)
    in_4_bits, dora = "base_weights" in lora, "dora" in lora
    if kind == "dpo":
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    if kind in ("sft", "dpo", "reward_model"):
        assert metrics[-1]["loss"] < metrics[0]["loss"]
    else:  # what drew is what is trained, in 4 bits
        assert max(step["mismatch/mean"] for step in metrics) < 1e-4
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert any("magnitude" in name for name in adapter) == dora
    load = reward_scorer.load_scorer_model if kind == "reward_model" else loading.load_model
    merged = load(out).state_dict()
    expected = merge_by_hand(out, dora=dora, rank_stabilized="rank_stabilized" in lora)
    assert len(expected) == 21
    for name, weight in expected.items():
        assert torch.allclose(merged[name], weight, rtol=1e-4, atol=1e-6), name
    said = (out / "adapter" / "README.md").read_text()
    assert ("in 4 bits" in said) == in_4_bits
    assert ("DoRA" in said) == dora
    assert ("rsLoRA" in said) == ("rank_stabilized" in lora)
    assert ("quantization_error" in summary) == in_4_bits
    if in_4_bits and kind != "reward_model":
        # The hand-over loses what the rounding of the base had lost, and no more.
        assert 0.02 < summary["quantization_error_of_base"] < 0.12
        assert summary["quantization_error"] < 1.5 * summary["quantization_error_of_base"]
        assert summary["quantization_kl"] < 1.5 * summary["quantization_kl_of_base"]


@pytest.mark.parametrize(
    ("kind", "lora", "more"),
    [
        pytest.param("sft", NF4 | DORA, {}, marks=SLOW),
        pytest.param("grpo", NF4, {}, marks=pytest.mark.evidence),
        pytest.param("sft", None, {"optimizer": "adamw_8bit"}, marks=pytest.mark.evidence),
        pytest.param("grpo", None, {"optimizer": "adamw_8bit"}, marks=SLOW),
    ],
)
def test_stopped_and_resumed_it_ends_with_the_same_bytes(
    run: Run, tmp_path: Path, kind: str, lora: Any, more: dict[str, Any]
) -> None:
    weights = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    out, _, _ = run(kind, lora, **more)
    whole = load_file(out / weights)
    out.rename(tmp_path / "whole")
    with pytest.raises(Preempted):
        run(kind, lora, stop_after=1, **more)
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-*")
    if more:
        states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
        assert torch.uint8 in {state["__bnb_optimizer_quant_state__"]["state1"].dtype for state in states}
    run(kind, lora, **more)
    resumed = load_file(out / weights)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize(
    ("kind", "gradient_checkpointing"),
    [
        pytest.param("sft", True, marks=SLOW),
        pytest.param("ppo", False, marks=SLOW),
        pytest.param("sft", False, marks=pytest.mark.evidence),
        pytest.param("ppo", True, marks=pytest.mark.evidence),
    ],
)
def test_activations_in_host_memory_change_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gradient_checkpointing: bool
) -> None:
    from qwen_align.align.training import activation_offloading

    contexts = []

    class Counted(activation_offloading.ActivationOffloading):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            contexts.append(self)

    monkeypatch.setattr(activation_offloading, "ActivationOffloading", Counted)
    runtime = {"gradient_checkpointing": gradient_checkpointing}
    out, _, expected = run(kind, {}, runtime=runtime)
    out.rename(tmp_path / "without")
    _, _, actual = run(kind, {}, runtime={**runtime, "activation_offloading": True})
    assert [step["loss"] for step in actual] == [step["loss"] for step in expected]
    (context,) = contexts
    assert context.n_moved > 0
