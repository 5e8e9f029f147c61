"""Defines the settings of how a stage is run: device, processes, micro-batches, threads."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import OutsideFile
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.engine import EngineSettings

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]


class Runtime(Strict):
    """Settings of how a stage is run, which never change what it computes.

    They are no part of a stage's key, except for losses that depend on them, and for the content of the DeepSpeed file
    of a stage that trains: it may say another optimiser.

    Results are the same up to floating-point summation order: losses within 1e-5 between one process and two.
    """

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto = a GPU where there is one"
    )
    processes: int = Field(default=1, ge=1, le=1024, description="processes on a machine; on GPUs one per device")
    nodes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="machines that run a stage, each with so many processes; `qwen-align run` is started on every one "
        "with `--node-rank` and `--rendezvous`, or by srun. Stages that run in one process run on node 0 alone",
    )
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
        default=256,
        ge=1,
        le=65_536,
        description="completions decoded side by side, per process; of vLLM per server (max_num_seqs)",
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
    engine: EngineSettings = Field(
        default=EngineSettings(), description="where vLLM runs for stages with `engine: vllm`"
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
    strategy: Literal["auto"] | Strategy = Field(
        default="auto",
        description="what processes hold of the training state: ddp = each all of it; zero1, zero2, zero3 = DeepSpeed "
        "shards the optimiser's state, also the gradients, also the parameters; fsdp2 = PyTorch shards all three; "
        "auto = what the DeepSpeed file says, without one ddp. It is of stages that train; others, such as rollout and "
        "evaluate, have no training state and run as without it",
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none",
        description="what is held in host memory in place of the GPU's: the optimiser's state with zero1 to zero3, "
        "that and the parameters with zero3 and fsdp2",
    )
    deepspeed: OutsideFile | None = Field(
        default=None,
        description="a DeepSpeed configuration of one's own (JSON), relative to the recipe, in the place of strategy",
    )
    threads: int | None = Field(default=None, ge=1, le=4096, description="CPU threads per process; null = all")

    @property
    def world_size(self) -> int:
        """Returns the number of processes on all nodes."""
        return self.nodes * self.processes

    def format_processes(self) -> str:
        """Formats how many processes there are, as the recipe says it: `runtime.processes: 2`."""
        return f"runtime.processes: {self.processes}" + (f" on runtime.nodes: {self.nodes}" if self.nodes > 1 else "")

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.deepspeed is not None and (self.strategy != "auto" or self.offload != "none"):
            raise ValueError("deepspeed: the file says what strategy and offload would; leave them out, or the file")
        able = {"none": None, "optimizer": ("zero1", "zero2", "zero3"), "parameters": ("zero3", "fsdp2")}[self.offload]
        if able is not None and self.strategy not in able:
            raise ValueError(f"offload: {self.offload} goes with strategy {', '.join(able)}, not with {self.strategy}")
        return self


def split_among_processes(batch: int, runtime: Runtime) -> int:
    """Returns how many of a batch's rows each process trains on.

    Raises RecipeError if the batch does not divide by the processes of all nodes.
    """
    if batch % runtime.world_size:
        raise RecipeError(f"a batch of {batch} rows does not divide by {runtime.format_processes()}")
    return batch // runtime.world_size


def split_into_micro_batches(batch: int, runtime: Runtime) -> tuple[int, int]:
    """Returns (rows per device, accumulation steps) for a batch size.

    Their product over all processes is the batch. Raises RecipeError if the batch cannot be split so.
    """
    share = split_among_processes(batch, runtime)
    rows = max(size for size in range(1, min(runtime.micro_batch, share) + 1) if share % size == 0)
    return rows, share // rows
