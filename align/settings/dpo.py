"""Settings of `dpo`: direct preference optimisation (arXiv:2305.18290) and its loss variants."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.runtime import Runtime, split_into_micro_batches
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.training import Lora, Optimizer, refuse_dropout


class Dpo(StageSettings, Optimizer, CanBeEmpty):
    """The reference is always the model the stage starts from."""

    kind: Literal["dpo"]
    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    max_tokens: int = Field(ge=1, description="pairs with a longer side are dropped and counted, never cut")
    batch: int = Field(ge=1, description="pairs an optimiser step, over all devices")
    epochs: float = Field(gt=0)
    beta: float = Field(gt=0)
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sft_weight: float = Field(0.0, ge=0, description="weight of the chosen answer's next-token loss beside it")
    lora: Lora | None = None

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        return refuse_dropout(self, self.lora)

    def runtime_in_key(self, runtime: Runtime) -> dict[str, int]:
        """TRL's next-token term is a mean over the tokens of a device's forward pass, so it depends on its size."""
        return {"rows": split_into_micro_batches(self.batch, runtime)[0]} if self.sft_weight else {}
