"""Format and `obeys`, by table for every mode; every malformed turn fails in all of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message, Mode
from qwen_align.reward.format import Format, follows_mode, split_answer_tags
from qwen_align.reward.thinking import Turn, cut_at_turn_end, split_turn, strip_thinking
from tests.clock import cpu_limit

EMPTY = "<think>\n\n</think>\n\n"

# text, reason in thinking mode, reason in no_think mode
WELL_FORMED = [
    ("<think>\n1+1=2\n</think>\n\n2", "well formed", "thinking not asked for"),
    ("<think>\na\n\nb\n</think>\n\n2\n\n3", "well formed", "thinking not asked for"),
    (EMPTY + "2", "no thinking", "well formed"),
    ("2", "no thinking", "well formed"),
]
MALFORMED = [
    ("", "no answer"),
    (" \n", "no answer"),
    (EMPTY, "no answer"),
    ("<think>\na\n</think>\n\n", "no answer"),
    ("<think>\na\n</think>\n\n \n", "no answer"),
    ("<think>\na", "unfinished thinking"),
    ("<think>", "unfinished thinking"),
    ("2 <think>", "unfinished thinking"),
    ("<think>\n \n</think>\n\n2", "empty thinking"),
    ("<think>\n\n\n</think>\n\n2", "empty thinking"),
    ("a\n</think>\n\n2", "malformed tags"),
    ("</think>2", "malformed tags"),
    ("<think>a</think>2", "malformed tags"),
    ("<think>\na\n</think>\n2", "malformed tags"),
    ("<think>\na</think>\n\n2", "malformed tags"),
    (" <think>\na\n</think>\n\n2", "malformed tags"),
    ("So: <think>\na\n</think>\n\n2", "malformed tags"),
    ("<think>\n<think>\na\n</think>\n\n2", "malformed tags"),
    ("<think>\na\n</think>\n\n2\n</think>\n\n3", "malformed tags"),
    ("<think>\na\n</think>\n\n2 </think>", "malformed tags"),
    ("<think>\na\n</think>\n\n<think>\nb\n</think>\n\n2", "malformed tags"),
    (EMPTY + EMPTY + "2", "malformed tags"),
    (EMPTY + "a\n</think>\n\n2", "malformed tags"),
]


def completion(text: str, mode: Mode | None) -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    return Completion(prompt_id="p", sample=0, prompt=prompt, text=text, mode=mode, finish_reason="stop", n_tokens=1)


@pytest.mark.parametrize(("text", "think", "no_think"), WELL_FORMED)
def test_a_well_formed_turn_fits_one_mode(text: str, think: str, no_think: str) -> None:
    for mode, reason in (("think", think), ("no_think", no_think), (None, "well formed")):
        verdict = Format().judge(completion(text, mode))
        assert (verdict.reason, verdict.value) == (reason, float(reason == "well formed"))
    assert Format().judge(text).value == 1.0
    assert follows_mode(text, "think") == (think == "well formed")
    assert follows_mode(text, "no_think") == (no_think == "well formed")


@pytest.mark.parametrize(("text", "reason"), MALFORMED)
def test_a_malformed_turn_fits_no_mode(text: str, reason: str) -> None:
    for mode in ("think", "no_think", None):
        verdict = Format().judge(completion(text, mode))
        assert (verdict.value, verdict.reason) == (0.0, reason)
    assert Format().judge(text).reason == reason
    assert not follows_mode(text, "think")
    assert not follows_mode(text, "no_think")


def test_parts_of_a_turn() -> None:
    assert split_turn("<think>\n a \n</think>\n\nb\n") == Turn(" a ", "b\n")
    assert split_turn(EMPTY + "b") == Turn(None, "b")
    assert split_turn("b") == Turn(None, "b")


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("a<think>", None),
        ("</think><think>", None),
        ("<think>a</think>f('</think>')", "f('</think>')"),
        ('<think>a</think>{"text": "<think> b"}', '{"text": "<think> b"}'),
        ("<think>It isn't</think>it's 2", "it's 2"),
        ("<think>`</think>` a</think>b", "b"),
        ("<think>a</think>\n```python\n# <think>\n```", "\n```python\n# <think>\n```"),
        ("<think>a</think>\n~~~py\nr'<think>.*</think>'\n~~~\nb", "\n~~~py\nr'<think>.*</think>'\n~~~\nb"),
        ("```python\n# a\n<think>\nf()```", "```python\n# a\n<think>\nf()```"),
        ("<think>\n```python\n1\n```", None),
        ("```python\n1\n```\n<think>\n```python\n2\n```", None),
        ("<think>\n```python\n1\n</think>\n\n```python\n2\n```", "\n\n```python\n2\n```"),
        ("a\n```\n<think>\n```", None),
    ],
)
def test_what_follows_the_thinking(text: str, after: str | None) -> None:
    assert strip_thinking(text) == after


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("a<|im_end|>b", "a"),
        ("a</s>b", "a"),
        ("<s>a</s>b", "<s>a</s>b"),
        ("a<end_of_turn>", "a"),
        ("a '<|im_end|>' b<|eot_id|>c", "a '<|im_end|>' b"),
        ("1 < 2 <|x|>", "1 < 2 <|x|>"),
    ],
)
def test_nothing_after_the_end_of_the_turn_is_kept(text: str, turn: str) -> None:
    assert cut_at_turn_end(text) == turn


def test_many_quoted_tags_are_looked_at_in_linear_time() -> None:
    for mark in ("'<think>' ", "'<|im_end|>' ", "'</think>"):
        with cpu_limit(1.0, mark):
            strip_thinking(cut_at_turn_end(mark * 20_000))


# text, reason in thinking mode, in no_think mode and without a mode
ANSWER_TAGS = [
    ("<think>\na\n</think>\n<answer>\n2\n</answer>", "well formed", "thinking not asked for", "well formed"),
    ("<think>a</think><answer>2</answer>", "well formed", "thinking not asked for", "well formed"),
    ("\n<think>a</think>\n\n<answer>2</answer>\n", "well formed", "thinking not asked for", "well formed"),
    ("<answer>2</answer>", "no thinking", "well formed", "well formed"),
    (EMPTY + "<answer>2</answer>", "no thinking", "well formed", "well formed"),
    *(
        (text, reason, reason, reason)
        for text, reason in [
            ("", "no answer"),
            ("2", "no answer"),
            ("<think>a</think><answer> </answer>", "no answer"),
            ("<think>a</think>2", "malformed tags"),
            ("<think>a", "unfinished thinking"),
            ("<think>a</think><answer>2", "malformed tags"),
            ("<think>a</think><answer>2</answer> So 2.", "text outside the tags"),
            ("Sure: <think>a</think><answer>2</answer>", "text outside the tags"),
            ("<think>a</think> so <answer>2</answer>", "text outside the tags"),
            ("<think>a</think><answer>2</answer><answer>3</answer>", "malformed tags"),
            ("<think><think>a</think></think><answer>2</answer>", "malformed tags"),
            ("<answer>2</answer><think>a</think>", "malformed tags"),
            ("<think>a<answer>2</answer></think>", "malformed tags"),
            ("a</think><answer>2</answer>", "malformed tags"),
            ("<think>a</think></answer>2<answer>", "malformed tags"),
        ]
    ),
]


@pytest.mark.parametrize(("text", "think", "no_think", "either"), ANSWER_TAGS)
def test_answer_tags(text: str, think: str, no_think: str, either: str) -> None:
    reward = Format(layout="answer_tags")
    modes: tuple[Mode | None, ...] = ("think", "no_think", None)
    for mode, reason in zip(modes, (think, no_think, either), strict=True):
        verdict = reward.judge(completion(text, mode))
        assert (verdict.reason, verdict.value) == (reason, float(reason == "well formed"))
    assert reward.judge(text).reason == either


tagged = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", "a"]), max_size=8).map("".join)


@given(tagged)
def test_answer_tags_are_met_in_one_mode_and_by_their_parts_alone(text: str) -> None:
    reward = Format(layout="answer_tags")
    values = [reward.judge(completion(text, mode)).value or 0.0 for mode in ("think", "no_think")]
    assert sum(values) == reward.judge(text).value
    turn = split_answer_tags(text)
    if isinstance(turn, Turn):
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert text.split("<answer>")[1].split("</answer>")[0] == turn.answer


pieces = st.lists(st.sampled_from(["<think>", "</think>", "\n", "\n\n", " ", "a", EMPTY]), max_size=9).map("".join)


@given(pieces)
def test_no_turn_obeys_both_modes_and_mode_none_is_either(text: str) -> None:
    assert not (follows_mode(text, "think") and follows_mode(text, "no_think"))
    assert Format().judge(text).value == float(follows_mode(text, "think") or follows_mode(text, "no_think"))


@given(pieces)
def test_a_well_formed_turn_is_its_parts_put_together(text: str) -> None:
    turn = split_turn(text)
    if isinstance(turn, Turn):
        block = "" if turn.thinking is None else f"<think>\n{turn.thinking}\n</think>\n\n"
        assert text in (block + turn.answer, EMPTY + turn.answer)
        assert strip_thinking(text) in (turn.answer, "\n\n" + turn.answer)


@pytest.mark.parametrize("gold", [None, "5", {}])
def test_every_gold_will_do(gold: Any) -> None:
    assert Format().judge_gold(gold).value == 1.0
    assert Format().judge("5", gold).value == 1.0
