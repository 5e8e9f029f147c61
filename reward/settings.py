"""The rewards a recipe can name. A new reward is one new file and one line in the union."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import did_you_mean
from qwen_align.reward.code_tests import CodeTests
from qwen_align.reward.controls import Constant, Random
from qwen_align.reward.format import Format
from qwen_align.reward.instructions import Instructions
from qwen_align.reward.language import LanguageShare
from qwen_align.reward.learned import Learned, Qwen25Math
from qwen_align.reward.length import CosineLength, KimiLength, SoftOverlong
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.reasoning_gym_task import ReasoningGym
from qwen_align.reward.repetition import Repetition
from qwen_align.reward.tool_calls import ToolCalls

Outcome = MathAnswer | CodeTests | Instructions | ToolCalls | ReasoningGym | Random | Constant
Shaping = Format | SoftOverlong | CosineLength | KimiLength | Repetition | LanguageShare
Reward = Outcome | Shaping | PythonReward | Learned | Qwen25Math
RewardSettings = Annotated[Reward, Field(discriminator="kind")]
_REWARD: TypeAdapter[Reward] = TypeAdapter(RewardSettings)


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


OWN: str = PythonReward.model_fields["kind"].default
"""What rows name whose reward is the user's; which one it is, the stage says that judges them."""


def check_nameable(kind: str) -> None:
    """Raises ValueError for what is neither a kind of reward that rows can name nor `python`."""
    if kind != OWN:
        reward_of_kind(kind)


@cache  # asked for every row
def reward_of_kind(kind: str) -> Reward:
    """The reward a row names, with its default settings; raises ValueError for an unknown kind, and for `python`."""
    kinds = {str(reward.model_fields["kind"].default): reward for reward in get_args(Outcome)}
    if kind == OWN:
        raise ValueError(f"'{OWN}' is a reward of your own, which only a stage that names it in rewards knows")
    if kind not in kinds:
        raise ValueError(f"'{kind}' is no reward that rows can name{did_you_mean(kind, kinds)}")
    found: Reward = kinds[kind]()
    return found


def reward_for(kind: str, given: Sequence[Reward]) -> Reward:
    """The reward of a kind that a row names: with the given settings, else with its own."""
    for reward in given:
        if reward.kind == kind:
            return reward
    if kind == OWN:
        raise RecipeError("its questions are judged by a reward of your own; name it here too, in rewards")
    return reward_of_kind(kind)


def check_all(rewards: Sequence[Reward]) -> None:
    """Raises RecipeError where one of the rewards cannot judge on this machine."""
    for reward in rewards:
        reward.check_here()


def named(name: str, settings: Mapping[str, Any] | None = None) -> Reward:
    """The reward a command line names: a kind, or `file.py:function`; raises RecipeError saying what is wrong."""
    file, _, function = name.rpartition(":")
    given: dict[str, Any] = {"kind": name}
    if name.endswith(".py"):
        given = {"kind": "python", "file": name}
    elif file.endswith(".py"):
        given = {"kind": "python", "file": file, "name": function}
    try:
        return _REWARD.validate_python({**given, **(settings or {})}, context={"folder": "."})
    except ValidationError as error:
        if error.errors()[0]["type"] == "union_tag_invalid":
            kinds = [str(kind.model_fields["kind"].default) for kind in get_args(Reward)]
            raise RecipeError(f"'{name}' is no reward{did_you_mean(name, kinds)}") from None
        said = "; ".join(f"{'.'.join(map(str, one['loc'][1:])) or 'reward'}: {one['msg']}" for one in error.errors())
        raise RecipeError(f"reward '{name}': {said}") from None
