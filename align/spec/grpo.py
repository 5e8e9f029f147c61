"""Settings of `grpo`: group-relative policy optimisation (arXiv:2402.03300) with rule-based rewards."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.spec.sampling import SamplingSettings
from qwen_align.align.spec.stage import (
    CanBeEmpty,
    Lora,
    Optimizer,
    Runtime,
    StageSettings,
    micro_batches,
    refuse_dropout,
)
from qwen_align.reward.settings import RewardList


class Grpo(StageSettings, Optimizer, CanBeEmpty):
    """`steps` updates, each on `prompts` prompts with `samples` completions a prompt, through TRL's trainer."""

    kind: Literal["grpo"]
    trainer: Literal["trl"] = "trl"
    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    rewards: RewardList
    steps: int = Field(ge=1)
    prompts: int = Field(ge=1, description="prompts a step, over all devices")
    samples: int = Field(ge=2, description="completions a prompt")
    sampling: SamplingSettings
    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    advantage_scale: Literal["group", "batch", "none"] = "group"
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)  # clip-higher, DAPO, arXiv:2503.14476
    beta: float = Field(0.0, ge=0, description="weight of the KL to the model the stage starts from")
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    mask_truncated: bool = Field(False, description="completions cut by max_tokens train nothing")
    truncated_sampling: bool = Field(False, description="allow top_p, top_k or min_p, which bias the ratio")
    lora: Lora | None = None

    def runtime_in_key(self, runtime: Runtime) -> dict[str, int]:
        """TRL's entropy is a mean over the tokens of a device's forward pass, so it depends on its size."""
        return {"rows": micro_batches(self.prompts * self.samples, runtime)[0]} if self.entropy else {}

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        return refuse_dropout(self, self.lora)

    @model_validator(mode="after")
    def _exact_sampling(self) -> Self:
        drawn = self.sampling
        if drawn.temperature is None or drawn.temperature == 0:
            raise ValueError("sampling.temperature must be given and above 0: a group of equal answers teaches nothing")
        cut = drawn.top_p not in (None, 1.0) or drawn.top_k not in (None, 0) or drawn.min_p != 0
        if cut and not self.truncated_sampling:
            raise ValueError(
                "sampling: top_p, top_k or min_p draws from another distribution than the one trained, which "
                "biases the ratio; leave them out, or set truncated_sampling: true if you mean it"
            )
        return self
