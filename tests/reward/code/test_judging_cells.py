"""What a candidate returns is decoded and judged in a cell of its own, which it can neither hold up nor fill."""

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Completion
from qwen_align.reward.code.plan_from_gold import CallTests, plan_from_gold
from qwen_align.reward.code.sandbox import SandboxError, get_sandbox
from qwen_align.reward.code_tests import CodeTests
from tests.clock import slowness

LIMIT_S = 1.0
SLACK_S = 0.3
MAX_GROWTH_MIB = 256

# name: the candidate's code, its gold's tests
ATTACKS: dict[str, tuple[str, Any]] = {
    "pairs of a long list": (
        "def f(): return list(range(300000))",
        ["r = f()\nassert all(r[i] <= r[j] for i in range(len(r)) for j in range(i, len(r))) and r == 1"],
    ),
    "pairs of a range": ("def f(): return range(400000)", ["assert all(a + b >= 0 for a in f() for b in f()) == 2"]),
    "fractions of many bits": (
        "import random\nfrom fractions import Fraction\n"
        "def f(): return [Fraction(random.getrandbits(4090), random.getrandbits(4090) | 1) for _ in range(900)]",
        ["assert sum(f()) == 1"],
    ),
    "colliding hashes in a set": (
        "def f(): return [x * (2**61 - 1) for x in range(90000)]",
        ["assert set(f()) == {1}"],
    ),
    "colliding hashes in a dict": (
        "def f(): return [(x * (2**61 - 1), x) for x in range(90000)]",
        ["assert dict(f()) == {1: 1}"],
    ),
    "ranges that the test expands": (
        "def f(): return [range(400000)] * 400",
        ["assert [x for r in f() for x in r] == 1"],
    ),
    "ranges that a list is made of": ("def f(): return [range(400000)] * 400", ["assert [list(r) for r in f()] == 1"]),
    "a bytearray times a number": ("def f(): return bytearray(10**6), 10**6", ["assert f()[0] * f()[1] == b''"]),
    "a deque times a number": (
        "from collections import deque\ndef f(): return deque(range(10**5)), 10**5",
        ["assert f()[0] * f()[1] == 1"],
    ),
    "text that doubles": (
        "def f(): return 'x' * 10**6",
        ["assert [f() for _ in range(1)] and [s + s + s + s for s in [f()] * 1000] == 1"],
    ),
    "a signalling NaN": ("from decimal import Decimal\ndef f(): return Decimal('sNaN')", ["assert f() > 1"]),
    "a signalling NaN in a sorted list": (
        "from decimal import Decimal\ndef f(): return [Decimal('sNaN'), Decimal(1)]",
        ["assert sorted(f()) == [1, 2]"],
    ),
    "a generator that yields too few": (
        "def f():\n    yield 1",
        ["assert list(zip(f(), [1, 2], strict=True)) == [(1, 1)]"],
    ),
    "an empty iterator": ("def f(): return iter(())", ["assert next(f()) == 1"]),
    "a huge integer as text": ("def f(): return 10**70000", ["assert str(f()) == '1'"]),
    "huge integers sorted as text": ("def f(): return [10**70000] * 9", ["assert sorted(f(), key=str)[0] == 1"]),
    "deep nesting": ("def f():\n    r = []\n    for _ in range(95): r = [r]\n    return r", ["assert repr(f()) == 1"]),
    "nesting that is too deep": (
        "def f():\n    r = []\n    for _ in range(500): r = [r]\n    return r",
        ["assert f() == 1"],
    ),
    "a wrong length to unpack": ("def f(): return 1, 2, 3", ["assert [a for a, b in [f()]] == 1"]),
    "division by zero": ("def f(): return 0", ["assert 1 / f() == 1"]),
    "a key that is no key": ("def f(): return []", ["assert {f(): 1} == 1"]),
    "NaN": ("def f(): return float('nan')", ["assert f() == f()"]),
    "a lone surrogate": ("def f(): return '\\ud800'", ["assert f() == 'a'"]),
    "a time zone": (
        "import datetime\ndef f(): return datetime.datetime.now(datetime.timezone.utc)",
        ["assert f() == 1"],
    ),
    "a huge exponent": ("from decimal import Decimal\ndef f(): return Decimal('1e9999')", ["assert int(f()) == 1"]),
    "complex infinity": ("def f(): return complex('inf')", ["assert abs(f()) == 1"]),
    "a range that counts": ("def f(): return range(2**100)", ["assert len(f()) == 1"]),
    "a range to sum": ("def f(): return range(10**9)", ["assert sum(f()) == 1"]),
    "many small calls": ("def f(x): return list(range(20000))", ["".join(f"assert f({i}) == 1\n" for i in range(500))]),
    "an endless loop": ("def f():\n    while True: pass", ["assert f() == 1"]),
    "memory in the candidate": ("def f(): return bytearray(2**31)", ["assert f() == 1"]),
    "an output of a wrong type": ("import decimal\ndef f(x): return decimal.Decimal('sNaN')", "outputs"),
}


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    try:
        get_sandbox("full").warm_up()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


def make_gold(tests: Any) -> Any:
    return {"inputs": [[1]], "outputs": [2], "fn_name": "f"} if tests == "outputs" else {"tests": tests}


def make_completion(code: str, gold: Any) -> Completion:
    turn = {"role": "user", "content": "Write f."}
    return Completion(prompt_id="p", sample=0, prompt=[turn], text=code, gold=gold, finish_reason="stop", n_tokens=1)


def get_memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.fixture
def memory_growth() -> Iterator[Any]:
    """How many MiB this process, which judges, has held above what it began with."""
    start = get_memory_mib()
    peak = [start]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            peak[0] = max(peak[0], get_memory_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield lambda: peak[0] - start
    is_over.set()
    watcher.join()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_verdict_ends_in_time_and_takes_no_memory_of_its_owner(name: str, memory_growth: Any) -> None:
    code, tests = ATTACKS[name]
    reward = CodeTests(time_limit_s=LIMIT_S)
    start = time.monotonic()
    verdict = reward.judge(code, make_gold(tests))
    assert time.monotonic() - start < LIMIT_S + SLACK_S * max(1.0, slowness())
    assert verdict.value == 0.0
    assert memory_growth() < MAX_GROWTH_MIB


def test_one_candidates_deadline_never_reaches_anothers() -> None:
    """All attacks in one batch, more than there are threads, and honest ones after each of them."""
    reward = CodeTests(time_limit_s=LIMIT_S)
    honest = ("def f(): return [1, 2]", ["assert f() == [1, 2]"])
    named = ["pairs of a range", "ranges that the test expands", "a signalling NaN", "an endless loop"] * 2
    pairs = [pair for name in named for pair in (ATTACKS[name], honest)]
    rows = [make_completion(code, make_gold(tests)) for code, tests in pairs]
    verdicts = reward.judge_many(rows)
    assert [verdict.value for verdict in verdicts] == [0.0, 1.0] * len(named)
    again = reward.judge_many(rows[1:2] * 4, deadline=time.monotonic() + 5.0 * max(1.0, slowness()))
    assert [verdict.value for verdict in again] == [1.0] * 4


def test_a_gold_that_is_nested_too_deep_for_the_parser_costs_no_other_its_verdict() -> None:
    golds = [{"tests": [f"assert f() == {'-' * n}1"]} for n in (0, 100_000, 2)]
    verdicts = CodeTests(time_limit_s=5.0).judge_many([make_completion("def f(): return 1", gold) for gold in golds])
    assert [verdict.value for verdict in verdicts] == [1.0, None, 1.0]


def test_a_judging_cell_that_is_killed_at_work_costs_no_honest_candidate_its_verdict() -> None:
    reward = CodeTests(time_limit_s=20.0)
    sandbox = get_sandbox("full")
    gold = {"tests": ["assert f() == 1"]}
    reward.judge("def f(): return 1", gold)
    cells = [cell for idle in sandbox.idle_judges.values() for cell in idle]
    assert cells

    def kill_all() -> None:
        for cell in cells:
            with contextlib.suppress(SandboxError):  # both threads wait for the one that works
                cell.kill()

    killer = threading.Timer(0.5, kill_all)
    killer.start()
    verdict = reward.judge("import time\ntime.sleep(1.5)\ndef f(): return 1", gold)
    killer.join()
    assert verdict.value == 1.0


def test_a_judging_cell_that_was_killed_is_replaced() -> None:
    reward = CodeTests(time_limit_s=5.0)
    gold = {"tests": ["assert f() == 1"]}
    for _ in range(2):
        assert reward.judge("def f(): return 1", gold).value == 1.0
        for cells in get_sandbox("full").idle_judges.values():
            for cell in cells:
                cell.kill()
    assert reward.judge("def f(): return 1", gold).value == 1.0


def test_long_tests_that_python_can_do_are_done_by_python() -> None:
    """More steps than are judged one by one: the test runs as code, within the time limit."""
    total = sum(x * x * x - x * x + 7 * x - 3 for x in range(250_000) if x % 2 == 0 and x % 3 != 1 and x % 5 != 4)
    kept = "x % 2 == 0 and x % 3 != 1 and x % 5 != 4"
    gold = {"tests": [f"assert sum([x * x * x - x * x + 7 * x - 3 for x in f() if {kept}]) == {total}"]}
    reward = CodeTests(time_limit_s=10.0)
    assert reward.judge("def f(): return list(range(250_000))", gold).value == 1.0
    assert reward.judge("def f(): return list(range(249_000))", gold).value == 0.0


@pytest.mark.parametrize(
    "test",
    [
        "for i in range(400000):\n    for j in range(400000):\n        assert f(1) == 2",
        "for i in range(400000):\n    for j in range(400000):\n        pass\nassert f(1) == 2",
        "x = [[i for i in range(400000)] for j in range(400000)]\nassert f(1) == 2",
        "x = [list(range(400000)) for j in range(400)]\nassert f(x[0][0]) == 2",
        "assert f(1) == [y for x in [range(400000)] * 400 for y in x]",
        "x = []\ny = []\n" + "x = [x, x]\ny = [y, y]\n" * 40 + "assert x == y\nassert f(1) == 2",
        "x = []\n" + "x = [x, x]\n" * 40 + "assert f(1) == str(x)",
        "x = ()\n" + "x = (x, x)\n" * 40 + "y = {x: 1}\nassert f(1) == 2",
        "x = ()\n" + "x = (x, x)\n" * 40 + "y = {x}\nassert f(1) == 2",
        "x = ()\n" + "x = (x, x)\n" * 40 + "y = {1: {}.get(x)}\nassert f(1) == 2",
    ],
)
def test_planning_a_gold_ends(test: str, memory_growth: Any) -> None:
    start = time.thread_time()
    plan = plan_from_gold({"tests": [test]})
    assert time.thread_time() - start < 5.0 * max(1.0, slowness())
    assert plan is not None
    assert memory_growth() < MAX_GROWTH_MIB


@pytest.mark.parametrize(
    ("test", "is_usable"),
    [
        ("assert isclose(f(1), 0.5)", False),
        ("assert not math.isnan(f(1)) and isclose(f(1), 0.5)", False),
        ("result = f(1)\nassert isclose(result, 0.5)", False),
        ("assert all(isclose(a, b) for a, b in zip(f(3), [1, 2, 3]))", False),
        ("assert largest_error(f(1), 0.5) < 1e-6", False),
        ("assert approx(f(1)) == 0.5", False),
        ("assert f(2) == reference(2)", False),
        ("assert check(f(1), 2) is True", False),
        ("from math import isclose\nassert isclose(f(1), 0.5)", True),
        ("assert math.isclose(f(1), 0.5)", True),
        ('assert decode(encode("ab", 3), 3) == "ab"', True),
        ("assert f(f(1)) == 2", True),
        ("assert is_balanced(Tree(1))", True),
        ("assert gcd(4, 6) == 2", True),
    ],
)
def test_a_gold_whose_judge_the_candidate_would_define_is_unusable(test: str, is_usable: bool) -> None:
    assert (plan_from_gold({"tests": [test]}) is not None) is is_usable


def test_only_the_function_asked_for_may_see_its_results() -> None:
    check = "def check(candidate):\n    assert TEST\n"
    golds = {
        test: {"test": check.replace("TEST", test), "entry_point": "f"}
        for test in ("candidate(1) == 2", "close(candidate(1), 2)", "same(f(1)) == 2", "candidate(make(1)) == 2")
    }
    assert [plan_from_gold(gold) is not None for gold in golds.values()] == [True, False, False, True]
    plan = plan_from_gold(golds["candidate(1) == 2"])
    assert plan is not None
    assert isinstance(plan.work, CallTests)
