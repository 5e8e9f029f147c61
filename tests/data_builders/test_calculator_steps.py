"""GSM8K's calculator marks: exact arithmetic, and the step labels that follow from it."""

import json
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Chat, Message, Problem, Row, RowError, Steps, to_json_line
from qwen_align.data_builders.calculator_steps import CalculatorSteps
from qwen_align.data_builders.gsm8k_calculator_marks import (
    UnreadableMarkError,
    evaluate_expression,
    parse_calculator_marks,
    remove_calculator_marks,
)
from qwen_align.data_builders.sieve import Drops

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()

NUMBERS = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", " / "]), inner).map("".join) | inner.map("({})".format)
    ),
    max_leaves=12,
)


@given(SUMS)
def test_sums_are_what_python_makes_of_them_exactly(text: str) -> None:
    exact = re.sub(r"[0-9]+(?:\.[0-9]+)?", lambda number: f"F('{number[0]}')", text)
    try:
        expected = eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        with pytest.raises(UnreadableMarkError, match="divides by zero"):
            evaluate_expression(text)
    else:
        assert evaluate_expression(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2", "24"),
        ("-3+-2", "-5"),
        ("2(3+4)", "14"),
        ("1,200*.5", "600"),
        ("5.", "5"),
        ("10-4-3", "3"),
        ("12/3/2", "2"),
        ("560//10", "56"),
        ("((((1))))", "1"),
    ],
)
def test_values(text: str, expected: str) -> None:
    assert evaluate_expression(text) == Fraction(expected)


@pytest.mark.parametrize(
    "text",
    ["", "2+", "*2", "(2", "2)", "2x", "2 3", "__import__('os')", "2**3", "1/0", "(" * 60 + "1" + ")" * 60, "50%"],
)
def test_what_is_no_sum(text: str) -> None:
    with pytest.raises(UnreadableMarkError):
        evaluate_expression(text)


@pytest.mark.parametrize(
    ("mark", "exact", "rounded"),
    [
        ("<<48/2=24>>", True, True),
        ("<<48/2=25>>", False, False),
        ("<<1/3=0.33>>", False, True),
        ("<<2/3=.67>>", False, True),
        ("<<2/3=0.66>>", False, True),
        ("<<2/3=0.65>>", False, False),
        ("<<7/2=3>>", False, False),
        ("<<7/2=4>>", False, False),
        ("<<-2/3=-0.67>>", False, True),
        ("<<2+3=4+1=5>>", True, True),
        ("<<2+3=4+2=5>>", False, False),
        ("<<4.2*7=29.400000000000002>>", False, True),
        ("<<4.2*7=29.400200000000002>>", False, False),
        ("<<5=5.00>>", True, True),
    ],
)
def test_marks(mark: str, exact: bool, rounded: bool) -> None:
    assert [parse_calculator_marks(mark, may_round=may)[0].is_right for may in (False, True)] == [exact, rounded]


@pytest.mark.parametrize("text", ["<<24>>", "<<2x=4>>", "and <<2+2=4", "<<=>>"])
def test_marks_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UnreadableMarkError):
        parse_calculator_marks(text)


def chat(row_id: str, *lines: str) -> Chat:
    asked = Message(role="user", content="How many?")
    return Chat(id=row_id, messages=[asked, Message(role="assistant", content="\n".join(lines))])


def build_rows(rows: Sequence[Row], seed: int = 0, **settings: Any) -> tuple[list[Steps], Drops]:
    drops = Drops()
    builder = CalculatorSteps.model_validate({"from_data": "all", **settings})
    return [row for row in builder.build({"all": lambda: iter(rows)}, seed, drops) if isinstance(row, Steps)], drops


GOOD = chat("a", "She has two bags.", "She has 2*3=$<<2*3=6>>6.", "So 6-1=<<6-1=5>>5.", "That is all.", "#### 5")


def test_a_row_in_full() -> None:
    rows, drops = build_rows([GOOD])
    assert rows == [
        Steps(
            id="a",
            messages=[Message(role="user", content="How many?")],
            steps=["She has two bags.\nShe has 2*3=$6.", "So 6-1=5.\nThat is all."],
            labels=[True, True],
            meta={"n_steps": 2, "planted": False},
        )
    ]
    assert drops.rows == []
    assert build_rows([GOOD], keep_marks=True)[0][0].steps[1] == "So 6-1=<<6-1=5>>5.\nThat is all."


def test_nothing_follows_the_first_wrong_step() -> None:
    rows, _ = build_rows([chat("a", "<<2+2=4>>4", "<<4+1=6>>6", "<<6+1=7>>7")])
    assert (rows[0].steps, rows[0].labels) == (["4", "6"], [True, False])
    assert rows[0].meta == {"n_steps": 3, "first_wrong": 1, "planted": False}


def test_what_is_dropped() -> None:
    rows, drops = build_rows([chat("a", "It is 5."), chat("b", "<<2x=4>>4"), chat("c", "<<2+2=4")])
    assert rows == []
    assert [(drop.reason, drop.id) for drop in drops.rows] == [
        ("no mark", "a"),
        ("unreadable mark", "b"),
        ("unreadable mark", "c"),
    ]
    with pytest.raises(RowError, match="row 'p' is a problem row without a solution"):
        build_rows([Problem(id="p", messages=GOOD.messages, reward="math_answer")])


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=4))
def test_a_planted_error_is_the_last_step_and_the_only_wrong_one(seed: int, sums: list[tuple[int, int]]) -> None:
    row = chat("a", *(f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b} in all." for a, b in sums))
    (planted,), _ = build_rows([row], seed, planted_share=1.0, keep_marks=True)
    (sound,), _ = build_rows([row], seed, keep_marks=True)
    assert planted.meta["planted"] is True
    assert planted.labels == [True] * (len(planted.steps) - 1) + [False]
    assert planted.steps[:-1] == sound.steps[: len(planted.steps) - 1]
    before, after = sound.steps[len(planted.steps) - 1], planted.steps[-1]
    assert before != after
    (mark,) = parse_calculator_marks(after)
    assert not mark.is_right
    assert after[mark.end :] == f"{mark.sides[-1]} in all."  # the wrong result is said in the text, too


def test_planting_takes_its_share_and_says_where_it_cannot() -> None:
    rows = [chat(f"r{n}", f"{n}+1=<<{n}+1={n + 1}>>{n + 1}") for n in range(40)]
    found, drops = build_rows(rows, planted_share=0.25)
    assert sum(row.meta["planted"] for row in found) == 10
    assert drops.rows == []
    assert build_rows(rows, planted_share=0.25)[0] == found
    assert build_rows(rows, 1, planted_share=0.25)[0] != found
    found, drops = build_rows([chat("a", "<<1+1=2>> two")], planted_share=1.0)
    assert (found, drops.counts) == ([], {"no place for an error": 1})


@pytest.mark.skipif(
    not (DATA / "gsm8k").is_dir(), reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder of gsm8k"
)
def test_every_mark_of_gsm8ks_people_is_right() -> None:
    rows = []
    for number, line in enumerate((DATA / "gsm8k" / "test.jsonl").open(encoding="utf-8")):
        problem = json.loads(line)
        asked, answer = Message(role="user", content=problem["question"]), problem["answer"]
        rows.append(Chat(id=f"{number}", messages=[asked, Message(role="assistant", content=answer)]))
    found, drops = build_rows(rows)
    assert len(found) + len(drops.rows) == 1319
    assert set(drops.counts) <= {"no mark"}
    assert all(all(row.labels) for row in found)
    assert all("<<" not in step and "####" not in step for row in found for step in row.steps)
    joined = ["\n".join(row.steps) for row in found]
    texts = {row.id: remove_calculator_marks(row.messages[-1].content).split("\n####")[0] for row in rows}
    expected = ["\n".join(line.strip() for line in texts[row.id].split("\n") if line.strip()) for row in found]
    assert joined == expected  # no word is lost
    planted, _ = build_rows(rows, planted_share=0.5)
    wrong = [row for row in planted if not all(row.labels)]
    assert abs(len(wrong) - len(found) / 2) < 0.05 * len(found)
    assert [to_json_line(row) for row in build_rows(rows, planted_share=0.5)[0]] == [
        to_json_line(row) for row in planted
    ]
