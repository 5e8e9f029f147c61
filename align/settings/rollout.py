"""Settings of `rollout`: completions of a model with what the rewards say of them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.rows import Flag, Mode
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.reward.settings import RewardList

QUESTION = "{question}"


class Switch(Strict):
    """How a model is asked to think or not: by default, by a flag in the prompt, or by the template's argument.

    `plain` asks without a chat template: how a base model that has never seen one is measured.
    """

    switch: Literal["default", "flag", "kwarg", "plain"] = "default"
    mode: Mode | None = None
    prompt: str | None = Field(None, description="of 'plain': the whole prompt, with {question} in it")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.switch in ("default", "plain")) != (self.mode is None):
            raise ValueError(
                f"switch '{self.switch}' with mode {self.mode}: 'default' and 'plain' ask for nothing, so they have "
                "no mode; 'flag' and 'kwarg' need mode: think or mode: no_think"
            )
        if (self.switch == "plain") != (self.prompt is not None):
            raise ValueError("'prompt' belongs to switch 'plain', and that needs one")
        if self.prompt is not None and self.prompt.count(QUESTION) != 1:
            raise ValueError(f"prompt {self.prompt!r} has to hold {QUESTION} once")
        return self

    @property
    def flag(self) -> Flag | None:
        if self.switch != "flag":
            return None
        return "/think" if self.mode == "think" else "/no_think"


class Rollout(StageSettings, CanBeEmpty):
    """`samples` completions of every prompt, judged; a prompt's own mode and flag hold unless `switch` is given."""

    kind: Literal["rollout"]
    from_model: ModelRef
    from_data: DataRef
    samples: int = Field(ge=1)
    sampling: SamplingSettings
    rewards: RewardList
    switch: Switch | None = None
    engine: Literal["local"] = "local"
    keep_tokens: bool = Field(False, description="write token ids and log-probs beside the text")
