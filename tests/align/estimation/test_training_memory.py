"""Estimates of training passes against traces that they were not fitted to: never 5 % below, at most 15 % above."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.estimation.model_shape import count_adapter_parameters, read_model_shape
from qwen_align.align.estimation.numerics import TrainedModel
from qwen_align.align.estimation.training_memory import MicroBatch, TrainingPass, list_update_moments, measure_update
from qwen_align.align.estimation.units import GIB
from qwen_align.align.settings.training import Lora

# Peaks of one forward and backward pass on torch's fake tensors with kernels of a CPU: every storage that an operation
# makes, until it is freed; whole layers of Qwen3's widths, six of them.
TRACED = [json.loads(line) for line in (Path(__file__).parent / "traced_steps.jsonl").read_text().splitlines()]


def hold(
    size: str, *, lora_rank: int | None, weight_bytes: int, autocast: bool, layers: int | None = None
) -> TrainedModel:
    config = build_qwen3_config(size)
    shape = read_model_shape({**config, "num_hidden_layers": layers or config["num_hidden_layers"]})
    lora = Lora(rank=lora_rank, alpha=lora_rank) if lora_rank else None
    n_trained = count_adapter_parameters(lora, shape) if lora else shape.n_parameters
    return TrainedModel(shape, lora, weight_bytes, weight_bytes, autocast, n_trained)


@pytest.mark.parametrize("case", TRACED, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_estimates_are_near_traces(case: dict[str, Any]) -> None:
    weight_bytes = 4 if case["weights"] == "fp32" else 2
    model = hold(
        case["model"],
        lora_rank=case["lora_rank"],
        weight_bytes=weight_bytes,
        autocast=case["autocast"],
        layers=case["layers"],
    )
    work = TrainingPass(
        model,
        MicroBatch(case["tokens"], case["tokens"]),
        optimizer_bytes=8.0 * model.trained,
        checkpointing=case["checkpointing"],
        is_on_gpu=False,
        accumulates=False,
        full_logits=case["full_logits"],
    )
    assert 0.95 <= measure_update(work).total / GIB / case["peak_gib"] <= 1.15


@pytest.mark.parametrize(
    ("size", "given", "changes", "peak_gib"),
    [
        ("8B", {"lora_rank": 16, "weight_bytes": 2, "autocast": False}, {}, 20.9),
        ("8B", {"lora_rank": 16, "weight_bytes": 2, "autocast": False}, {"full_logits": True}, 23.9),
        # Traced with a mask: attention then copies keys and values for every head.
        (
            "8B",
            {"lora_rank": 16, "weight_bytes": 2, "autocast": False},
            {"checkpointing": False, "masked_rows": 1},
            63.1,
        ),
        ("8B", {"lora_rank": 16, "weight_bytes": 4, "autocast": True}, {}, 37.6),
        ("8B", {"lora_rank": None, "weight_bytes": 2, "autocast": False}, {"gradient_bytes": 2}, 61.0),
        ("8B", {"lora_rank": None, "weight_bytes": 4, "autocast": True}, {}, 122.0),
        ("32B", {"lora_rank": None, "weight_bytes": 2, "autocast": False}, {"gradient_bytes": 2}, 244.0),
    ],
)
def test_whole_models_at_4096_tokens(
    size: str, given: dict[str, Any], changes: dict[str, Any], peak_gib: float
) -> None:
    """torch's MemTracker, two and four layers continued to all; bf16 and fp32, with and without autocast."""
    model = hold(size, **given)
    work = TrainingPass(
        model,
        MicroBatch(4096, 4096),
        optimizer_bytes=2.0 * changes.get("gradient_bytes", 4) * model.trained,
        checkpointing=True,
        is_on_gpu=False,
        accumulates=False,
    )
    assert measure_update(work._replace(**changes)).total / GIB == pytest.approx(peak_gib, rel=0.01)


def test_the_parts_add_up_and_the_worst_moment_is_taken() -> None:
    model = hold("0.6B", lora_rank=16, weight_bytes=2, autocast=True)
    work = TrainingPass(model, MicroBatch(2048, 2048), 8.0 * model.trained, checkpointing=True)
    moments = list_update_moments(work)
    assert measure_update(work).total == max(moment.total for moment in moments)
    assert all(moment.parts["weights"] == 2.0 * model.shape.n_parameters for moment in moments)
    assert {moment.parts["gradients"] for moment in moments} == {4.0 * model.trained}  # of earlier micro-batches too


def test_more_tokens_checkpointing_and_accumulation_move_it_as_they_should() -> None:
    model = hold("1.7B", lora_rank=None, weight_bytes=4, autocast=True)
    work = TrainingPass(model, MicroBatch(4096, 4096), 8.0 * model.trained, checkpointing=True, accumulates=False)
    peak = measure_update(work).total
    assert measure_update(work._replace(batch=MicroBatch(16_384, 16_384))).total > peak
    assert measure_update(work._replace(checkpointing=False)).total > peak
    assert measure_update(work._replace(accumulates=True)).total > peak
    assert (
        measure_update(work._replace(batch=MicroBatch(16_384, 16))).total
        < measure_update(work._replace(batch=MicroBatch(16_384, 16_384))).total
    )
