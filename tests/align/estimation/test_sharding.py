"""What each process holds under a strategy, against sums made by hand from the number of parameters."""

from typing import Any

import pytest

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.estimation.model_shape import read_model_shape
from qwen_align.align.estimation.stage_estimate import estimate_stage
from qwen_align.align.estimation.units import GB
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.strategy import REDUCED_NUMBERS

COMMON: dict[str, Any] = {"name": "s", "from_model": "m", "from_data": ["d"], "learning_rate": 1e-5}
SFT = Sft(kind="sft", max_tokens=1024, batch=16, epochs=1, **COMMON)
GRPO = Grpo(
    kind="grpo",
    rewards=[{"kind": "math_answer"}],
    steps=10,
    prompts_per_step=8,
    completions_per_prompt=8,
    sampling={"temperature": 1.0, "max_tokens": 512},
    **COMMON,
)
SHAPE = read_model_shape(build_qwen3_config("8B"))
P = SHAPE.n_parameters


def get_parts(settings: Any, phase: str, strategy: str, **runtime: Any) -> dict[str, float]:
    asked = Runtime(processes=8, strategy=strategy, micro_batch=1, **runtime)
    found = estimate_stage(settings, asked, build_qwen3_config("8B"), Device(80 * GB, 8))
    assert found is not None
    return next(one.parts for one in found.phases if one.name == phase)


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "masters", "moments"),
    [
        ("ddp", 4 * P, 4 * P, 0, 8 * P),
        ("zero1", 4 * P, 4 * P, 4 * P / 8, P),
        ("zero2", 4 * P, 4 * P / 8, 4 * P / 8, P),
        ("zero3", 4 * P / 8, 4 * P / 8, 4 * P / 8, P),
        ("fsdp2", 4 * P / 8, 4 * P / 8, 0, P),
    ],
)
def test_the_state_of_full_training_in_bf16(
    strategy: str, weights: float, gradients: float, masters: float, moments: float
) -> None:
    parts = get_parts(SFT, "save", strategy)
    assert (parts["weights"], parts.get("masters", 0), parts["optimiser"]) == (weights, masters, moments)
    updated = get_parts(SFT, "update", strategy)
    assert updated["gradients"] == pytest.approx(gradients, rel=0.05)  # at its worst moment one layer's may be missing
    assert updated.get("exchange", 0) == (4 * REDUCED_NUMBERS if strategy in ("zero1", "zero2") else 0)


def test_layers_are_whole_while_they_are_computed_and_the_model_while_it_draws() -> None:
    ends, layer = SHAPE.embeddings + SHAPE.head, SHAPE.linear / SHAPE.n_layers
    for strategy in ("zero3", "fsdp2"):
        parts = get_parts(SFT, "update", strategy)
        assert parts["gathered"] == pytest.approx(4 * (ends + 2 * layer))
        assert parts["casts"] == pytest.approx(2 * 2 * layer)
        assert get_parts(GRPO, "draw", strategy)["gathered"] == 2 * P
    assert "gathered" not in get_parts(SFT, "update", "zero2")


def test_what_is_offloaded_is_not_on_the_device() -> None:
    parts = get_parts(SFT, "save", "zero3", offload="optimizer")
    assert (parts["weights"], "masters" in parts, "optimiser" in parts) == (4 * P / 8, False, False)
    parts = get_parts(SFT, "save", "zero3", offload="parameters")
    assert not {"weights", "masters", "optimiser"} & set(parts)


def test_14b_is_trained_in_full_on_eight_cards_that_hold_none_of_it_alone() -> None:
    """16 bytes a parameter are 236 GB, of which an eighth is 30; the weights alone are 59 GB."""
    verdicts = {}
    for strategy in ("ddp", "zero2", "zero3", "fsdp2"):
        runtime = Runtime(processes=8, strategy=strategy, micro_batch=1, gradient_checkpointing=True)
        device = Device(80 * GB, 8)
        found = estimate_stage(SFT, runtime, build_qwen3_config("14B"), device)
        assert found is not None
        verdicts[strategy] = found.judge(device)
    assert verdicts == {"ddp": "does not fit", "zero2": "does not fit", "zero3": "fits", "fsdp2": "fits"}
