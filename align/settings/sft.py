"""Defines the settings of `sft`: supervised fine-tuning, cold start and thinking-mode fusion alike."""

from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.training import MAX_BATCH, MAX_EPOCHS, Optimizer
from qwen_align.align.settings.workload import ReadRows, TrainingWork, Workload


class Sft(StageSettings, Optimizer, CanBeEmpty):
    """Settings of an SFT stage, which trains a model on conversations with a next-token loss on the assistant's turns.

    The loss is a mean over a batch's tokens.
    """

    kind: Literal["sft"]
    from_model: ModelRef = Field(description="the model to train")
    from_data: list[DataRef] = Field(min_length=1, description="data sets to train on, mixed in one random order")
    max_tokens: int = Field(
        ge=1, description="longest sample in tokens; longer ones are dropped and counted, never cut"
    )
    batch: int = Field(ge=1, le=MAX_BATCH, description="batch size: samples per optimiser step, over all devices")
    epochs: float = Field(gt=0, le=MAX_EPOCHS, description="passes over the samples; fractions are allowed")

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        rows = ReadRows(self.max_tokens, self.batch, self.epochs)
        return Workload(self.precision, rows, TrainingWork(self.lora, self.optimizer, self.save_weights))
