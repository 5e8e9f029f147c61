"""Settings of every stage that trains: optimiser, LoRA, how many steps."""

import math
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict


def count_optimizer_steps(n_rows: int, epochs: float, batch: int) -> int:
    """Optimiser steps of so many epochs; the last batch is filled from the next permutation."""
    return max(1, math.ceil(n_rows * epochs / batch)) if n_rows else 0


class Lora(Strict):
    """LoRA adapters (arXiv:2106.09685) on the linear layers; the base's weights stay as they are."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


Settings = TypeVar("Settings")


def refuse_dropout(settings: Settings, lora: Lora | None) -> Settings:
    """The settings; raises ValueError for a dropout that TRL would turn off without a word."""
    if lora and lora.dropout:
        raise ValueError("lora.dropout: must be 0 here, or policy and reference (or sampler) would be different models")
    return settings


class Optimizer(Strict):
    """AdamW with a warm-up and a decay."""

    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Annotated[Literal["fp32", "bf16"], ALWAYS_IN_KEY] = Field(
        "fp32", description="of the computation; bf16 = autocast over fp32 weights"
    )
