"""Talking to a model: what is thought and what is said, turn by turn, and the commands between."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from qwen_align.align.commands.chat import COMMANDS, Conversation, TextPiece, run_chat, split_thinking
from qwen_align.align.errors import RecipeError
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Message
from qwen_align.align.settings.sampling import Sampling, SamplingSettings


def joined(texts: list[str]) -> tuple[str, str]:
    """All that is thought, and all that is said."""
    pieces = list(split_thinking(iter(texts)))
    assert all(piece.text for piece in pieces)
    return tuple("".join(p.text for p in pieces if p.is_thinking == which) for which in (True, False))  # type: ignore[return-value]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_tags_are_found_however_the_text_comes(sizes: list[int]) -> None:
    whole = "<think>\n1 < 2, so\n\n1 <thin> 3.\n</think>\n\nIt is 2 < 3.\nYes."
    texts, start = [], 0
    for size in sizes:
        texts.append(whole[start : start + size])
        start += size
    thought, said = joined([*texts, whole[start:]])
    assert thought == "1 < 2, so\n\n1 <thin> 3."
    assert said == "It is 2 < 3.\nYes."


@pytest.mark.parametrize(
    ("texts", "thought", "said"),
    [
        (["Hello", " there.\n"], "", "Hello there."),
        (["<think>\n", "never ends"], "never ends", ""),
        (["<think>\n\n</think>\n\n", "7"], "", "7"),
        (["a <", "b"], "", "a <b"),
        (["a <th"], "", "a <th"),
        ([], "", ""),
    ],
)
def test_odd_answers(texts: list[str], thought: str, said: str) -> None:
    assert joined(texts) == (thought, said)


def test_what_can_be_shown_is_shown_at_once() -> None:
    pieces = split_thinking(iter(["<think>", "a", " b", "</think>", "c"]))
    assert next(pieces) == TextPiece("a", True)
    assert next(pieces) == TextPiece(" b", True)


@pytest.fixture
def conversation(tiny_model: Path) -> Conversation:
    renderer = Renderer.load(tiny_model)
    engine = LocalEngine(AutoModelForCausalLM.from_pretrained(tiny_model), stop_ids=renderer.stop_ids)
    return Conversation(engine, renderer, SamplingSettings(max_tokens=12))


def test_a_stream_has_the_tokens_of_the_engine(conversation: Conversation) -> None:
    request = Request("a", [5, 6, 7], 1, Sampling(temperature=1.0, max_tokens=9), seed=3)
    (made,) = conversation.engine.generate([request])
    assert list(conversation.engine.stream_tokens(request)) == made.token_ids


def test_turns_are_remembered_with_their_thinking_apart(conversation: Conversation) -> None:
    said = list(conversation.stream_answer("1 + 1?", "no_think"))
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1].content == "".join(p.text for p in said if not p.is_thinking).strip()
    first = conversation.messages[1]
    list(conversation.stream_answer("And 2 + 2?", None))
    assert conversation.messages[1] == first
    assert len(conversation.messages) == 4
    conversation.restart()
    assert conversation.messages == []
    conversation.restart("Be short.")
    assert conversation.messages == [Message(role="system", content="Be short.")]
    conversation.restart()
    assert conversation.messages == [Message(role="system", content="Be short.")], "/clear keeps the system message"


def test_a_conversation_that_is_too_long_says_so(conversation: Conversation) -> None:
    with pytest.raises(RecipeError, match="longer than the model's context; /clear"):
        list(conversation.stream_answer("1 " * 400, None))
    assert conversation.messages == []


def test_commands(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []

    def say(self: Conversation, text: str, mode: object) -> Iterator[TextPiece]:
        modes.append((text, mode))
        yield TextPiece("thought", True)
        yield TextPiece("said", False)

    monkeypatch.setattr(Conversation, "stream_answer", say)
    lines = iter(
        [
            "one",
            "two /no_think",
            "three",
            "/think",
            "four",
            "five /no_think",
            "/default",
            "six",
            "/clear",
            "/what",
            "/quit",
        ]
    )
    shown: list[tuple[str, bool]] = []
    told: list[str] = []
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(lines)

    run_chat(conversation, ask, lambda text, dim: shown.append((text, dim)), told.append)
    assert modes == [
        ("one", None),
        ("two", "no_think"),
        ("three", None),
        ("four", "think"),
        ("five", "no_think"),
        ("six", None),
    ]
    assert asked[4] == "think > "
    assert ("thought", True) in shown
    assert "a new conversation" in told
    assert COMMANDS in told


def test_the_end_of_input_ends_it(conversation: Conversation) -> None:
    def ask(prompt: str) -> str:
        raise EOFError

    run_chat(conversation, ask, lambda text, dim: None, lambda text: None)


def test_a_broken_off_turn_is_forgotten(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: LocalEngine, request: Request) -> Iterator[int]:
        yield 7
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "stream_tokens", interrupted)
    told: list[str] = []
    lines = iter(["hello", "/quit"])
    run_chat(conversation, lambda prompt: next(lines), lambda text, dim: None, told.append)
    assert told == ["interrupted; this turn is no part of the conversation"]
    assert conversation.messages == []
