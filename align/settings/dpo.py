"""Defines the settings of `dpo`: direct preference optimisation (arXiv:2305.18290) and its loss variants."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.training import MAX_BATCH, MAX_EPOCHS, Optimizer, refuse_dropout
from qwen_align.align.settings.workload import ReadRows, TrainingWork, Workload

WITHOUT_SMOOTHING = ("sigmoid", "hinge", "ipo", "sigmoid_norm")  # TRL 1.16 reads label_smoothing in robust alone


class Dpo(StageSettings, Optimizer, CanBeEmpty):
    """Settings of a DPO stage, which trains a model on preference pairs.

    The reference policy is always the model that the stage starts from.
    """

    kind: Literal["dpo"]
    from_model: ModelRef = Field(description="the model to train, which is the reference policy too")
    from_data: list[DataRef] = Field(min_length=1, description="data sets of preference pairs, trained together")
    max_tokens: int = Field(
        ge=1, description="longest side of a pair in tokens; pairs with a longer one are dropped and counted, never cut"
    )
    batch: int = Field(ge=1, le=MAX_BATCH, description="batch size: pairs per optimiser step, over all devices")
    epochs: float = Field(gt=0, le=MAX_EPOCHS, description="passes over the pairs; fractions are allowed")
    beta: float = Field(gt=0, description="strength of the pull towards the reference policy: higher stays closer")
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"] = Field(
        "sigmoid",
        description="preference loss. sigmoid: DPO; hinge: SLiC (arXiv:2305.10425); ipo: arXiv:2310.12036; robust: "
        "arXiv:2403.00409; sigmoid_norm: sigmoid of log-probabilities per token, as in TRL",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="of loss robust: share of pairs assumed to be labelled the wrong way round"
    )
    sft_weight: float = Field(
        0.0, ge=0, description="weight of an SFT loss on the chosen side, added to the preference loss"
    )

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        rows = ReadRows(self.max_tokens, self.batch, self.epochs, sides=2)
        training = TrainingWork(
            self.lora,
            self.optimizer,
            self.save_weights,
            scoring_passes=1,
            reference="base" if self.lora else "before",
        )
        return Workload(self.precision, rows, training)

    @model_validator(mode="after")
    def _check_no_dropout(self) -> Self:
        """Raises ValueError if the LoRA settings have a dropout."""
        return refuse_dropout(self, self.lora)

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> Self:
        """Raises ValueError for a label smoothing that the loss does not read."""
        if self.label_smoothing and self.loss in WITHOUT_SMOOTHING:
            raise ValueError(
                f"label_smoothing: loss '{self.loss}' does not read it; set loss: robust, which corrects for pairs "
                "labelled the wrong way round, or leave it out"
            )
        return self
