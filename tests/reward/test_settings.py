"""The list of rewards as a recipe writes it."""

import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import qwen_align.reward
from qwen_align.reward.base import BaseReward
from qwen_align.reward.format import Format
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.settings import Outcome, Reward, RewardList, RewardName, Shaping, make_default_reward

REWARDS: TypeAdapter[list[Reward]] = TypeAdapter(RewardList)


def test_rewards_are_told_apart_by_kind() -> None:
    rewards = REWARDS.validate_python([{"kind": "math_answer"}, {"kind": "format", "weight": 0.25}])
    assert rewards == [MathAnswer(), Format(weight=0.25)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least 1 item"),
        ([{"kind": "math"}], "expected tags: 'math_answer'"),
        ([{"kind": "format"}, {"kind": "format"}], "format is named twice; verdicts are kept by name"),
        ([{"kind": "math_answer", "weight": 0.0}], "math_answer: an outcome's weight must be above 0"),
        ([{"kind": "kimi_length"}, {"kind": "format"}], "kimi_length depends on whether the completion is right"),
        ([{"kind": "format", "wieght": 1.0}], "'wieght' is no setting here. Did you mean 'weight'?"),
        ([{"kind": "format", "weight": float("nan")}], "finite number"),
        ([{"kind": "format", "weight": 1e300}], "less than or equal to 1000000"),
        ([{"kind": "format", "weight": "1"}], "valid number"),
    ],
)
def test_wrong_settings_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        REWARDS.validate_python(given)


def test_rewards_by_the_name_on_a_row() -> None:
    for kind in get_args(Outcome):
        assert type(make_default_reward(kind().kind)) is kind
    with pytest.raises(ValueError, match=r"'math_anser' is no reward that rows can name. Did you mean 'math_answer'\?"):
        TypeAdapter(RewardName).validate_python("math_anser")


def test_every_reward_is_named_by_its_kind_and_exported() -> None:
    kinds = [kind for union in (Outcome, Shaping) for kind in get_args(union)]
    for kind in [*kinds, PythonReward]:
        assert getattr(qwen_align.reward, kind.__name__) is kind
        assert issubclass(kind, BaseReward)
    assert len({kind.model_fields["kind"].default for kind in kinds}) == len(kinds)
    with pytest.raises(AttributeError, match="no attribute 'MathAnswers'"):
        qwen_align.reward.MathAnswers  # noqa: B018


def test_outcomes_and_shaping_are_what_their_class_says() -> None:
    for union, role in ((Outcome, "outcome"), (Shaping, "shaping")):
        assert {kind.role for kind in get_args(union)} == {role}


def test_rewards_are_imported_and_judge_where_only_unix_has_modules() -> None:
    program = """
import os, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
import qwen_align.reward.settings
from qwen_align.reward import CodeTests, MathAnswer
sys.platform = "win32"
print(MathAnswer().judge(r"\\boxed{\\frac12}", "0.5").reason)
try:
    CodeTests().check_machine()
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    right, refused = done.stdout.splitlines()
    assert right == "correct"
    assert refused.startswith("reward code_tests: code is run in forked processes, which Windows does not have")
