"""Right code is paid in every form of gold, and nothing else is, whatever it does to be."""

import asyncio
import gzip
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.base import UNJUDGED
from qwen_align.reward.code import launch_server
from qwen_align.reward.code.plan_from_gold import ScriptTests, plan_from_gold
from qwen_align.reward.code.sandbox import SandboxError, get_sandbox
from qwen_align.reward.code_tests import CodeTests

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
ATTACKS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "cases" / "code_attacks.jsonl").read_text(encoding="utf-8").splitlines()
]
ANSWERS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "cases" / "code_answers.jsonl").read_text(encoding="utf-8").splitlines()
]
needs_data = pytest.mark.skipif(
    not (DATA / "humaneval").is_dir(),
    reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds humaneval and mbpp",
)

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return -1\n"
LIST = {"tests": ["assert add(1, 2) == 3", "assert add(5, 7) == 12"]}
GOLDS: dict[str, Any] = {
    "list": LIST,
    "check": {
        "prompt": 'def add(a, b):\n    """The sum."""\n',
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(candidate(5, 7) - 12) < 1e-6\n",
        "entry_point": "add",
    },
    "rpc": {"tests": ["import random\nassert add(1, 2) == 3", "for a, b in [(5, 7)]:\n    assert add(a, b) in {12}"]},
    "program": {"inputs": ["1 2\n", "5 7\n"], "outputs": ["3\n", "12\n"]},
}
REWARD = CodeTests(time_limit_s=5.0)
PATIENT = CodeTests(time_limit_s=60.0)  # the slowest references take 3 s of a machine of their own


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    try:
        REWARD.warm_up()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


def of(text: str, gold: Any, sample: int = 0) -> Completion:
    asked = [Message(role="user", content="Add.")]
    return Completion(
        prompt_id="p", sample=sample, prompt=asked, text=text, finish_reason="stop", n_tokens=1, gold=gold
    )


def test_the_golds_take_the_ways_they_are_to_test() -> None:
    works = {name: type(plan_from_gold(gold).work).__name__ for name, gold in GOLDS.items()}  # type: ignore[union-attr]
    assert works == {"list": "CallTests", "check": "CallTests", "rpc": "ScriptTests", "program": "ProgramTests"}


@pytest.mark.parametrize(
    ("one", "gold"),
    [pytest.param(one, gold, id=f"{one['name']}-{gold}") for one in ATTACKS for gold in one["golds"]],
)
def test_only_right_code_is_paid(one: dict[str, Any], gold: str) -> None:
    reward = REWARD.model_copy(update={"time_limit_s": one.get("time_limit_s", REWARD.time_limit_s)})
    start = time.monotonic()
    verdict = reward.judge(one["code"], GOLDS[gold])
    assert verdict.value == (1.0 if one["pays"] else 0.0), verdict
    assert time.monotonic() - start < reward.time_limit_s + 0.3


@pytest.mark.parametrize("one", ANSWERS, ids=lambda one: one["name"])
def test_answers_are_read_as_their_writers_meant_them(one: dict[str, Any]) -> None:
    assert REWARD.judge(one["completion"], one["gold"]).value == one["value"]


LONG = "1" + "0" * 5_000


def test_integers_of_five_thousand_digits() -> None:
    code = "def f(n): return 10 ** n"
    for gold in (
        {"tests": [f"assert f(5000) == {LONG}"]},
        {"fn_name": "f", "inputs": ["5000"], "outputs": [LONG]},
    ):
        assert REWARD.judge(code, gold).value == 1.0
        assert REWARD.judge(f"{code} + 1", gold).value == 0.0
    program = {"inputs": ["5000\n"], "outputs": [f"{LONG}\n"]}
    assert REWARD.judge("print(10 ** int(input()))", program).value == 1.0


ENDLESS = [
    "while True: pass",
    "import time\ntime.sleep(60)",
    "import signal\nfor one in (2, 14, 15): signal.signal(one, signal.SIG_IGN)\nwhile True: pass",
    "def add(a, b):\n    return 10 ** (10 ** 9)\nadd(1, 2)",
    "import re\nre.match('(a+)+b', 'a' * 60)",
]


@pytest.mark.parametrize("gold", ["list", "rpc", "program"])
def test_a_time_limit_is_kept(gold: str) -> None:
    def judged(code: str) -> tuple[float | None, str, bool]:
        start = time.monotonic()
        verdict = REWARD.model_copy(update={"time_limit_s": 0.3}).judge(code, GOLDS[gold])
        return verdict.value, verdict.reason, time.monotonic() - start < 0.3 + 0.3

    with ThreadPoolExecutor(len(ENDLESS)) as threads:
        assert set(threads.map(judged, ENDLESS)) == {(0.0, "time limit", True)}


def test_reasons_can_be_counted() -> None:
    def reason(code: str, gold: Any = LIST) -> str:
        return REWARD.judge(code, gold).reason

    assert reason(RIGHT) == "all tests passed"
    assert reason(WRONG) == "tests failed"
    assert reason("") == reason("```python\n" + RIGHT) == reason("text\n```json\n{}\n```\n") == "no code"
    assert reason("<think>hm") == "unfinished thinking"
    assert reason("Just add them.") == "syntax error"
    assert reason("def plus(a, b): pass") == "function not defined"
    assert reason("1 / 0") == "crashed"
    assert reason("import os\nos._exit(0)") == "exited early"
    assert reason("def add(a, b): return object()") == "value not plain data"
    assert reason("x = bytearray(3 << 30)") == "memory limit"
    assert reason("print('x' * 10**7)", GOLDS["program"]) == "output limit"
    assert reason(RIGHT, {"tests": []}) == "unusable gold"


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f"```python\n{RIGHT}```",
        f"<think>\n```python\n{WRONG}```\n</think>\n\nHere:\n```py\n{RIGHT}```\nDone.",
        f"First\n```python\n{WRONG}```\nno, better\n```\n{RIGHT}```\nprints\n```text\n3\n```\n",
        "1. Do\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
        f"````python\n{RIGHT}x = '''\n```\n'''\n````",
        f'"""\n```\nexample\n```\n"""\n{RIGHT}',
        f"```python\r\n{RIGHT}```\r\n",
    ],
)
def test_the_code_is_found(text: str) -> None:
    assert REWARD.judge(text, LIST).value == 1.0


def test_a_completion_is_the_function_or_its_body() -> None:
    gold = GOLDS["check"]
    for body in (
        "    return a + b\n",
        "\n    total = a + b\n    return total",
        "return a + b",
        "```python\n    return a + b\n```",
    ):
        assert REWARD.judge(body, gold).value == 1.0, body
    for function in (RIGHT, gold["prompt"] + "    return a + b", f"import math\n{RIGHT}", f"```python\n{RIGHT}```"):
        assert REWARD.judge(function, gold).value == 1.0, function
    for wrong in ("    return a - b\n", "pass", gold["prompt"], "add = None"):
        assert REWARD.judge(wrong, gold).value == 0.0, wrong


def test_a_part_is_the_share_of_tests_passed() -> None:
    reward = CodeTests(partial=True)
    half = "def add(a, b):\n    return 3\n"
    assert {name: reward.judge(half, gold).value for name, gold in GOLDS.items() if name != "program"} == {
        "list": 0.5,
        "check": 0.5,
        "rpc": 0.5,
    }
    assert reward.judge("print(3)", GOLDS["program"]).value == 0.5
    for gold in (LIST, GOLDS["rpc"]):
        assert reward.judge("import os\ndef add(a, b):\n    if a == 5: os._exit(0)\n    return 3\n", gold).value == 0.0
        assert reward.judge(RIGHT, gold).value == 1.0


def test_functions_with_arguments_as_json() -> None:
    gold = {"inputs": [[[3, 1, 2], 1], [[], 0]], "outputs": [[[1, 2], {"n": 3}], [[], {"n": 0}]], "fn_name": "low"}
    function = "def low(xs, drop):\n    return (tuple(sorted(xs)[: len(xs) - drop]), {'n': len(xs)})\n"
    method = (
        "class Solution:\n    def low(self, xs: List[int], drop: int):\n"
        "        return [sorted(xs)[: len(xs) - drop], dict(n=len(xs))]\n"
    )
    assert REWARD.judge(function, gold).value == REWARD.judge(method, gold).value == 1.0
    assert REWARD.judge(function.replace("len(xs)}", "1}"), gold).value == 0.0
    lines = {"inputs": ["[1, 2]\n3", "[]\n0"], "outputs": ["6", "0"], "entry_point": "total"}
    assert REWARD.judge("def total(xs, more): return sum(xs) + more", lines).value == 1.0
    wrapped = {"inputs": [["ab"], ["c"]], "outputs": [["ba"], ["c"]], "fn_name": "back"}
    assert REWARD.judge("def back(s): return s[::-1]", wrapped).value == 1.0
    assert REWARD.judge("def back(s): return s", wrapped).value == 0.0


def test_a_batch_is_judged_as_one_by_one() -> None:
    texts = [one["code"] for one in ATTACKS if "list" in one["golds"]][::6]
    single = [REWARD.judge(text, LIST) for text in texts]
    assert REWARD.judge_many([of(text, LIST) for text in texts]) == single
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda text: REWARD.judge(text, LIST), texts)) == single

    async def at_once() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(REWARD.judge, text, LIST) for text in texts))

    assert asyncio.run(at_once()) == single


def test_a_batch_keeps_its_deadline() -> None:
    batch = [of("while True: pass", LIST, sample) for sample in range(20)]
    start = time.monotonic()
    verdicts = REWARD.model_copy(update={"time_limit_s": 0.2}).judge_many(batch, deadline=start + 0.5)
    assert time.monotonic() - start < 1.1
    assert UNJUDGED in verdicts
    assert {one.reason for one in verdicts} == {"time limit", "batch deadline"}


@pytest.mark.parametrize(
    "gold",
    [
        None,
        "assert add(1, 2) == 3",
        {},
        {"tests": []},
        {"tests": ["", "  "]},
        {"tests": ["assert add(1, 2 == 3"]},
        {"tests": ["add(1, 2)"]},
        {"tests": ["assert True"]},
        {"tests": ["assert sorted([2, 1]) == [1, 2]", 3]},
        {"test": "def check(candidate):\n    pass\n", "entry_point": "add", "prompt": ""},
        {"test": "def check(candidate):\n    assert True\n", "entry_point": "add", "prompt": ""},
        {"test": "def check(candidate):\n    assert candidate(1) == 1\n", "prompt": ""},
        {"inputs": [], "outputs": []},
        {"inputs": ["1"], "outputs": ["1", "2"]},
        {"inputs": ["1", "2"], "outputs": ["", "\n"]},
        {"inputs": [3], "outputs": [4]},
        {"inputs": [3], "outputs": [4], "fn_name": "f"},
        {"inputs": ["1"], "outputs": ["\ud800"]},
    ],
)
def test_an_unusable_gold_gives_no_verdict(gold: Any) -> None:
    assert REWARD.judge(RIGHT, gold).value is None
    assert REWARD.judge_gold(gold).value is None


def test_a_gold_with_a_solution_is_tried() -> None:
    gold = GOLDS["check"]
    assert REWARD.judge_gold(gold).value == 1.0
    assert REWARD.judge_gold({**gold, "canonical_solution": "    return a + b\n"}).value == 1.0
    assert REWARD.judge_gold({**gold, "canonical_solution": "    return a\n"}).value == 0.0


def test_probes_are_paid_as_they_say() -> None:
    for probe in REWARD.probes():
        assert ((REWARD.judge(probe.completion, probe.gold).value or 0) > 0) is probe.pays, probe.name


def test_the_weaker_isolation_is_taken_by_name_and_pays_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_server, "is_root", lambda: False)
    reward = CodeTests(isolation="process", time_limit_s=5.0)
    for one in ATTACKS[::4]:
        if "rpc" in one["golds"]:
            assert reward.judge(one["code"], GOLDS["rpc"]).value == float(one["pays"]), one["name"]


@needs_data
@pytest.mark.slow
def test_humaneval_is_paid_in_full() -> None:
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    plans = [plan_from_gold(row) for row in rows]
    assert sum(one is not None and not isinstance(one.work, ScriptTests) for one in plans) >= 160
    unpaid = [row["task_id"] for row in rows if PATIENT.judge(row["canonical_solution"], row).value != 1.0]
    unpaid += [
        row["task_id"] for row in rows if PATIENT.judge(row["prompt"] + row["canonical_solution"], row).value != 1.0
    ]
    paid = [row["task_id"] for row in rows if PATIENT.judge("    return None\n", row).value != 0.0]
    assert (len(rows), unpaid, paid) == (164, [], [])


@needs_data
@pytest.mark.slow
def test_mbpp_is_paid_in_full() -> None:
    lines = (DATA / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    batch = [
        of(row["code"], {"tests": row["test_list"] + row["challenge_test_list"], "setup": row["test_setup_code"]})
        for row in rows
    ]
    verdicts = PATIENT.judge_many(batch)
    unpaid = {row["task_id"]: said.reason for row, said in zip(rows, verdicts, strict=True) if said.value != 1.0}
    assert (len(rows), unpaid) == (974, {})


def test_a_server_killed_in_the_middle_costs_no_verdict() -> None:
    gold = {"tests": ["assert slow(1) == 2"]}
    slow = "import time\ndef slow(x):\n    time.sleep(0.5)\n    return x + 1\n"
    CodeTests().warm_up()
    server = get_sandbox("full")._server
    assert server is not None
    killer = threading.Timer(0.2, server.kill)
    killer.start()
    assert CodeTests().judge(slow, gold).value == 1.0
    killer.join()
