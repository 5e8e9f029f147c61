"""Defines the settings of `rollout`: completions of a model with the verdicts of its rewards."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.rows import Flag, Mode
from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict
from qwen_align.align.settings.engine import DrawsWithEngine
from qwen_align.align.settings.sampling import MAX_COMPLETIONS, SamplingSettings
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.workload import DrawnRows, Workload
from qwen_align.reward.settings import RewardList, needs_scorer

QUESTION = "{question}"


class Switch(Strict):
    """A thinking switch: how a model is asked to think or not."""

    method: Literal["default", "flag", "kwarg", "plain"] = Field(
        "default",
        description="default: ask for nothing; flag: /think or /no_think in the prompt; kwarg: the chat template's "
        "enable_thinking; plain: `prompt` without a chat template, for base models that have never seen one",
    )
    mode: Mode | None = Field(None, description="what the methods flag and kwarg ask for: think or no_think")
    prompt: str | None = Field(None, description="of method plain: the whole prompt, with {question} in it")

    @model_validator(mode="after")
    def _check_switch_settings(self) -> Self:
        """Checks that method, mode and prompt of a thinking switch fit together. Raises ValueError otherwise."""
        if (self.method in ("default", "plain")) != (self.mode is None):
            raise ValueError(
                f"method '{self.method}' with mode {self.mode}: 'default' and 'plain' ask for nothing, so they have "
                "no mode; 'flag' and 'kwarg' need mode: think or mode: no_think"
            )
        if (self.method == "plain") != (self.prompt is not None):
            raise ValueError("'prompt' belongs to method 'plain', and that needs one")
        if self.prompt is not None and self.prompt.count(QUESTION) != 1:
            raise ValueError(f"prompt {self.prompt!r} has to hold {QUESTION} once")
        return self

    @property
    def flag(self) -> Flag | None:
        """Returns the thinking flag (/think or /no_think) that the switch appends to prompts.

        Returns None for other methods.
        """
        if self.method != "flag":
            return None
        return "/think" if self.mode == "think" else "/no_think"


class Rollout(StageSettings, CanBeEmpty, DrawsWithEngine):
    """Settings of a rollout stage, which samples `completions_per_prompt` completions of every prompt and judges them.

    A prompt's own mode and flag hold unless `thinking_switch` is given.
    """

    kind: Literal["rollout"]
    from_model: ModelRef = Field(description="the model to sample from")
    from_data: DataRef = Field(description="the data set of prompts")
    completions_per_prompt: int = Field(ge=1, le=MAX_COMPLETIONS, description="completions sampled for each prompt")
    sampling: SamplingSettings = Field(
        description="how tokens are sampled; what is left out is Qwen3's advice for the mode of each prompt"
    )
    rewards: RewardList = Field(description="rewards that judge each completion; their verdicts are written beside it")
    thinking_switch: Switch | None = Field(
        None, description="how the model is asked to think or not; null = each prompt's own mode and flag"
    )
    precision: Annotated[Literal["auto", "fp32", "bf16"], ALWAYS_IN_KEY] = Field(
        "auto", description="precision of weights and computation; auto = that of the model's files"
    )
    keep_tokens: bool = Field(False, description="write token ids and log-probabilities beside the text")

    @model_validator(mode="after")
    def _check_logps_are_told(self) -> Self:
        """Raises ValueError where log-probs would be written that vLLM does not tell: those before the cuts."""
        drawn = self.sampling
        is_cut = drawn.temperature != 0 and (drawn.top_p != 1 or drawn.top_k != 0 or drawn.min_p != 0)
        if self.engine == "vllm" and self.keep_tokens and is_cut:
            raise ValueError(
                "keep_tokens: vLLM tells the log-probs after top_p, top_k and min_p alone; write top_p: 1 and "
                "top_k: 0, or engine: local"
            )
        return self

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        rows = DrawnRows(self.completions_per_prompt, self.sampling.max_tokens, engine=self.engine)
        return Workload(self.precision, rows, needs_scorer=needs_scorer(self.rewards))
