"""Settings of `evaluate`: one model, one protocol."""

from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef, ModelRef, ScorerRef
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.settings.stage import StageSettings
from qwen_align.reward.settings import RewardSettings


class Evaluate(StageSettings):
    """Accuracy over `samples` completions a question, for each data set and each switch.

    A question is right when its own reward pays 1.
    """

    kind: Literal["evaluate"]
    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    samples: int = Field(ge=1)
    sampling: SamplingSettings
    switches: list[Switch] = Field([Switch()], min_length=1)
    rewards: list[RewardSettings] = Field([], description="settings of rewards that questions name, else the defaults")
    best_by: ScorerRef | None = Field(
        None, description="a scorer that picks one of the completions of each question: best of n"
    )
    engine: Literal["local"] = "local"
