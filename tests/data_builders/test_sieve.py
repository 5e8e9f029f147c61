"""The sieve, rule by rule, and the drops it counts."""

from collections.abc import Sequence
from typing import Any

import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.data_builders.near_duplicates import NearDuplicates
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, sieve
from qwen_align.data_builders.sieve_checks import compute_script_share


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, **fields: Any) -> Message:
    return Message(role="assistant", content=content, **fields)


def problem(row_id: str, question: str = "1+1?", gold: Any = "2", **fields: Any) -> Problem:
    return Problem(id=row_id, messages=[user(question)], gold=gold, reward="math_answer", **fields)


def trace(row_id: str, thinking: str = "1+1=2", answer: str = "\\boxed{2}", **fields: Any) -> Trace:
    return Trace(
        id=row_id,
        messages=[user("1+1?")],
        thinking=thinking,
        answer=answer,
        reward="math_answer",
        **{"gold": "2"} | fields,
    )


def pair(row_id: str, chosen: str = "2", rejected: str = "3") -> Pair:
    return Pair(id=row_id, messages=[user("1+1?")], chosen=assistant(chosen), rejected=assistant(rejected))


def labelled(row_id: str, completion: str = "2", label: bool = True) -> Labelled:
    return Labelled(id=row_id, messages=[user("1+1?")], completion=assistant(completion), label=label)


def steps(row_id: str, *texts: str, labels: Sequence[bool | float] | None = None) -> Steps:
    return Steps(id=row_id, messages=[user("1+1?")], steps=list(texts), labels=list(labels or [True] * len(texts)))


def chat(row_id: str, *contents: str, **fields: Any) -> Chat:
    return Chat(
        id=row_id,
        messages=[(user if index % 2 == 0 else assistant)(content) for index, content in enumerate(contents)],
        **fields,
    )


def sieve_rows(rows: Sequence[Row], **settings: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Ids of the kept rows; id and reason of the dropped ones."""
    drops = Drops()
    kept = [row.id for row in sieve(rows, Sieve(**settings), drops)]
    return kept, [(drop.id, drop.reason) for drop in drops.rows]


@pytest.mark.parametrize(
    ("first", "second", "is_duplicate"),
    [
        (problem("a"), problem("b"), True),
        (problem("a", "1 + 1?"), problem("b", " 1  +\n1?"), True),
        (problem("a", "1 + 1?"), problem("b", "1+1?"), False),
        (problem("a", "What is N?"), problem("b", "What is n?"), False),
        (problem("a", gold="2"), problem("b", gold="2.0"), True),
        (problem("a"), problem("b", mode="no_think"), False),
        (problem("a"), problem("b", flag="/think"), False),
        (problem("a"), trace("b"), False),
        (trace("a"), trace("b"), True),
        (trace("a"), trace("b", thinking="two"), False),
        (trace("a"), trace("b", answer="So \\boxed{2}"), False),
        (chat("a", "1+1?", "2"), chat("b", "1+1?", "2"), True),
        (chat("a", "1+1?", "2"), chat("b", "1+1?", "two"), False),
        (chat("a", "1+1?", "2"), chat("b", "1+1?2", "2"), False),
        (pair("a"), pair("b"), True),
        (pair("a"), pair("b", rejected="4"), False),
        (pair("a", "2", "3"), pair("b", "3", "2"), False),
        (labelled("a"), labelled("b"), True),
        (labelled("a"), labelled("b", "3"), False),
        (labelled("a"), labelled("b", label=False), False),
        (steps("a", "1+1", "=2"), steps("b", "1+1", "=2"), True),
        (steps("a", "1+1", "=2"), steps("b", "1+1", "=3"), False),
        (steps("a", "1+1", "=2"), steps("b", "1+1", "=2", labels=[True, False]), False),
        (Text(id="a", text="x y"), Text(id="b", text="x\ny"), True),
        (Text(id="a", text="x y"), Text(id="b", text="x y z"), False),
    ],
)
def test_duplicates(first: Row, second: Row, is_duplicate: bool) -> None:
    assert sieve_rows([first, second]) == ((["a"], [("b", "duplicate")]) if is_duplicate else (["a", "b"], []))
    assert sieve_rows([first, second], is_unique=False) == (["a", "b"], [])


def test_the_roles_and_the_tool_calls_of_turns_count() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    rows = [
        Chat(id="a", messages=[user("x"), assistant("")]),
        Chat(id="b", messages=[user("x"), assistant("", tool_calls=call)]),
        Chat(id="c", messages=[Message(role="system", content="x"), assistant("")]),
    ]
    assert sieve_rows(rows, thinking_is_clean=False, turns_are_in_order=False) == (["a", "b", "c"], [])


def test_the_tools_of_a_chat_count() -> None:
    question = "Which of the tools that you were given would you take for this, and what would you call it with?"
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("add", "multiply")]
    rows = [
        chat("a", question, "None.", tools=tools[0]),
        chat("b", question, "None.", tools=tools[1]),
        chat("c", question, "None."),
        chat("d", question, " None.", tools=tools[0]),
    ]
    assert sieve_rows(rows) == (["a", "b", "c"], [("d", "duplicate")])
    near = sieve_rows(rows, is_unique=False, near_duplicates=NearDuplicates())
    assert near == (["a", "b", "c"], [("d", "near duplicate")])


def test_the_tool_calls_of_a_pair_count() -> None:
    sides = [assistant("", tool_calls=[{"name": name}]) for name in ("add", "multiply", "divide")]
    rows = [
        Pair(id="a", messages=[user("x")], chosen=sides[0], rejected=sides[1]),
        Pair(id="b", messages=[user("x")], chosen=sides[0], rejected=sides[2]),
        Pair(id="c", messages=[user("x")], chosen=sides[0], rejected=sides[1]),
    ]
    assert sieve_rows(rows) == (["a", "b"], [("c", "duplicate")])


def test_equal_completions_of_a_model_are_no_duplicates() -> None:
    rows = [
        Completion(prompt_id="p", sample=sample, prompt=[user("1+1?")], text="2", finish_reason="stop", n_tokens=1)
        for sample in range(2)
    ]
    assert sieve_rows(rows) == (["p#0", "p#1"], [])


def test_a_dropped_row_is_no_earlier_one() -> None:
    rows = [problem("a", gold=None), problem("b"), problem("c")]
    assert sieve_rows(rows) == (["b"], [("a", "unusable gold"), ("c", "duplicate")])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (problem("a", gold=None), "unusable gold"),
        (problem("a", gold=" "), "unusable gold"),
        (problem("a", gold=["2"]), "unusable gold"),
        (problem("a", gold="2}"), "gold fails its own reward"),
        (problem("a", gold="\\frac{1}{2"), "gold fails its own reward"),
        (problem("a", gold=2), None),
        (problem("a", gold="x+1"), None),
        (trace("a", gold="{"), "gold fails its own reward"),
        (trace("a", gold=None), None),
        (chat("a", "x", "y"), None),
        (Problem(id="a", messages=[user("x")], reward="constant"), None),
        (Problem(id="a", messages=[user("x")], reward="python"), None),
        (Problem(id="a", messages=[user("x")], gold="{", reward="python"), None),
    ],
)
def test_golds(row: Row, reason: str | None) -> None:
    assert sieve_rows([row]) == ((["a"], []) if reason is None else ([], [("a", reason)]))
    assert sieve_rows([row], gold_is_usable=False) == (["a"], [])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("maths", r"row 'a': reward: 'maths' is no reward that rows can name\. .*set sieve\.gold_is_usable: false"),
    ],
)
def test_a_reward_that_nobody_knows_here_is_an_error(reward: str, message: str) -> None:
    row = Problem(id="a", messages=[user("x")], gold="2", reward=reward)
    with pytest.raises(DataError, match=message):
        sieve_rows([row])
    assert sieve_rows([row], gold_is_usable=False) == (["a"], [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Text(id="a", text=" \n"), "blank text"),
        (problem("a", " "), "blank user turn"),
        (trace("a").model_copy(update={"messages": [user("1+1?"), assistant("2"), user("\t")]}), "blank user turn"),
        (chat("a", "", "2"), "blank user turn"),
        (chat("a", "1+1?", "2", " ", "3"), "blank user turn"),
        (pair("a", "2", "3").model_copy(update={"messages": [user("")]}), "blank user turn"),
        (labelled("a").model_copy(update={"messages": [user("")]}), "blank user turn"),
        (steps("a", "2").model_copy(update={"messages": [user("")]}), "blank user turn"),
        (pair("a", "2", "2"), "chosen equals rejected"),
        (pair("a", "2", " 2\n"), "chosen equals rejected"),
        (pair("a", "2", "2").model_copy(update={"rejected": assistant("2", thinking="")}), "chosen equals rejected"),
        (pair("a", "2", "2").model_copy(update={"rejected": assistant("2", thinking="hm")}), None),
        (pair("a", "", "").model_copy(update={"rejected": assistant("", tool_calls=[{"name": "f"}])}), None),
        (Chat(id="a", messages=[Message(role="system", content=""), user("1+1?"), assistant("2")]), None),
    ],
)
def test_rows_that_say_nothing_are_dropped_whatever_the_settings(row: Row, reason: str | None) -> None:
    off = {"thinking_is_clean": False, "gold_is_usable": False, "turns_are_in_order": False, "is_unique": False}
    assert sieve_rows([row], **off) == ((["a"], []) if reason is None else ([], [("a", reason)]))


def test_where_nobody_looks_at_golds_a_blank_one_is_kept() -> None:
    assert sieve_rows([problem("a", gold="")]) == ([], [("a", "unusable gold")])
    assert sieve_rows([problem("a", gold="")], gold_is_usable=False) == (["a"], [])


TAGS = "thinking tags in the text"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (trace("a", thinking="<think>\n1+1=2"), TAGS),
        (trace("a", answer="</think>2"), TAGS),
        (trace("a", thinking=" \n"), "blank thinking"),
        (trace("a", answer=" "), "blank answer"),
        (chat("a", "1+1?", "<think>\n\n</think>\n\n2"), TAGS),
        (chat("a", "What does <think> do?", "It opens a block."), None),
        (chat("a", "1+1?", ""), "blank answer"),
        (Chat(id="a", messages=[user("x"), assistant("y", thinking="</think>")]), TAGS),
        (Chat(id="a", messages=[user("x"), assistant("y", thinking="z")]), None),
        (Chat(id="a", messages=[user("x"), assistant("", tool_calls=[{"name": "f"}])]), None),
        (pair("a", chosen="</think>"), TAGS),
        (pair("a", rejected="<think>"), TAGS),
        (pair("a", rejected=" "), "blank answer"),
        (labelled("a", "</think>2"), TAGS),
        (labelled("a", " "), "blank answer"),
        (steps("a", "1+1", "</think>2"), TAGS),
        (steps("a", "", " "), "blank answer"),
        (Text(id="a", text="<think>"), None),
        (problem("a", "What does </think> do?"), None),
    ],
)
def test_thinking(row: Row, reason: str | None) -> None:
    assert sieve_rows([row]) == ((["a"], []) if reason is None else ([], [("a", reason)]))
    assert sieve_rows([row], thinking_is_clean=False, thinking_fits_mode=False) == (["a"], [])


def talk(*turns: tuple[str, str | None], **more: Any) -> Chat:
    """A chat of user turns and answers 'a' with this thinking, which is named `row`."""
    messages = [turn for asked, thought in turns for turn in (user(asked), assistant("a", thinking=thought))]
    return Chat(id="a", messages=messages, **more)


SYSTEM = Message(role="system", content="Be brief. /no_think")
CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
NO_THINK, THINK = "thinking under /no_think", "no thinking under /think"


@pytest.mark.parametrize(
    ("row", "reason", "turn"),
    [
        (talk(("q", "r")), None, 0),
        (talk(("q", "")), None, 0),
        (talk(("q", None)), None, 0),
        (talk(("q /think", "r")), None, 0),
        (talk(("q /no_think", "")), None, 0),
        (talk(("q /no_think", None)), None, 0),
        (talk(("q /no_think", "r")), NO_THINK, 2),
        (talk(("q /no_think", " ")), None, 0),
        (talk(("q /think", None)), THINK, 2),
        (talk(("q /think", "")), THINK, 2),
        (talk(("q /think /no_think", "r")), NO_THINK, 2),  # the last one wins
        (talk(("q /no_think, or /think?", "r")), None, 0),
        (talk(("问题/no_think", "r")), NO_THINK, 2),
        (talk(("问题。/no_think", "r")), NO_THINK, 2),
        (talk(("q /no_think.", "r")), NO_THINK, 2),
        (talk(("see a/no_think, ./no_think, /no_think/b, /no_thinking and `/no_think`", "r")), None, 0),
        (Chat(id="a", messages=[SYSTEM, user("q"), assistant("a", thinking="r")]), NO_THINK, 3),
        (Chat(id="a", messages=[SYSTEM, user("q /think"), assistant("a", thinking="r")]), None, 0),
        # conversations: the last flag before an answer holds until the next one
        (talk(("q /no_think", ""), ("q", "r")), NO_THINK, 4),
        (talk(("q /no_think", "r"), ("q /think", "r")), NO_THINK, 2),
        (talk(("q", "r"), ("q /no_think", ""), ("q /think", "r"), ("q", "r")), None, 0),
        (talk(("q", None), ("q", "r")), None, 0),  # its thinking was taken out: seen, not trained
        (talk(("q /think", None), ("q /no_think", None)), None, 0),
        (talk(("q /think", None), ("q", None)), THINK, 4),
        # a mode of the row stands above its flags
        (talk(("q", "r"), mode="no_think"), "thinking in mode no_think", 2),
        (talk(("q", None), mode="think"), "no thinking in mode think", 2),
        (talk(("q /think", None), mode="no_think"), None, 0),  # the hard switch wins
        (talk(("q /no_think", "r"), mode="think"), NO_THINK, 2),
        (talk(("q", None), flag="/think"), THINK, 2),
        (talk(("q /think", None), mode="no_think", flag="/no_think"), "answers under another flag than the row's", 2),
        (trace("a"), None, 0),
        (trace("a").model_copy(update={"messages": [user("1+1? /no_think")]}), NO_THINK, 2),
        (pair("a").model_copy(update={"messages": [user("q /think")]}), THINK, 2),
        (pair("a", chosen="<think>\nr").model_copy(update={"messages": [user("q /no_think")]}), NO_THINK, 2),
        (labelled("a", "2").model_copy(update={"messages": [user("q /think")]}), None, 0),
    ],
)
def test_answers_that_contradict_their_mode_or_flag_are_dropped(row: Row, reason: str | None, turn: int) -> None:
    drops = Drops()
    kept = list(sieve([row], Sieve(thinking_is_clean=False), drops))
    assert [tuple(drop) for drop in drops.rows] == ([(reason, "a", f"turn {turn}")] if reason else [])
    assert len(kept) == (0 if reason else 1)
    assert list(sieve([row], Sieve(thinking_is_clean=False, thinking_fits_mode=False), Drops())) == [row]


def test_an_answer_between_calls_of_tools_without_the_thinking_beside_it_is_no_contradiction() -> None:
    call, result = assistant("", thinking="r", tool_calls=CALL), Message(role="tool", content="1")
    for asked in ("q", "q /think"):
        rows: list[Row] = [Chat(id="a", messages=[user(asked), call, result, assistant("a")])]
        assert sieve_rows(rows) == (["a"], [])


@pytest.mark.parametrize(
    ("text", "en", "zh"),
    [
        ("How many apples?", 1.0, 0.0),
        ("苹果有几个？", 0.0, 1.0),
        ("苹果 ab", 0.5, 0.5),
        ("求 $x^2 + \\sin y$ 的值", 0.0, 1.0),
        ("求 \\(abc\\) 和 \\[def\\] 的 `code` 值 https://a.bc/d", 0.0, 1.0),
        ("Где?", 0.0, 0.0),
        ("1 + 1 = 2", None, None),
    ],
)
def test_script_share(text: str, en: float | None, zh: float | None) -> None:
    assert compute_script_share(text, "en") == en
    assert compute_script_share(text, "zh") == zh


def test_language() -> None:
    rows = [chat("en", "How many?", "Two."), chat("zh", "几个？", "两个。"), chat("none", "1+1?", "2")]
    assert sieve_rows(rows) == (["en", "zh", "none"], [])
    assert sieve_rows(rows, language="en") == (["en", "none"], [("zh", "not en")])
    assert sieve_rows(rows, language="zh") == (["zh", "none"], [("en", "not zh")])


def test_drops_are_counted_by_reason_and_say_what_they_saw() -> None:
    drops = Drops()
    rows = [problem("a"), problem("b"), problem("c"), problem("d", "2+2?", gold="}" * 500)]
    assert [row.id for row in sieve(rows, Sieve(), drops)] == ["a"]
    assert drops.counts == {"duplicate": 2, "gold fails its own reward": 1}
    assert drops.rows[0] == Drop("duplicate", "b", "of a")
    assert drops.rows[2].detail.startswith("empty box: '}}")
    assert len(drops.rows[2].detail) == 200


@pytest.mark.parametrize(
    ("settings", "kept", "reason"),
    [
        ({"min_characters": 5}, ["b" * 5, "c" * 9], "too short"),
        ({"max_characters": 5}, ["a" * 4, "b" * 5], "too long"),
        ({"min_characters": 5, "max_characters": 9}, ["b" * 5, "c" * 9], "too short"),
    ],
)
def test_length_in_characters(settings: dict[str, int], kept: list[str], reason: str) -> None:
    drops = Drops()
    rows = [Text(id=text, text=text) for text in ("a" * 4, "b" * 5, "c" * 9)]
    assert [row.id for row in sieve(rows, Sieve(**settings), drops)] == kept  # type: ignore[arg-type]
    assert drops.rows[0].reason == reason
    assert drops.rows[0].detail in ("4 characters", "9 characters")


@pytest.mark.parametrize("gold", ["proof", "notfound", " Not found"])
def test_a_gold_that_stands_for_none_is_none(gold: str) -> None:
    turns = [Message(role="user", content="Show that 1 < 2.")]
    drops = Drops()
    assert list(sieve([Problem(id="1", messages=turns, gold=gold, reward="math_answer")], Sieve(), drops)) == []
    assert drops.counts == {"no gold": 1}
