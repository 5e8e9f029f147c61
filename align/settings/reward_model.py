"""Defines the settings of `reward_model`: a reward model from preference pairs (Bradley-Terry)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.settings.training import MAX_BATCH, MAX_EPOCHS, Optimizer, refuse_dropout
from qwen_align.align.settings.workload import ReadRows, TrainingWork, Workload


class RewardModel(StageSettings, Optimizer):
    """Settings of a reward model stage, which trains a reward model on preference pairs.

    The probability that the chosen side is better is the sigmoid of the difference of the two scores.
    """

    kind: Literal["reward_model"]
    from_model: ModelRef = Field(description="the model to start from; it gets a new head with one output")
    from_data: list[DataRef] = Field(min_length=1, description="data sets of preference pairs, trained together")
    max_tokens: int = Field(
        ge=1, description="longest side of a pair in tokens; pairs with a longer one are dropped and counted, never cut"
    )
    batch: int = Field(ge=1, le=MAX_BATCH, description="batch size: pairs per optimiser step, over all devices")
    epochs: float = Field(gt=0, le=MAX_EPOCHS, description="passes over the pairs; fractions are allowed")
    margins: bool = Field(
        False, description="subtract each pair's margin from the difference of the scores (arXiv:2307.09288)"
    )
    center_rewards_coefficient: float = Field(
        0.0,
        ge=0,
        description="weight in the loss of the squared sum of both scores, to keep scores near 0 (arXiv:2312.09244)",
    )

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        rows = ReadRows(self.max_tokens, self.batch, self.epochs, sides=2)
        training = TrainingWork(self.lora, self.optimizer, self.save_weights, trains_scorer=True)
        return Workload(self.precision, rows, training)

    @property
    def needs_rows(self) -> bool:
        """Returns whether a stage without rows fails.

        A reward model stage always does: it has no model to pass through.
        """
        return True

    @model_validator(mode="after")
    def _check_no_dropout(self) -> Self:
        """Raises ValueError if the LoRA settings have a dropout."""
        return refuse_dropout(self, self.lora)
