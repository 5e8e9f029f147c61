"""The rewards a recipe can name. A new reward is one new file and one line in the union."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from qwen_align.align.strict import did_you_mean
from qwen_align.reward.format import Format
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward

Reward = MathAnswer | Format | PythonReward
RewardSettings = Annotated[Reward, Field(discriminator="kind")]


def _agree(rewards: list[Reward]) -> list[Reward]:
    labels = [reward.label for reward in rewards]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise PydanticCustomError(
            "twice", "{labels} is named twice; verdicts are kept by name", {"labels": ", ".join(twice)}
        )
    unpaid = [reward.label for reward in rewards if reward.is_outcome and reward.weight <= 0]
    if unpaid:
        raise PydanticCustomError(
            "unpaid",
            "{labels}: an outcome's weight must be above 0; leave it out, or judge with it in `rollout`",
            {"labels": ", ".join(unpaid)},
        )
    blind = [reward.label for reward in rewards if reward.needs_outcome]
    if blind and not any(reward.is_outcome for reward in rewards):
        raise PydanticCustomError(
            "blind",
            "{labels} depends on whether the completion is right: name an outcome, such as math_answer, beside it",
            {"labels": ", ".join(blind)},
        )
    return rewards


RewardList = Annotated[list[RewardSettings], Field(min_length=1), AfterValidator(_agree)]


def _known(kind: str) -> str:
    reward_of_kind(kind)
    return kind


RewardName = Annotated[str, AfterValidator(_known)]
"""The kind of a reward, as rows and verdicts are labelled with it."""


@cache  # asked for every row
def reward_of_kind(kind: str) -> Reward:
    """The reward a row names, with its default settings; raises ValueError for an unknown kind."""
    kinds = {str(reward.model_fields["kind"].default): reward for reward in get_args(Reward)}
    kinds = {name: reward for name, reward in kinds.items() if reward is not PythonReward}
    if kind not in kinds:
        raise ValueError(f"'{kind}' is no reward{did_you_mean(kind, kinds)}")
    found: Reward = kinds[kind]()
    return found


def warm_all(rewards: Sequence[Reward]) -> None:
    """Start what the rewards' first verdicts would wait for; raises what makes one of them impossible here."""
    for reward in rewards:
        reward.warm()
