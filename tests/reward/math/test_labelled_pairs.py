"""MathAnswer on labelled answers and completions, each with its reason (`tests/cases/math_labelled_pairs.jsonl`)."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.math_answer import MathAnswer

TABLE = Path(__file__).parents[2] / "cases" / "math_labelled_pairs.jsonl"
CASES = [json.loads(line) for line in TABLE.read_text("utf-8").splitlines()]
REWARD = MathAnswer()


def build_completion(case: dict[str, Any]) -> str:
    """Returns the case's completion, or its answer in a box."""
    return str(case["response"]) if "response" in case else rf"The final answer is $\boxed{{{case['answer']}}}$."


def name_case(case: dict[str, Any]) -> str:
    """Returns a case's name for the report."""
    answer = case.get("response", case.get("answer", ""))
    return f"{case['why']}: {answer[-60:]!r} for {case['gold']!r}"


@pytest.mark.parametrize("case", CASES, ids=name_case)
def test_verdict_is_the_label(case: dict[str, Any]) -> None:
    verdict = REWARD.judge(build_completion(case), case["gold"])
    assert verdict.value == (None if case["right"] is None else float(case["right"])), verdict.reason


def test_verdicts_do_not_depend_on_the_order_or_the_cache() -> None:
    once = [REWARD.judge(build_completion(case), case["gold"]) for case in CASES]
    again = [MathAnswer().judge(build_completion(case), case["gold"]) for case in reversed(CASES)]
    assert once == again[::-1]


def test_no_case_is_twice_in_the_table() -> None:
    keys = [json.dumps({key: case[key] for key in case if key != "why"}) for case in CASES]
    assert len(keys) == len(set(keys))
