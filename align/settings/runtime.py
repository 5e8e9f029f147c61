"""Defines the settings of how a stage is run: device, processes, micro-batches, threads."""

from typing import Literal

from pydantic import Field

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import Strict


class Runtime(Strict):
    """Settings of how a stage is run, which never change what it computes.

    They are no part of a stage's key, except for losses that depend on them, and for the content of the DeepSpeed file
    of a stage that trains: it may say another optimiser.

    Results are the same up to floating-point summation order: losses within 1e-5 between one process and two.
    """

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto = a GPU where there is one"
    )
    processes: int = Field(default=1, ge=1, le=1024, description="processes on this machine; on GPUs one per device")
    micro_batch: int = Field(
        default=8,
        ge=1,
        le=65_536,
        description="size of a forward pass per device, as a number of the longest rows (or pairs): of shorter ones it "
        "takes more, up to as many tokens. On a CPU a pass has 2,048 tokens at most, or one longer row",
    )
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="largest number of tokens per device in one forward pass, in the place of micro_batch; a longer "
        "row goes alone. null = as micro_batch says",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="attention implementation of every model that a stage runs itself; auto = the fastest installed "
        "one that keeps packed rows apart. Completions are drawn with torch's where it is flash_attention_2",
    )
    generation_batch: int = Field(
        default=256, ge=1, le=65_536, description="completions decoded side by side, per process"
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="memory for the keys and values of the completions being decoded, in GiB per process: those that "
        "no longer fit wait and are continued later, one that is too large by itself is decoded alone; null = the "
        "device's free memory less a margin (on a CPU half of it, shared by the processes). Completions are the same "
        "but for rounding",
    )
    prefill_tokens: int = Field(
        default=16_384,  # our choice: at 8B's widths in bf16 a layer's activations are then below 2 GiB
        ge=1,
        description="prompt tokens that are read in one forward pass before decoding",
    )
    checkpoint_every: int = Field(default=100, ge=1, description="optimiser steps between checkpoints")
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto",
        description="recompute activations in the backward pass: less memory, more time; auto = where the "
        "estimate without it is above half of the device's memory",
    )
    activation_offloading: bool = Field(
        default=False, description="keep activations for the backward pass in host memory: less GPU memory, more time"
    )
    deepspeed: OutsideFile | None = Field(
        default=None, description="DeepSpeed configuration (JSON), relative to the recipe"
    )
    threads: int | None = Field(default=None, ge=1, le=4096, description="CPU threads per process; null = all")


def split_among_processes(batch: int, runtime: Runtime) -> int:
    """Returns how many of a batch's rows each process trains on.

    Raises RecipeError if the batch does not divide by the processes.
    """
    if batch % runtime.processes:
        raise RecipeError(f"a batch of {batch} rows does not divide by runtime.processes: {runtime.processes}")
    return batch // runtime.processes


def split_into_micro_batches(batch: int, runtime: Runtime) -> tuple[int, int]:
    """Returns (rows per device, accumulation steps) for a batch size.

    Their product over all processes is the batch. Raises RecipeError if the batch cannot be split so.
    """
    share = split_among_processes(batch, runtime)
    rows = max(size for size in range(1, min(runtime.micro_batch, share) + 1) if share % size == 0)
    return rows, share // rows
