"""Splits by question: the same question is in the same part whatever row, stage or generator it comes from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.data_builders.question_split import Split, Unused, normalize_question
from qwen_align.data_builders.sieve import Drops
from qwen_align.data_builders.step_prefixes_and_critiques import StepCritiques, StepPrefixes
from qwen_align.data_builders.thinking_flag_mixing import append_to_chat

SHARES = {"cold_start": 0.3, "rl": 0.5, "test": 0.2}


def user(content: str) -> Message:
    return Message(role="user", content=content)


def said(content: str) -> Message:
    return Message(role="assistant", content=content)


def every_kind(question: str, number: int) -> list[Row]:
    """The question as a row of every kind that asks one, with systems, flags and later turns of their own."""
    asked, system = [user(question)], Message(role="system", content=f"You are number {number}.")
    return [
        Problem(id=f"{number}", messages=asked, gold="2", reward="math_answer"),
        Problem(id=f"{number}f", messages=[system, user(f"{question} /no_think")], gold="2", reward="math_answer"),
        Trace(id=f"{number}t", messages=asked, thinking="hm", answer="2", gold="2", reward="math_answer"),
        Chat(id=f"{number}c", messages=[system, *asked, said("2"), user(f"And {number}?"), said("3")]),
        Pair(id=f"{number}p", messages=asked, chosen=said("2"), rejected=said("3")),
        Labelled(id=f"{number}l", messages=asked, completion=said("2"), label=True),
        Steps(id=f"{number}s", messages=asked, steps=["2"], labels=[True]),
        Completion(
            prompt_id=f"{number}",
            sample=0,
            prompt=asked,
            text="2",
            finish_reason="stop",
            n_tokens=1,
            gold="2",
            mode="think",
        ),
        Text(id=f"{number}x", text=f"  {question.upper()} "),
    ]


def part(rows: Sequence[Row], name: str, *, seed: int = 0, **changes: Any) -> tuple[list[Row], Drops]:
    drops = Drops()
    split = Split.model_validate({"from_data": "all", "part": name, "shares": SHARES} | changes)
    return list(split.build({"all": lambda: iter(rows)}, seed, drops)), drops


@given(
    st.lists(st.text(min_size=1, max_size=30).filter(str.isalnum), min_size=1, max_size=8, unique_by=str.lower),
    st.integers(),
)
def test_parts_share_no_question_whatever_the_row(questions: list[str], seed: int) -> None:
    rows = [row for number, question in enumerate(questions) for row in every_kind(question, number)]
    parts = {name: part(rows, name, seed=seed)[0] for name in SHARES}
    assert sorted(row.id for kept in parts.values() for row in kept) == sorted(row.id for row in rows)
    asked = [{normalize_question(row) for row in kept} for kept in parts.values()]
    assert sum(map(len, asked)) == len(set.union(*asked))


def test_the_reinforcement_queries_are_unused_in_the_cold_start() -> None:
    """As in Qwen3: two generators and files with common questions, split by stages of different seeds."""
    generators = [
        Arithmetic(rows="problem", n=300, steps=[1, 2]),
        Arithmetic(rows="trace", n=300, steps=[2, 1], seed=1),
    ]
    rows = [row for one in generators for row in one.generate(0)]
    rows += [row.model_copy(update={"id": f"again-{row.id}"}) for row in rows[:200]]
    cold_start, dropped = part(rows, "cold_start", seed=1)
    rl, _ = part(rows, "rl", seed=2, shares=dict(reversed(SHARES.items())))
    assert len(cold_start) > 150
    assert len(rl) > 300
    assert not {normalize_question(row) for row in cold_start} & {normalize_question(row) for row in rl}
    assert len(cold_start) + len(dropped.rows) == len(rows)
    assert set(dropped.counts) == {"in part 'rl'", "in part 'test'"}
    assert {row.id for row in rl if row.id.startswith("again-")}


def test_shares_come_out_as_said() -> None:
    rows = [Text(id=f"{n}", text=f"question {n}") for n in range(4000)]
    found = Counter({name: len(part(rows, name)[0]) for name in SHARES})
    assert {name: round(n / 4000, 1) for name, n in found.items()} == SHARES
    assert found.total() == 4000


def test_parts_are_the_same_on_every_machine() -> None:
    rows = [Text(id=f"{n}", text=f"question {n}") for n in range(12)]
    assert [row.id for row in part(rows, "cold_start")[0]] == ["2", "3", "10"]
    assert part(rows, "cold_start", salt="other")[0] != part(rows, "cold_start")[0]


def test_texts_around_a_question_can_be_left_out() -> None:
    suffix = "Put your final answer within \\boxed{}."
    row = Problem(id="a", messages=[user(f"1 + 1?\n{suffix}")], reward="math_answer")
    assert normalize_question(row, without=[suffix]) == normalize_question(Text(id="b", text="1+1?"))
    assert normalize_question(row) != normalize_question(Text(id="b", text="1+1?"))


def test_which_turn_is_the_question() -> None:
    row = Chat(id="a", messages=[user("An example"), said("a"), user("A question"), said("b")])
    assert [normalize_question(row, asked) for asked in ("first", "last", "all")] == [
        "an example",
        "a question",
        "an example\na question",
    ]


def make_rows_of(question: str, number: int) -> Iterator[Row]:
    """A trace, alone and after other turns, and what builders put its question into."""
    turns = [user("Hello"), said("Hello, what can I do?"), user(question)]
    for messages in ([user(question)], turns):
        trace = Trace(
            id=f"{number}", messages=messages, thinking="hm", answer="1.\n\n2.\n\n3.", gold="3", reward="math_answer"
        )
        sources = {"traces": lambda trace=trace: iter([trace])}
        prefixes = list(StepPrefixes(from_data=DataRef("traces")).build(sources, 0, Drops()))
        yield trace
        yield from prefixes
        yield from StepCritiques(from_data=DataRef("traces")).build(sources, 0, Drops())
        yield from (make_completions(row) for row in prefixes if isinstance(row, Problem))
        yield append_to_chat(trace, Chat(id="c", messages=[user("Another question"), said("a")]))


def make_completions(row: Problem) -> Completion:
    return Completion(
        prompt_id=row.id,
        sample=0,
        prompt=row.messages,
        text="2",
        finish_reason="stop",
        n_tokens=1,
        meta=row.meta,
    )


@pytest.mark.parametrize("asked", ["first", "last", "all"])
def test_what_is_made_of_a_question_is_in_its_part(asked: str) -> None:
    for number in range(20):
        rows = list(make_rows_of(f"What is {number} and {number}?", number))
        split = Split.model_validate({"from_data": "all", "part": "rl", "shares": SHARES, "asked": asked})
        half = len(rows) // 2
        for one_trace, *others in (rows[:half], rows[half:]):
            assert len(others) == 6
            assert {split.find_part(row) for row in others} == {split.find_part(one_trace)}


def test_a_question_inside_a_prefix_or_after_a_chat_counts_as_used() -> None:
    question = Problem(id="q", messages=[user("One and one?")], reward="math_answer")
    history = Problem(id="h", messages=[user("another QUESTION")], reward="math_answer")
    other = Problem(id="o", messages=[user("Two and two?")], reward="math_answer")
    unused = Unused.model_validate({"from_data": "pool", "unused_in": ["used"]})

    def left(pool: list[Row], used: Row) -> set[str]:
        return {row.id for row in unused.build({"pool": lambda: iter(pool), "used": lambda: iter([used])}, 0, Drops())}

    for row in make_rows_of("One and one?", 1):
        has_history = not isinstance(row, Text) and "history" in row.meta
        assert left([question, history, other], row) == ({"o"} if has_history else {"o", "h"})
        assert left([row], question) == set()
        assert left([row], history) == (set() if has_history else {row.id})
        assert left([row], other) == {row.id}


def test_a_row_without_a_question_is_counted() -> None:
    rows = [Chat(id="a", messages=[user(" "), said("hi")])]
    kept, drops = part(rows, "rl")
    assert (kept, drops.counts) == ([], {"no question": 1})


def test_unused_leaves_out_what_other_stages_ask() -> None:
    pool = [row for n, question in enumerate(("One?", "Two?", "Three?")) for row in every_kind(question, n)[:3]]
    used = [Chat(id="u", messages=[user("hello"), said("b"), user("TWO ? /think"), said("b")])]
    drops = Drops()
    unused = Unused.model_validate({"from_data": "pool", "unused_in": ["used"]})
    kept = list(unused.build({"pool": lambda: iter(pool), "used": lambda: iter(used)}, 0, drops))
    assert [row.id for row in kept] == ["0", "0f", "0t", "2", "2f", "2t"]
    assert next(tuple(drop) for drop in drops.rows) == ("question used", "1", "in 'u' of stage 'used'")
    assert drops.counts == {"question used": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "tset"}, "'tset' is none of the shares. Did you mean 'test'?"),
        ({"shares": {"rl": 0.5, "test": 0.4}}, "0.9 together, not 1"),
        ({"shares": {"rl": 1.0, "test": 0.0}}, "a share is above 0 and below 1"),
        ({"shares": {"rl": 1.0}}, "at least 2 items"),
    ],
)
def test_wrong_shares_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("?", r"\?")):
        part([], **{"name": "rl"} | changes if "part" not in changes else {"name": changes["part"]})


def test_shares_of_decimals_add_up() -> None:
    assert part([], "a", shares={"a": 0.1, "b": 0.2, "c": 0.7})[0] == []
