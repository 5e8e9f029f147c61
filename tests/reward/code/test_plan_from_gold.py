"""Tests of every form judge right and wrong code alike, taken apart or run in a cell of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.code.plan_from_gold import CallTests, ScriptTests, plan_from_gold
from qwen_align.reward.code.run_candidate import run_candidate
from qwen_align.reward.code.sandbox import Limits, SandboxError, get_sandbox
from qwen_align.reward.code_tests import CodeTests

LIMITS = Limits(time_limit_s=5.0)
LINES = (Path(__file__).parents[2] / "cases" / "code_forms.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [pytest.param(case, id=case["why"]) for case in map(json.loads, LINES)]


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    try:
        get_sandbox("full").warm_up()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


def score(gold: Any, text: str, *, script: bool) -> str:
    planned = plan_from_gold(gold)
    assert planned is not None
    if script and isinstance(planned.work, CallTests):
        assert planned.work.otherwise is not None
        planned = planned._replace(work=planned.work.otherwise)
    return run_candidate(planned, [text], get_sandbox("full"), LIMITS, partial=False).reason


@pytest.mark.parametrize("case", CASES)
def test_right_code_passes_and_wrong_code_fails_both_ways(case: dict[str, Any]) -> None:
    gold = {"tests": case["tests"]}
    planned = plan_from_gold(gold)
    assert planned is not None
    assert isinstance(planned.work, CallTests if case["way"] == "apart" else ScriptTests)
    for script in (False, True) if case["way"] == "apart" else (True,):
        assert score(gold, case["right"], script=script) == "all tests passed"
        assert score(gold, case["wrong"], script=script) in ("tests failed", "value not plain data", "exited early")


def test_no_expected_value_is_in_what_a_candidate_is_told() -> None:
    gold = {"tests": ["assert f(1) == 123456", "assert f(2) in (654321,)", "assert abs(f(3) - 777777) < 1"]}
    planned = plan_from_gold(gold)
    assert planned is not None
    assert isinstance(planned.work, CallTests)
    told = repr(planned.work.calls) + repr((planned.before, planned.prompt, planned.entry))
    assert not any(number in told for number in ("123456", "654321", "777777"))


def test_setup_comes_before_the_tests() -> None:
    tests = ["assert f(BASE) == 4"]
    assert score({"tests": tests, "setup": "BASE = 3"}, "def f(x): return BASE + 1", script=False) == "all tests passed"
    tree = {"tests": ["assert f(root) == 5"], "test_setup_code": "root = Node(5)"}
    code = "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v"
    assert score(tree, code, script=False) == "all tests passed"
    imported = {"tests": ["assert f(2) == math.pi"], "imports": ["import math"]}
    assert score(imported, "def f(x): return math.pi", script=False) == "all tests passed"


def test_a_check_may_use_what_its_prompt_defines() -> None:
    prompt = 'def twice(x):\n    return 2 * x\n\ndef half(x):\n    """Undoes twice."""\n'
    test = "def check(candidate):\n    for x in range(3):\n        assert candidate(twice(x)) == x\n"
    gold = {"prompt": prompt, "test": test, "entry_point": "half"}
    assert score(gold, "    return x // 2\n", script=False) == "all tests passed"
    cheat = "def twice(x):\n    return 0\n\ndef half(x):\n    return 0\n"
    assert score(gold, cheat, script=False) == "tests failed"
    assert score(gold, "def half(x):\n    return 4 * x // twice(4)\n", script=False) == "all tests passed"


@pytest.mark.parametrize(
    ("why", "tests"),
    [
        ("a tuple", ["assert (f(1) == 2, 'two')"]),
        ("or True", ["assert f(1) == 2 or True"]),
        ("failures passed over", ["try:\n    assert f(1) == 2\nexcept Exception:\n    pass"]),
        ("nobody calls it", ["def run():\n    assert f(1) == 2"]),
        ("nobody calls it, and what runs is no test", ["assert 1 + 1 == 2\ndef run():\n    assert f(1) == 2"]),
        ("never runs", ["if 0:\n    assert f(1) == 2\nf(1)"]),
        ("over nothing", ["f(1)\nfor x in []:\n    assert f(x) == 2"]),
        ("a fixture", ["def test_it(tmp_path):\n    assert f(1) == 2"]),
        ("a set-up", ["def setup_module():\n    pass\ndef test_it():\n    assert f(1) == 2"]),
        ("a coroutine", ["async def test_it():\n    assert f(1) == 2"]),
        ("parameters", ["@mark('x', [1])\ndef test_it():\n    assert f(1) == 2"]),
        ("a module that cells have not", ["import pytest\ndef test_it():\n    assert f(1) == 2"]),
    ],
)
def test_tests_that_would_pay_all_or_none_are_unusable(why: str, tests: list[str]) -> None:
    verdict = CodeTests(time_limit_s=5.0).judge("def f(x): return x + 1", {"tests": tests})
    assert (verdict.value, verdict.reason) == (None, "unusable gold"), why


@pytest.mark.parametrize(
    "body",
    [
        "try:\n        assert candidate(1) == 2\n    except:\n        pass",
        "return\n    assert candidate(1) == 2",
        "def run():\n        assert candidate(1) == 2",
        "candidate(1)",
    ],
)
def test_a_check_that_asserts_nothing_is_unusable(body: str) -> None:
    gold = {"prompt": "", "test": f"def check(candidate):\n    {body}\n", "entry_point": "f"}
    assert CodeTests(time_limit_s=5.0).judge("def f(x): return x + 1", gold).value is None


def test_a_candidate_that_keeps_its_tests_from_asserting_is_not_paid() -> None:
    gold = {"tests": ["for x in f(3):\n    assert x < 3"]}
    said = [
        CodeTests(partial=partial).judge(f"def f(x): return {given}", gold)
        for partial in (False, True)
        for given in ("[]", "[1]")
    ]
    assert [one.value for one in said] == [0.0, 1.0, 0.0, 1.0]
    assert said[0].reason == "no test reached"
