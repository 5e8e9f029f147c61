"""Settings every stage has, and how a stage is run."""

import math
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict


class Runtime(Strict):
    """How to run, never what to compute: no part of a stage's key, but for losses that depend on it.

    Results are the same up to floating-point summation order: 1e-5 between one process and two.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = Field(default=1, ge=1, description="processes on this machine; on GPUs one a device")
    micro_batch: int = Field(default=8, ge=1, description="rows (pairs) a device holds in one forward pass")
    rollout_rows: int = Field(default=256, ge=1, description="completions decoded side by side")
    checkpoint_every: int = Field(default=100, ge=1, description="optimiser steps between checkpoints")
    gradient_checkpointing: bool = False
    deepspeed: OutsideFile | None = Field(default=None, description="a DeepSpeed JSON, relative to the recipe")
    threads: int | None = Field(default=None, ge=1, description="CPU threads a process may use; None = all")


class StageSettings(Strict):
    """What every kind of stage has besides its own settings."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$", max_length=80)
    seed: int | None = Field(None, description="None = the recipe's seed")
    runtime: Runtime | None = Field(None, description="what differs from the recipe's runtime")

    def runtime_in_key(self, runtime: Runtime) -> dict[str, int]:
        """What of the runtime the result depends on beyond rounding: nothing, if a kind does not say otherwise."""
        return {}


class CanBeEmpty(Strict):
    """For kinds that can do without rows."""

    on_empty: Literal["fail", "pass_through"] = Field(
        "fail", description="without rows: exit 3, or pass on what there is (the model as it was, or no rows)"
    )


def micro_batches(batch: int, runtime: Runtime) -> tuple[int, int]:
    """(rows a device holds, accumulation steps) whose product over all processes is the batch; raises RecipeError."""
    if batch % runtime.processes:
        raise RecipeError(f"a batch of {batch} rows does not divide by runtime.processes: {runtime.processes}")
    share = batch // runtime.processes
    rows = max(size for size in range(1, min(runtime.micro_batch, share) + 1) if share % size == 0)
    return rows, share // rows


def steps_of(n_rows: int, epochs: float, batch: int) -> int:
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
