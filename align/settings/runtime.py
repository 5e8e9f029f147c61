"""How a stage is run: device, processes, micro-batches, threads."""

from typing import Literal

from pydantic import Field

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import Strict


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


def split_into_micro_batches(batch: int, runtime: Runtime) -> tuple[int, int]:
    """(rows a device holds, accumulation steps) whose product over all processes is the batch; raises RecipeError."""
    if batch % runtime.processes:
        raise RecipeError(f"a batch of {batch} rows does not divide by runtime.processes: {runtime.processes}")
    share = batch // runtime.processes
    rows = max(size for size in range(1, min(runtime.micro_batch, share) + 1) if share % size == 0)
    return rows, share // rows
