"""Defines the settings of `pretrain`, which trains a small Qwen3 from scratch on raw text."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.stage import StageSettings

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0, le=10_000_000)]


class Architecture(Strict):
    """Shape of a Qwen3 model with tied embeddings. The defaults are the embedded model's, half a million parameters."""

    hidden: Positive = Field(128, description="width of the hidden states")
    layers: Positive = Field(3, description="number of transformer layers")
    heads: Positive = Field(4, description="attention heads per layer")
    kv_heads: Positive = Field(2, description="key and value heads per layer, which several attention heads share")
    head_dim: Positive = Field(32, description="width of an attention head")
    intermediate: Positive = Field(256, description="width of the MLP inside a layer")
    max_tokens: Positive = Field(1024, description="longest text in tokens that the model is made for")
    rope_theta: float = Field(
        default=10_000.0,  # short contexts; Qwen3's 1e6 is for 32k tokens
        gt=0,
        description="base of the rotary position embedding",
    )

    @model_validator(mode="after")
    def _check_heads(self) -> "Architecture":
        """Checks that the attention head counts fit together. Raises ValueError otherwise."""
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        return self


class TokenizerTraining(Strict):
    """Settings for training the tokenizer, a byte-level BPE."""

    vocab_size: int = Field(
        default=512,
        ge=300,  # 256 bytes, 9 control tokens and room for words
        description="tokens in the vocabulary, control tokens included",
    )
    texts: Positive = Field(20_000, description="number of documents, the first ones, that it is trained on")


class MuonSettings(Strict):
    """Settings of Muon, the optimiser of the weight matrices inside the layers."""

    lr: float = Field(default=0.02, gt=0, description="peak learning rate")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="momentum (Nesterov)")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay")


class AdamWSettings(Strict):
    """Settings of AdamW without weight decay, the optimiser of embeddings and norms."""

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.9, 0.95], min_length=2, max_length=2, description="decay rates of the two moment estimates"
    )


class Pretrain(StageSettings):
    """Settings of a pretraining stage, which trains a tokenizer and a small Qwen3 from scratch on texts.

    Each sequence opens with a document.
    """

    kind: Literal["pretrain"]
    from_data: DataRef = Field(description="the data set of texts")
    architecture: Architecture = Field(Architecture(), description="shape of the model")
    tokenizer: TokenizerTraining = Field(TokenizerTraining(), description="how the tokenizer is trained")
    batch: Positive = Field(20, description="batch size: sequences per optimiser step")
    sequence_length: Positive = Field(160, description="tokens per sequence")
    steps: Positive = Field(description="optimiser steps")
    muon: MuonSettings = Field(MuonSettings(), description="optimiser of the matrices inside the layers")
    adamw: AdamWSettings = Field(AdamWSettings(), description="optimiser of embeddings and norms")
    warmup_steps: int = Field(default=30, ge=0, description="steps over which both learning rates rise from 0")
    decay_share: Share = Field(
        0.5, description="share of the steps, at the end, over which both learning rates fall linearly to 0"
    )
    log_every: Positive = Field(20, description="steps between two lines of metrics.jsonl")

    @model_validator(mode="after")
    def _check_schedule(self) -> "Pretrain":
        """Checks that warm-up and decay fit into the training steps. Raises ValueError otherwise."""
        if self.sequence_length > self.architecture.max_tokens:
            raise ValueError(
                f"sequence_length is {self.sequence_length}, more than "
                f"architecture.max_tokens {self.architecture.max_tokens}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, which leaves none of {self.steps} steps")
        return self

    def get_new_model_config(self) -> dict[str, Any]:
        """Returns what config.json will say of the layers of the new model."""
        return {"model_type": "qwen3", "num_hidden_layers": self.architecture.layers, "tie_word_embeddings": True}
