"""Settings of `pretrain`: a small Qwen3 from nothing but Text rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.stage import StageSettings

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Architecture(Strict):
    """A Qwen3 with tied embeddings. The defaults are the embedded model: half a million parameters."""

    hidden: Positive = 128
    layers: Positive = 3
    heads: Positive = 4
    kv_heads: Positive = 2
    head_dim: Positive = 32
    intermediate: Positive = 256
    max_tokens: Positive = 1024
    rope_theta: float = Field(default=10_000.0, gt=0)  # short contexts; Qwen3's 1e6 is for 32k tokens

    @model_validator(mode="after")
    def _check_heads(self) -> "Architecture":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        return self


class TokenizerTraining(Strict):
    """A byte-level BPE trained on the first `texts` documents."""

    vocab_size: int = Field(default=512, ge=300)  # 256 bytes, 9 control tokens and room for words
    texts: Positive = 20_000


class MuonSettings(Strict):
    """Muon, for the matrices inside the layers."""

    lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)


class AdamWSettings(Strict):
    """AdamW without weight decay, for embeddings and norms."""

    lr: float = Field(default=3e-3, gt=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.95], min_length=2, max_length=2)


class Pretrain(StageSettings):
    """Trains tokenizer and model on Text rows; `rows` x `block` tokens a step, each row opening with a document."""

    kind: Literal["pretrain"]
    from_data: DataRef
    architecture: Architecture = Architecture()
    tokenizer: TokenizerTraining = TokenizerTraining()
    rows: Positive = 20
    block: Positive = 160
    steps: Positive
    muon: MuonSettings = MuonSettings()
    adamw: AdamWSettings = AdamWSettings()
    warmup_steps: int = Field(default=30, ge=0)
    decay_share: Share = 0.5  # share of the steps, at the end, over which both rates fall linearly to zero
    log_every: Positive = 20

    @model_validator(mode="after")
    def _check_schedule(self) -> "Pretrain":
        if self.block > self.architecture.max_tokens:
            raise ValueError(f"block is {self.block}, more than architecture.max_tokens {self.architecture.max_tokens}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, which leaves none of {self.steps} steps")
        return self
