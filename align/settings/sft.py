"""Settings of `sft`: supervised fine-tuning, cold start and thinking-mode fusion alike."""

from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.training import Lora, Optimizer


class Sft(StageSettings, Optimizer, CanBeEmpty):
    """Next-token loss on what the model is to say; the mean over all supervised tokens of a batch."""

    kind: Literal["sft"]
    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    max_tokens: int = Field(ge=1, description="longer samples are dropped and counted, never cut")
    batch: int = Field(ge=1, description="samples an optimiser step, over all devices")
    epochs: float = Field(gt=0)
    lora: Lora | None = None
