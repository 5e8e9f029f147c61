"""Settings of `dpo`: direct preference optimisation (arXiv:2305.18290) and its loss variants."""

from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.spec.stage import Lora, Optimizer, StageSettings


class Dpo(StageSettings, Optimizer):
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
