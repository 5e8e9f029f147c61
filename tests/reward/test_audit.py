"""Audits: every reward's own probes, and what a careless one pays for."""

from pathlib import Path
from typing import get_args

import pytest

from qwen_align.align.rows import Completion, Message, Problem
from qwen_align.reward.audit import audit_reward, make_bad_completions
from qwen_align.reward.base import BaseReward
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.reasoning_gym_task import ReasoningGym
from qwen_align.reward.settings import Outcome, Shaping

CARELESS = """
def judge(completion, gold):
    text = completion if isinstance(completion, str) else completion.text
    return float(str(gold) in text)
"""


def problem(gold: str = "42") -> Problem:
    return Problem(id="p", messages=[Message(role="user", content="17+25?")], gold=gold, reward="math_answer")


def test_a_careless_reward_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    found = audit_reward(PythonReward(file=str(tmp_path / "careless.py")))
    paid = {one.probe for one in found if one.is_paid}
    assert paid == {"the gold in the thinking only", "the gold in thinking without end", "many boxes"}


@pytest.mark.parametrize("gold", ["42", "1", "x", "A", "\\frac{1}{2}", "(1,2)"])
def test_a_sound_one_pays_for_nothing_bad(gold: str) -> None:
    assert [one.probe for one in audit_reward(MathAnswer(), [problem(gold)]) if one.pays is None and one.is_paid] == []


def test_bad_completions_keep_what_the_problem_says() -> None:
    asked = problem().model_copy(update={"mode": "think", "meta": {"level": 3}})
    for _, row in make_bad_completions(asked):
        assert isinstance(row, Completion)
        assert (row.gold, row.mode, row.meta, row.prompt) == ("42", "think", {"level": 3}, asked.messages)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.__name__, marks=[pytest.mark.slow] if kind is ReasoningGym else [])  # 6 s of imports
        for kind in get_args(Outcome) + get_args(Shaping)
    ],
)
def test_every_reward_passes_its_own_audit(kind: type[BaseReward]) -> None:
    needed = {name: 100 for name, field in kind.model_fields.items() if field.is_required()}
    found = audit_reward(kind(kind=kind.model_fields["kind"].default, **needed))
    assert [(one.probe, one.verdict) for one in found if one.is_wrong] == []
    assert found
