"""A data stage at a glance: counts, drops and lengths."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.commands.data_summary import BINS, count_tokens, draw_histogram, summarize_rows, to_trainable_row
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Problem, Row, Steps, Text

ASKED = [Message(role="user", content="1+1?")]
ANSWER = Message(role="assistant", content="2")
CHAT = Chat(id="c", messages=[*ASKED, ANSWER], mode="no_think")


@pytest.fixture
def renderer(tiny_model: Path) -> Renderer:
    return Renderer.load(tiny_model)


def test_counts_drops_and_lengths(renderer: Renderer) -> None:
    lines = list(summarize_rows([CHAT, CHAT, Problem(id="p", messages=ASKED, gold="2", reward="math_answer")],
                          {"duplicate": 3, "not en": 1}, renderer))  # fmt: skip
    assert lines[:2] == ["3 rows: 2 chat, 1 problem", "4 dropped: 3 duplicate, 1 not en"]
    assert list(summarize_rows([], {}, renderer)) == ["0 rows: none"]


def test_a_rows_length_is_that_of_what_is_trained(renderer: Renderer) -> None:
    whole = len(renderer.render_samples(CHAT)[0].ids)
    labelled = Labelled(id="l", messages=ASKED, completion=ANSWER, label=False, mode="no_think")
    longer = Message(role="assistant", content="2 and some more")
    pair = Pair(id="x", messages=ASKED, chosen=ANSWER, rejected=longer, mode="no_think")
    assert count_tokens(CHAT, renderer) == count_tokens(labelled, renderer) == whole
    assert to_trainable_row(labelled) == CHAT.model_copy(update={"id": "l"})
    assert count_tokens(pair, renderer) > whole
    assert count_tokens(Text(id="t", text="1 2 3"), renderer) == len(renderer.encode("1 2 3")) + 1
    steps = Steps(id="s", messages=ASKED, steps=["1+1=2", "so 2"], labels=[True, False])
    prompt: Row = Problem(id="p", messages=ASKED, gold="2", reward="math_answer")
    said = len(renderer.encode("1+1=2")) + len(renderer.encode("so 2"))
    assert count_tokens(steps, renderer) == count_tokens(prompt, renderer) + said


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_every_length_is_in_one_bar(lengths: list[int]) -> None:
    lines = list(draw_histogram(lengths))
    assert len(lines) <= BINS
    total, before = 0, -1
    for line in lines:
        found = re.fullmatch(r"\s*([\d,]+)-([\d,]+)\s+█* ([\d,]+)", line)
        assert found
        low, high, count = (int(number.replace(",", "")) for number in found.groups())
        assert before < low <= high
        assert count == sum(low <= length <= high for length in lengths)
        total, before = total + count, high
    assert total == len(lengths)
