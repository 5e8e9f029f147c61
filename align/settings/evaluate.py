"""Defines the settings of `evaluate`, which measures the accuracy of one model."""

from typing import Annotated, Literal

from pydantic import Field

from qwen_align.align.references import DataRef, ModelRef, ScorerRef
from qwen_align.align.settings.base import ALWAYS_IN_KEY
from qwen_align.align.settings.engine import DrawsWithEngine
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.settings.sampling import MAX_COMPLETIONS, SamplingSettings
from qwen_align.align.settings.stage import StageSettings, VerdictLimit
from qwen_align.align.settings.workload import DrawnRows, Workload
from qwen_align.reward.settings import Rewards, needs_scorer


class Evaluate(StageSettings, VerdictLimit, DrawsWithEngine):
    """Settings of an evaluation: a model's accuracy over `completions_per_prompt` completions of each question.

    There is one result for each data set and each of `thinking_switches`. A completion is right when the reward of its
    question pays 1; the mean of what is paid is a figure of its own.
    """

    kind: Literal["evaluate"]
    from_model: ModelRef = Field(description="the model to evaluate")
    from_data: list[DataRef] = Field(min_length=1, description="data sets of questions, each with a result of its own")
    completions_per_prompt: int = Field(ge=1, le=MAX_COMPLETIONS, description="completions sampled for each question")
    sampling: SamplingSettings = Field(
        description="how tokens are sampled; what is left out is Qwen3's advice for the mode of each prompt"
    )
    thinking_switches: list[Switch] = Field(
        [Switch()], min_length=1, description="ways of asking the model to think or not, each with a result of its own"
    )
    rewards: Rewards = Field([], description="settings of the rewards that questions name; others have their defaults")
    precision: Annotated[Literal["auto", "fp32", "bf16"], ALWAYS_IN_KEY] = Field(
        "auto", description="precision of weights and computation; auto = that of the model's files"
    )
    best_of_n_scorer: ScorerRef | None = Field(
        None,
        description="reward model that picks one of each question's completions: best of n is reported too",
    )

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        n_completions = len(self.thinking_switches) * self.completions_per_prompt
        rows = DrawnRows(n_completions, self.sampling.max_tokens, engine=self.engine)
        has_scorer = self.best_of_n_scorer is not None or needs_scorer(self.rewards)
        return Workload(self.precision, rows, needs_scorer=has_scorer)
