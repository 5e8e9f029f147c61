"""The list of rewards as a recipe writes it, and their weighted sum."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.format import Format
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import Reward, RewardList, RewardName, judge_all, reward_of_kind
from qwen_align.reward.units import _UNITS
from qwen_align.reward.verdict import Verdict

REWARDS: TypeAdapter[list[Reward]] = TypeAdapter(RewardList)
RIGHT, WRONG = "<think>\na\n</think>\n\n\\boxed{2}", "<think>\na\n</think>\n\n\\boxed{3}"


def completion(text: str, gold: Any = "2") -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    return Completion(
        prompt_id="p", sample=0, prompt=prompt, text=text, mode="think", finish_reason="stop", n_tokens=1, gold=gold
    )


def test_rewards_are_told_apart_by_kind() -> None:
    rewards = REWARDS.validate_python([{"kind": "math_answer"}, {"kind": "format", "weight": 0.25}])
    assert rewards == [MathAnswer(), Format(weight=0.25)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least 1 item"),
        ([{"kind": "math"}], "'math_answer', 'format'"),
        ([{"kind": "format"}, {"kind": "format"}], "format is named twice; verdicts are kept by kind"),
        ([{"kind": "format", "wieght": 1.0}], "'wieght' is no setting here. Did you mean 'weight'?"),
        ([{"kind": "format", "weight": float("nan")}], "finite number"),
        ([{"kind": "format", "weight": "1"}], "valid number"),
    ],
)
def test_wrong_settings_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        REWARDS.validate_python(given)


def test_sum_by_weights_with_its_parts() -> None:
    rewards = [MathAnswer(), Format(weight=0.25)]
    assert judge_all(rewards, completion(RIGHT)) == Verdict(
        value=1.25,
        reason="correct; well formed",
        parts={
            "math_answer": Verdict(value=1.0, reason="correct"),
            "format": Verdict(value=1.0, reason="well formed"),
        },
    )
    assert judge_all(rewards, completion(WRONG)).value == 0.25
    assert judge_all(rewards, completion("\\boxed{2}")).value == 1.0
    assert judge_all(rewards, completion("<think>")).value == 0.0


def test_one_reward_alone_keeps_its_reason() -> None:
    verdict = judge_all([MathAnswer(weight=2.0)], completion(RIGHT))
    assert (verdict.value, verdict.reason) == (2.0, "correct")


def test_no_verdict_of_a_part_is_no_verdict_at_all() -> None:
    verdict = judge_all([Format(), MathAnswer()], completion(RIGHT, gold=None))
    assert (verdict.value, verdict.reason) == (None, "unusable gold")
    assert verdict.parts is not None
    assert verdict.parts["format"].value == 1.0


def test_rewards_by_the_name_on_a_row() -> None:
    for kind in get_args(Reward):
        assert type(reward_of_kind(kind().kind)) is kind
    with pytest.raises(ValueError, match=r"'math_anser' is no reward. Did you mean 'math_answer'\?"):
        TypeAdapter(RewardName).validate_python("math_anser")


def test_no_unit_is_listed_twice() -> None:
    words = _UNITS.split()
    assert sorted(words) == sorted(set(words))
