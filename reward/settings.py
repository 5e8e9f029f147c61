"""The rewards a recipe can name. A new reward is one new file and one line in the union."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from qwen_align.align.rows import Completion
from qwen_align.align.strict import did_you_mean
from qwen_align.reward.format import Format
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.verdict import Verdict

Reward = MathAnswer | Format
RewardSettings = Annotated[Reward, Field(discriminator="kind")]


def _one_of_each(rewards: list[Reward]) -> list[Reward]:
    kinds = [reward.kind for reward in rewards]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise PydanticCustomError(
            "twice", "{kinds} is named twice; verdicts are kept by kind", {"kinds": ", ".join(twice)}
        )
    return rewards


RewardList = Annotated[list[RewardSettings], Field(min_length=1), AfterValidator(_one_of_each)]


def _known(kind: str) -> str:
    reward_of_kind(kind)
    return kind


RewardName = Annotated[str, AfterValidator(_known)]
"""The kind of a reward, as rows and verdicts are labelled with it."""


def judge_all(rewards: Sequence[Reward], completion: Completion) -> Verdict:
    """The sum of the rewards by their weights, with one part a kind; no verdict if one of them has none."""
    parts: dict[str, Verdict] = {reward.kind: reward.judge(completion) for reward in rewards}
    for part in parts.values():
        if part.value is None:
            return Verdict(value=None, reason=part.reason, parts=parts)
    value = sum(reward.weight * (parts[reward.kind].value or 0.0) for reward in rewards)
    return Verdict(value=value, reason="; ".join(part.reason for part in parts.values()), parts=parts)


@cache  # asked for every row
def reward_of_kind(kind: str) -> Reward:
    """The reward a row names, with its default settings; raises ValueError for an unknown kind."""
    kinds = {str(reward.model_fields["kind"].default): reward for reward in get_args(Reward)}
    if kind not in kinds:
        raise ValueError(f"'{kind}' is no reward{did_you_mean(kind, kinds)}")
    found: Reward = kinds[kind]()
    return found
