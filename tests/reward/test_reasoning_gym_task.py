"""reasoning_gym's own scorers behind guards: each guard by the answers it is there for, hostile answers, all tasks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Completion, Message, Problem
from qwen_align.data_builders.reasoning_gym_tasks import ReasoningGymTasks
from qwen_align.data_builders.reasoning_gym_worker import UNREPEATABLE
from qwen_align.reward.reasoning_gym_guards import GUARDS, REFUSED_TASKS, passes_task_guard, restore_tuples
from qwen_align.reward.reasoning_gym_task import ReasoningGym, extract_answer, find_known_answer

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

REWARD = ReasoningGym()


def entry(answer: str | None, **metadata: Any) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "metadata": metadata}


def gold(dataset: str, answer: str | None, **metadata: Any) -> dict[str, Any]:
    return {"dataset": dataset, "entry": entry(answer, **metadata)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", ("7", "")),
        (" 7\n", ("7", "")),
        ("<think>\n3\n</think>\n\n7", ("7", "")),
        ("So <answer> 7 </answer> it is", ("7", "")),
        ("<answer>6</answer> no, <answer>7</answer>", ("7", "")),
        ("<answer>\n1 2\n3 4\n</answer>", ("1 2\n3 4", "")),
        (r"<answer>7</answer> \boxed{6}", ("7", "")),
        (r"It is \boxed{7}.", ("7", "")),
        (r"\boxed{6}. No: \boxed{7}", ("7", "")),
        (r"\boxed{6}, \boxed{7}", ("", "several answers")),
        (r"\boxed{7", ("", "unterminated box")),
        ("<answer>7", ("", "unfinished answer")),
        ("<answer>6</answer> <answer>7", ("", "unfinished answer")),
        ("<think><answer>7</answer>", ("", "unfinished thinking")),
        ("<think>\n7\n</think>\n\n", ("", "no answer")),
        ("<answer> </answer>", ("", "no answer")),
        ("7" * 10_001, ("", "answer too long")),
    ],
)
def test_what_the_answer_is(text: str, expected: tuple[str, str]) -> None:
    assert extract_answer(text) == expected


# data set, entry, admitted answers, answers that are not
GUARDED = [
    ("game_of_life_halting", entry("True"), ["True", "true"], ["False", "0", "I cannot say", "True or False"]),
    (
        "coin_flip",
        entry("0.375"),
        ["0.375", "3/8", "0.37500001"],
        ["0", "0.3", "0.3751x", "1e999999999", "1/0", "0.38"],
    ),
    ("coin_flip", entry("6.1e-05"), ["6.1e-05", "0.000061"], ["6", "6.1"]),
    ("complex_arithmetic", entry("4.0 - 7.0i"), ["4 - 7i"], ["nan", "NaN + 1i", "inf", "-Infinity"]),
    ("gsm_symbolic", entry("57"), ["57", "57 dollars", "57.0"], ["57 or 58", "-57", "", "57 57"]),
    (
        "fraction_simplification",
        entry("$\\frac{1}{2}$"),
        ["1/2", "$\\dfrac{1}{2}$"],
        ["$\\frac{1}{2}$ or $\\frac{1}{3}$"],
    ),
    ("letter_jumble", entry("so it"), ["so it", "So it"], ["so it or as it"]),
    ("word_sorting", entry("a, b"), ["a, b", "a,b"], ["a, b, c"]),
    ("time_intervals", entry("34 days"), ["34 days"], ["34 days or 35 days"]),
    ("advanced_geometry", entry("(1.000, 2.000)"), ["(1.000, 2.000)"], ["(1.000, 2.000), (3.000, 4.000)"]),
    ("sokoban", entry("LDUR"), ["LDUR", "L D U R", "L, D"], ["ULUL or LDUR", "LDUR or ULUL", "moves: LDUR", ""]),
    ("spell_backward", entry("olleh"), ["olleh", "OLLEH"], ["ollehx", "olleholleh"]),
    ("figlet_font", entry("characters"), ["Characters"], ["charactersx", "characterss"]),
    (
        "number_sorting",
        entry("['1', '2.5']"),
        ["['1', '2.5']", '["1.0", "2.5"]', "[1, 2.5]"],
        ["[1, 3]", "[1]", "1, 2.5"],
    ),
    ("game_of_life", entry("[[0,1]]"), ["[[0, 1]]", "[[0,1]]"], ["[[0,1,1]]", "[[0,1],[1]]", "x"]),
    ("codeio", entry('{"a": 1}'), ['{"a": 1}', '{ "a" : 1 }'], ['so {"a": 1}', '{"a": 2}']),
    (
        "puzzle24",
        entry("10*(8 - 5) - 6", numbers=[8, 5, 10, 6]),
        ["10*(8-5)-6", " 10*(8 - 5) - 6 "],
        [
            "6*4*1*1",
            "8 + 5 + 10 + 6",
            "10*(8 - 5) - 6 + 0",
            "10*(8 - 5) - 6.0",
            "24",
            "8+5+10+6 or 24",
            "f(8, 5, 10, 6)",
        ],
    ),
    (
        "countdown",
        entry("94*4 - 61 - 6", numbers=[6, 61, 94, 4], target=309),
        ["94*4 - 61 - 6", "4*94-(61+6)", "-6-61+94*4"],
        ["309", "94*4 - 61 + 6", "94*4 - 61 - 6 - 0", "94**4 - 61 - 6", "94*4 - 61 - 6 == 309", "94/0*4*61*6"],
    ),
    (
        "simple_integration",
        entry("x**2 + C", variable="x"),
        ["x**2 + C", "x*x + 7", "x*(x + 0.5) - x/2", "sqrt(x)", "x**2"],
        [
            "Integral(2*x, x)",
            "x**2 or x**3",
            "x.diff(x)",
            "__import__('os')",
            "X**2",
            "lambda: 1",
            "x[0]",
            "x if x else 1",
        ],
    ),
    (
        "polynomial_multiplication",
        entry("y**2 - 1"),
        ["y**2 - 1"],
        ["expand((y-1)*(y+1))", "y**2 - 1 or y", "open('a')"],
    ),
    ("spiral_matrix", entry("1 2 3"), ["1 2 3", "[1, 2, 3]"], ["exit()", "(lambda: 1)()", "[x for x in (1, 2)]"]),
    ("n_queens", entry("_ Q", valid_answers=["Q _"]), ["_ Q", "Q _", "[['_', 'Q']]"], ["print(1)", "_ _ Q _"]),
    ("leg_counting", entry("16"), ["16", "anything"], ["nan"]),
]


@pytest.mark.parametrize(("dataset", "item", "admitted", "refused"), GUARDED, ids=[case[0] for case in GUARDED])
def test_guards(dataset: str, item: dict[str, Any], admitted: list[str], refused: list[str]) -> None:
    assert [answer for answer in admitted if not passes_task_guard(dataset, answer, item)] == []
    assert [answer for answer in refused if passes_task_guard(dataset, answer, item)] == []


def test_deep_answers_do_not_end_the_guards() -> None:
    item = entry("1", numbers=[1], target=1, variable="x")
    for dataset in GUARDS:
        for answer in ("(" * 10_000, "-" * 10_000 + "1", "[" * 10_000, "1" * 10_000, "1+" * 5_000 + "1"):
            assert passes_task_guard(dataset, answer, item) in (True, False)


def test_boards_are_tuples_again() -> None:
    item = restore_tuples("arc_agi", entry("1 2", output=[[1, 2]]))
    assert item["metadata"]["output"] == ((1, 2),)
    assert restore_tuples("leg_counting", item) == item


@pytest.mark.parametrize("probe", REWARD.probes(), ids=lambda probe: probe.name)
def test_probes(probe: Any) -> None:
    value = ReasoningGym(time_limit_s=2.0).judge(probe.completion, probe.gold).value
    assert (value is not None and value > 0) == probe.pays


def test_no_answer_runs_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    golds = [
        gold("string_insertion", "ABC"),
        gold("spiral_matrix", "1 2 3"),
        gold("n_queens", "_ Q", valid_answers=[]),
        gold("binary_matrix", "0 1"),
        gold("countdown", "1 + 2", numbers=[1, 2], target=3),
        gold("puzzle24", "1*2*3*4", numbers=[1, 2, 3, 4]),
        gold("simple_integration", "x**2", variable="x", integrand="2*x"),
        gold("polynomial_multiplication", "x**2"),
    ]
    for one in golds:
        for answer in (f"open({str(made)!r}, 'w').close()", f"__import__('os').mkdir({str(made)!r})"):
            assert REWARD.judge(f"<answer>{answer}</answer>", one).value == 0.0
    assert not made.exists()


def test_an_endless_answer_ends_at_the_limit_and_the_next_is_judged() -> None:
    reward = ReasoningGym(time_limit_s=2.0)
    item = gold("simple_integration", "x**2 + C", variable="x", integrand="2*x")
    reward.warm_up()
    start = time.monotonic()
    assert reward.judge("<answer>9**9**9**9*x</answer>", item).reason == "time limit"
    assert time.monotonic() - start < 6.0
    assert reward.judge("<answer>x**2</answer>", item).value == 1.0


@pytest.mark.parametrize(
    "unusable",
    [
        None,
        "16",
        {"dataset": "leg_counting"},
        {"dataset": "leg_counting", "entry": {"question": "?", "answer": 16, "metadata": {}}},
        {"dataset": "leg_counting", "entry": {"question": "?", "answer": "16"}},
        gold("no_such_task", "16"),
        gold("propositional_logic", None),
        gold("leg_counting", "16") | {"settings": {"no_such_setting": 1}},
        gold("leg_counting", "16") | {"seed": 1},
    ],
    ids=repr,
)
def test_unusable_golds(unusable: Any) -> None:
    assert REWARD.judge("<answer>16</answer>", unusable).value is None
    assert REWARD.judge_gold(unusable).value is None


def test_marks_between_are_paid_only_if_asked_for() -> None:
    item = gold("leg_counting", "16")
    whole, partly = (ReasoningGym(partial_credit=flag).judge("16 legs", item) for flag in (False, True))
    assert (whole.value, whole.reason) == (0.0, "partly")
    assert (partly.value, partly.reason) == (2 / 7, "partly")


def test_settings_reach_the_scorer() -> None:
    strict = gold("decimal_arithmetic", "1.250") | {"settings": {"max_num_decimal_places": 3, "precision": 5}}
    loose = gold("decimal_arithmetic", "1.250") | {"settings": {"max_num_decimal_places": 1, "precision": 5}}
    assert [REWARD.judge("1.26", one).value for one in (strict, loose)] == [0.0, 1.0]


def test_a_batch_is_its_completions() -> None:
    prompt = [Message(role="user", content="?")]
    item = gold("leg_counting", "16")
    rows = [
        Completion(prompt_id="p", sample=n, prompt=prompt, text=text, finish_reason="stop", n_tokens=1, gold=item)
        for n, text in enumerate(["16", "17", "<answer>16</answer>", "", "16 legs"])
    ]
    assert REWARD.judge_many(rows) == [REWARD.judge(row) for row in rows]
    assert [one.value for one in REWARD.judge_many(rows)] == [1.0, 0.0, 1.0, 0.0, 0.0]


UNTOLD = {"boxnet", "rush_hour"}  # many answers, and the item tells none
# A few items' golds fail their own guard or scorer, for the reason given; the sieve drops them.
SOME_FAIL = {
    "intermediate_integration": "an unsolved gold, `-Integral(x**2*cos(x), x) + C`, says the question again",
}


# Tasks with many right answers, where another item's answer can be right too (the scorer simulates or checks it).
MANY_ANSWERS = {"graph_color", "n_queens", "sokoban", "quantum_lock", "jugs", "rubiks_cube"}
# What CI looks at: each guard, and scorers that simulate, check, or compare; every task is for `make evidence`.
SOME = (GUARDS.keys() | MANY_ANSWERS | UNTOLD | {"leg_counting", "basic_arithmetic"}) - {*UNREPEATABLE}
SEARCHED = "knight_swap"  # a second of search an item


def some_tasks(n_each: int, seed: int) -> dict[str, list[Problem]]:
    """Rows of SOME by their task, drawn by one process; `n_each` by and large."""
    rows: dict[str, list[Problem]] = {task: [] for task in sorted(SOME)}
    for row in ReasoningGymTasks(tasks=[*rows], n=n_each * len(rows)).generate(seed):
        rows[row.meta["task"]].append(row)
    assert all(rows.values())
    return rows


def every_task(n_each: int, seed: int) -> dict[str, list[Problem]]:
    """The same of every task, each of which takes a process to draw."""
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - set(REFUSED_TASKS) - set(UNREPEATABLE))
    assert len(names) >= 103
    n = {name: min(2, n_each) if name == SEARCHED else n_each for name in names}
    return {name: list(ReasoningGymTasks(tasks=[name], n=n[name]).generate(seed)) for name in names}


TASKS = [
    pytest.param(some_tasks, id="some", marks=pytest.mark.slow(seconds=15)),
    pytest.param(every_task, id="every task", marks=pytest.mark.evidence),
]


@pytest.mark.parametrize("tasks", TASKS)
def test_tasks_pay_their_own_gold(tasks: Callable[[int, int], dict[str, list[Problem]]]) -> None:
    reward = ReasoningGym(time_limit_s=60.0)
    wrong = {}
    for name, rows in tasks(6, 1).items():
        verdicts = [reward.judge_gold(row.gold) for row in rows]
        told = {find_known_answer(row.gold["entry"]) is not None for row in rows}
        assert told == {name not in UNTOLD}, name
        if name not in SOME_FAIL and any(one.value != 1.0 for one in verdicts):
            wrong[name] = [(one.reason, row.gold["entry"]["answer"]) for one, row in zip(verdicts, rows, strict=True)]
    assert wrong == {}


JUNK = ("0", "1", "no", "Yes", "True", "x", "[]", "{}", "None", "I do not know", "[[]]", "0.5", "nan", "1e999")


@pytest.mark.parametrize("tasks", TASKS)
def test_no_task_pays_junk_hedges_or_another_items_answer(
    tasks: Callable[[int, int], dict[str, list[Problem]]],
) -> None:
    reward = ReasoningGym(time_limit_s=60.0)
    paid = []
    for name, rows in tasks(4, 2).items():
        if name == SEARCHED:
            continue
        answers = [find_known_answer(row.gold["entry"]) for row in rows]
        for row, right in zip(rows, answers, strict=True):
            paid += [(name, right, said) for said in _wrong(row, right, answers, name) if _pays(reward, said, row)]
    assert paid == []


def _wrong(row: Problem, right: str | None, answers: list[str | None], name: str) -> list[str]:
    others = [one for one in answers if one not in (right, None)]
    hedges = [f"{right} or {others[0]}", f"{others[0]} or {right}"] if right and others else []
    wrong = [*JUNK, row.gold["entry"]["question"], *hedges, *([] if name in MANY_ANSWERS else others)]
    return [one for one in wrong if one is not None and not _is_same(one, right or "")]


def _is_same(said: str, right: str) -> bool:
    """Equal but for case, the form of a number, and a unit: "1" for "1 days"."""
    if said.casefold() == right.casefold():
        return True
    try:
        return float(said) == float(right.split()[0])
    except (ValueError, IndexError):
        return False


def _pays(reward: ReasoningGym, answer: str, row: Problem) -> bool:
    return reward.judge(f"<answer>{answer}</answer>", row.gold).value not in (0.0, None)
