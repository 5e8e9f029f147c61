"""Which orders of turns a row may have, and what is said of others."""

from typing import Any

import pytest

from qwen_align.align.rows import Chat, Message, Pair, Problem, Row, Text, Trace
from qwen_align.data_builders import Drops, Sieve, sieve
from qwen_align.data_builders.turn_order import find_turn_disorder

CALL = [{"type": "function", "function": {"name": "add", "arguments": {}}}]


def turns(roles: str) -> list[Message]:
    """Turns by their first letters; c is an assistant that calls a tool."""
    names: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "c": "assistant"}
    return [Message(role=names[one], content="x", tool_calls=CALL if one == "c" else None) for one in roles]


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "uauau", "ucta", "ucttauct", "uctcta"])
def test_conversations_in_order(roles: str) -> None:
    assert find_turn_disorder(Chat(id="a", messages=turns(roles))) is None


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("", "no turn"),
        ("au", "turn 1: assistant opens the conversation"),
        ("ta", "turn 1: tool opens the conversation"),
        ("sa", "turn 2: assistant after the system turn"),
        ("usa", "turn 2: a system turn that is not the first"),
        ("ssua", "turn 2: a system turn that is not the first"),
        ("uua", "turn 2: user after user"),
        ("uaa", "turn 3: assistant after assistant"),
        ("uata", "turn 3: tool after assistant"),
        ("uca", "turn 3: assistant after calls of tools, before their results"),
        ("ucu", "turn 3: user after calls of tools, before their results"),
        ("uctu", "turn 4: user after results of tools, before the assistant says anything"),
        ("u", "no assistant turn"),
    ],
)
def test_conversations_out_of_order(roles: str, message: str) -> None:
    assert find_turn_disorder(Chat(id="a", messages=turns(roles))) == message


@pytest.mark.parametrize("roles", ["u", "su", "uau", "uct"])
def test_what_is_asked_ends_with_a_user_or_a_tool(roles: str) -> None:
    for row in asking(roles):
        assert find_turn_disorder(row) is None
    for row in asking(roles + "a"):
        assert find_turn_disorder(row) == "an answer after an assistant turn"


def asking(roles: str) -> list[Row]:
    message = Message(role="assistant", content="y")
    return [
        Problem(id="a", messages=turns(roles), gold="1", reward="math_answer"),
        Trace(id="a", messages=turns(roles), thinking="x", answer="y", reward="math_answer"),
        Pair(id="a", messages=turns(roles), chosen=message, rejected=message),
    ]


def test_a_raw_text_has_no_turns() -> None:
    assert find_turn_disorder(Text(id="a", text="b")) is None


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|fim_prefix|>", "<|vision_start|>"])
def test_control_tokens_in_a_text_are_a_drop_wherever_they_stand(token: str) -> None:
    chat = Chat(id="asked", messages=[Message(role="user", content=f"What is {token}?"), *turns("a")])
    trace = Trace(id="thought", messages=turns("u"), thinking=f"x{token}", answer="y", reward="math_answer")
    text = Text(id="text", text=f"one{token}two")
    fine = Text(id="fine", text="<|im_end >, <im_end>, |im_end| and <|x|>")
    drops = Drops()
    assert [row.id for row in sieve([chat, trace, text, fine], Sieve(), drops)] == ["fine"]
    assert [tuple(drop) for drop in drops.rows] == [
        ("control token in the text", name, token) for name in ("asked", "thought", "text")
    ]
    assert len(list(sieve([chat, trace, text], Sieve(has_no_control_tokens=False), Drops()))) == 3


def test_the_sieve_counts_turns_out_of_order() -> None:
    drops = Drops()
    rows = [Chat(id="a", messages=turns("uua")), Chat(id="b", messages=turns("ua"))]
    assert [row.id for row in sieve(rows, Sieve(), drops)] == ["b"]
    assert [tuple(drop) for drop in drops.rows] == [("turns out of order", "a", "turn 2: user after user")]
    assert len(list(sieve(rows, Sieve(turns_are_in_order=False), Drops()))) == 2
