"""Settings of `reward_model`: a scorer from preference pairs (Bradley-Terry)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.settings.training import Lora, Optimizer, refuse_dropout


class RewardModel(StageSettings, Optimizer):
    """The probability that the chosen side is better is the sigmoid of the difference of the two scores."""

    kind: Literal["reward_model"]
    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    max_tokens: int = Field(ge=1, description="pairs with a longer side are dropped and counted, never cut")
    batch: int = Field(ge=1, description="pairs an optimiser step, over all devices")
    epochs: float = Field(gt=0)
    margins: bool = Field(False, description="subtract each pair's margin from the difference (arXiv:2307.09288)")
    centre: float = Field(
        0.0, ge=0, description="weight of the squared sum of both scores, which keeps them near 0 (arXiv:2312.09244)"
    )
    lora: Lora | None = None

    @property
    def needs_rows(self) -> bool:
        """Whether a stage without rows fails: there is no scorer to pass through."""
        return True

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        return refuse_dropout(self, self.lora)
