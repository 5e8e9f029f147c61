"""Defines the settings of every stage that trains: optimiser, LoRA and training steps."""

import math
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict

# Beyond what anyone trains with: a slip of the finger is refused, where it would run for years.
MAX_EPOCHS = 10_000
MAX_BATCH = 1_000_000


def count_optimizer_steps(n_rows: int, epochs: float, batch: int) -> int:
    """Returns the number of optimiser steps of a number of epochs.

    The last batch is filled from the next permutation.
    """
    return max(1, math.ceil(n_rows * epochs / batch)) if n_rows else 0


class Lora(Strict):
    """LoRA adapters on linear layers (arXiv:2106.09685). The base model's weights stay as they are."""

    rank: int = Field(ge=1, description="rank of the two factors of each adapter")
    alpha: float = Field(gt=0, description="scale of the adapters: their output is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input; only sft may have it")
    base_weights: Literal["auto", "fp32", "bf16", "nf4"] = Field(
        "auto",
        description="precision of the frozen base model: auto = that of its files (fp32 where precision is fp32); nf4 "
        "= 4 bits with double quantisation (QLoRA, arXiv:2305.14314)",
    )
    dora: bool = Field(False, description="train a magnitude per output beside each adapter (DoRA, arXiv:2402.09353)")
    rank_stabilized: bool = Field(
        False, description="scale the adapters by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732), not alpha / rank"
    )
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="names of the layers that get adapters; all-linear = every linear layer but the head and the "
        "routers of a mixture of experts",
    )


class Experts(Strict):
    """How a mixture of experts is trained: its routers, and the loss that spreads tokens over the experts."""

    train_router: bool | None = Field(
        None,
        description="train the routers, and the gate of a shared expert; null = yes, but with lora those that "
        "target_modules names",
    )
    load_balancing: float | None = Field(
        None,
        ge=0,
        description="coefficient of the load-balancing loss over all tokens of an optimiser step (arXiv:2501.11873); "
        "null = router_aux_loss_coef of the model's config.json where routers are trained, else 0",
    )


Settings = TypeVar("Settings")


def refuse_dropout(settings: Settings, lora: Lora | None) -> Settings:
    """Returns the settings if their LoRA adapters have no dropout.

    Raises ValueError for a dropout, which TRL would silently turn off.
    """
    if lora and lora.dropout:
        raise ValueError("lora.dropout: must be 0 here, or policy and reference (or sampler) would be different models")
    return settings


class Optimizer(Strict):
    """Settings of every stage that trains a model: AdamW, its schedule, precisions and LoRA."""

    learning_rate: float = Field(gt=0, description="peak learning rate, after the warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the learning rate goes on after the warm-up: as it is, or down to 0"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="AdamW's decay rates of the two moment estimates"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        "adamw",
        description="implementation of AdamW: 8bit = moment estimates in 8 bits; paged = moved to host memory when the "
        "GPU's is full, GPUs only (both from bitsandbytes; not yet tested on a GPU)",
    )
    precision: Annotated[Literal["auto", "fp32", "bf16"], ALWAYS_IN_KEY] = Field(
        "auto",
        description="precision of the computation; auto = bf16 for a model whose files are bf16, else fp32. Trained "
        "weights are fp32 in both cases: bf16 means autocast (mixed precision)",
    )
    save_weights: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="precision in which a model trained without lora is saved; auto = bf16 if the files it started "
        "from and the computation are bf16 and the learning rate is 1e-5 or more (below, rounding to bf16 would lose "
        "most of the update), else fp32",
    )
    tf32: bool = Field(
        False,
        description="let GPUs multiply fp32 matrices in TF32 (10 bits of mantissa): faster, less exact; no effect on "
        "a CPU",
    )
    lora: Lora | None = Field(None, description="train LoRA adapters only; null = train all weights")
    experts: Experts = Field(Experts(), description="how the routers of a mixture of experts are trained")

    @property
    def sees_whole_steps(self) -> bool:
        """Returns whether a loss over the whole batch of an optimiser step can be computed."""
        return True
