"""The union of all rewards that a recipe can name.

A new reward is one new file and one line in the union.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.fault_wording import describe_error, shorten
from qwen_align.reward.base import BaseReward
from qwen_align.reward.code_tests import CodeTests
from qwen_align.reward.control_rewards import Constant, Random
from qwen_align.reward.format import Format
from qwen_align.reward.instructions import Instructions
from qwen_align.reward.language import LanguageShare
from qwen_align.reward.length import CosineLength, KimiLength, SoftOverlong
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.reasoning_gym_task import ReasoningGym
from qwen_align.reward.repetition import Repetition
from qwen_align.reward.reward_model_score import Learned, Qwen25Math
from qwen_align.reward.tool_calls import ToolCalls

Outcome = MathAnswer | CodeTests | Instructions | ToolCalls | ReasoningGym | Random | Constant
Shaping = Format | SoftOverlong | CosineLength | KimiLength | Repetition | LanguageShare
Reward = Outcome | Shaping | PythonReward | Learned | Qwen25Math
RewardSettings = Annotated[Reward, Field(discriminator="kind")]
_REWARD_ADAPTER: TypeAdapter[Reward] = TypeAdapter(RewardSettings)


def _check_reward_list(rewards: list[Reward]) -> list[Reward]:
    """Validates a recipe's list of rewards and returns it.

    Raises if names repeat, an outcome has no weight, or an outcome is missing.
    """
    labels = [reward.label for reward in rewards]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise PydanticCustomError(
            "twice", "{labels} is named twice; verdicts are kept by name", {"labels": ", ".join(repeated)}
        )
    unpaid = [reward.label for reward in rewards if reward.is_outcome and reward.weight <= 0]
    if unpaid:
        raise PydanticCustomError(
            "unpaid",
            "{labels}: an outcome's weight must be above 0; leave it out, or judge with it in `rollout`",
            {"labels": ", ".join(unpaid)},
        )
    without_outcome = [reward.label for reward in rewards if reward.needs_outcome]
    if without_outcome and not any(reward.is_outcome for reward in rewards):
        raise PydanticCustomError(
            "blind",
            "{labels} depends on whether the completion is right: name an outcome, such as math_answer, beside it",
            {"labels": ", ".join(without_outcome)},
        )
    return rewards


def _refuse_bare_reward(value: Any) -> Any:
    """Raises ValueError for one reward where a list of them is wanted, with what to write instead."""
    if isinstance(value, str):
        raise ValueError(f"must be a list of rewards; found '{value}'; write [{{kind: {value}}}]")
    if isinstance(value, Mapping):
        raise ValueError(f"must be a list of rewards; found {shorten(dict(value))}; write [{{kind: ...}}]")
    return value


Rewards = Annotated[list[RewardSettings], BeforeValidator(_refuse_bare_reward)]
RewardList = Annotated[Rewards, Field(min_length=1), AfterValidator(_check_reward_list)]


def _check_kind(kind: str) -> str:
    """Validates that a reward kind can be named by data rows and returns it. Raises ValueError if it cannot."""
    make_default_reward(kind)
    return kind


RewardName = Annotated[str, AfterValidator(_check_kind)]
"""The kind of a reward, as rows and verdicts are labelled with it."""


OWN_REWARD: str = PythonReward.model_fields["kind"].default
"""The reward that rows name to be judged by a user's own one; the stage that judges them says which."""


def check_row_reward(kind: str) -> None:
    """Raises ValueError if a row's reward is neither `python` nor a kind of reward that rows can name."""
    if kind != OWN_REWARD:
        make_default_reward(kind)


REWARDS_BY_KIND: dict[str, type[BaseReward]] = {
    str(reward.model_fields["kind"].default): reward for reward in get_args(Outcome)
}
"""The rewards that rows can name, by kind."""


@cache  # called for every row
def make_default_reward(kind: str) -> Reward:
    """Creates the reward of a kind with default settings. Raises ValueError for an unknown kind and for `python`."""
    if kind == OWN_REWARD:
        raise ValueError(f"'{OWN_REWARD}' is a reward of your own, which only a stage that names it in rewards knows")
    if kind not in REWARDS_BY_KIND:
        raise ValueError(f"'{kind}' is no reward that rows can name{format_suggestion(kind, REWARDS_BY_KIND)}")
    default_reward: Any = REWARDS_BY_KIND[kind].model_validate({})
    return default_reward  # type: ignore[no-any-return]


def pick_reward(kind: str, rewards: Sequence[Reward]) -> Reward:
    """Returns the reward of the kind that a row names, from a list or else with default settings."""
    for reward in rewards:
        if reward.kind == kind:
            return reward
    if kind == OWN_REWARD:
        raise RecipeError("its questions are judged by a reward of your own; name it here too, in rewards")
    return make_default_reward(kind)


def refuse_unused_rewards(rewards: Sequence[Reward], kinds: Collection[str]) -> None:
    """Raises RecipeError for a reward that would judge nothing, as no question names its kind or an earlier has it.

    `kinds`: of the rewards that questions name.
    """
    listed = [reward.kind for reward in rewards]
    for number, kind in enumerate(listed):
        if kind not in kinds:
            raise RecipeError(
                f"rewards: no question names '{kind}', so it would judge nothing; questions name "
                f"{', '.join(sorted(kinds))}: leave it out, or set `reward` where the rows are built"
            )
        if kind in listed[:number]:
            raise RecipeError(f"rewards: '{kind}' is listed twice; questions name a kind, so the second judges nothing")


def needs_scorer(rewards: Sequence[Reward]) -> bool:
    """Returns whether one of the rewards is a reward model's score."""
    return any(isinstance(reward, Learned) for reward in rewards)


def check_rewards(rewards: Sequence[Reward]) -> None:
    """Raises RecipeError if one of the rewards cannot judge on this machine."""
    for reward in rewards:
        reward.check_machine()


def parse_reward(name: str, settings: Mapping[str, Any] | None = None) -> Reward:
    """Parses the reward that a command line names, a kind or `file.py:function`.

    Raises RecipeError if there is none.
    """
    file, _, function = name.rpartition(":")
    values: dict[str, Any] = {"kind": name}
    if name.endswith(".py"):
        values = {"kind": "python", "file": name}
    elif file.endswith(".py"):
        values = {"kind": "python", "file": file, "name": function}
    try:
        return _REWARD_ADAPTER.validate_python({**values, **(settings or {})}, context={"folder": "."})
    except ValidationError as error:
        if error.errors()[0]["type"] == "union_tag_invalid":
            kinds = [str(kind.model_fields["kind"].default) for kind in get_args(Reward)]
            raise RecipeError(f"'{name}' is no reward{format_suggestion(name, kinds)}") from None
        raise RecipeError(f"reward '{name}': {describe_error(error, n_outer=1)}") from None
