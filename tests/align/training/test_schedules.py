"""The learning rate of every schedule over the steps of a stage, with its warm-up, against the formulas."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from qwen_align.align.rl.optimizer import build_schedule
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.training import trl_arguments

STEPS, PEAK = 10, 0.25
TRAIN = {"name": "s", "from_model": "m", "from_data": ["d"], "learning_rate": PEAK}
SFT = {**TRAIN, "kind": "sft", "max_tokens": 8, "batch": 1, "epochs": 1}
GRPO = {
    **TRAIN,
    "kind": "grpo",
    "rewards": [{"kind": "random"}],
    "steps": STEPS,
    "prompts_per_step": 1,
    "completions_per_prompt": 2,
    "sampling": {"temperature": 1.0, "max_tokens": 4},
}


def expected_rate(schedule: str, warmup: int, step: int) -> float:
    if step < warmup:
        return PEAK * step / warmup
    done = (step - warmup) / max(1, STEPS - warmup)
    after = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return PEAK * after[schedule]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(tmp_path: Path, schedule: str, warmup: int, kind: str) -> None:
    said = {"schedule": schedule, "warmup_steps": warmup}
    args: Any
    if kind == "sft":
        spec = Sft.model_validate({**SFT, **said})
        args = trl_arguments.build_sft_arguments(spec, Runtime(device="cpu"), tmp_path, steps=STEPS, seed=0)
    else:
        args = trl_arguments.build_online_rl_arguments(
            Grpo.model_validate({**GRPO, **said}), Runtime(device="cpu"), tmp_path, seed=0, has_unused_parameters=False
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    if kind == "sft":  # as Trainer.create_scheduler
        n_warmup = args.get_warmup_steps(STEPS)
        scheduler = get_scheduler(
            args.lr_scheduler_type, optimizer, num_warmup_steps=n_warmup, num_training_steps=STEPS
        )
    else:
        optimizer.param_groups[0]["is_value"] = False
        scheduler = build_schedule(optimizer, args, STEPS, 0)
    rates = []
    for _ in range(STEPS):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([expected_rate(schedule, warmup, step) for step in range(STEPS)])
