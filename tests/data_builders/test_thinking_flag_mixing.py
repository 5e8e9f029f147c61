"""Flags in several turns and in system messages: what is asked for last is what the answer obeys."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwen_align
from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import FLAG_IN_TEXT, Chat, Flag, Message, Mode, Row, Trace, find_last_flag
from qwen_align.data_builders.seeded_draws import make_random
from qwen_align.data_builders.thinking_flag_mixing import MixedFlags, add_earlier_flags
from qwen_align.data_builders.thinking_flags import has_thinking_flag, remove_flags

ROOT = Path(qwen_align.__path__[0])
SWITCHES: tuple[tuple[Mode, Flag | None], ...] = (
    ("think", "/think"),
    ("think", None),
    ("no_think", "/no_think"),
    ("no_think", None),
    ("no_think", "/think"),
)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def said(content: str) -> Message:
    return Message(role="assistant", content=content)


def system(content: str = "Be kind.") -> Message:
    return Message(role="system", content=content)


def trace(row_id: str, *before: Message, flag: Flag | None = None) -> Trace:
    messages = [*before, user(f"{row_id}?")]
    return Trace(id=row_id, messages=messages, thinking="hm", answer="2", reward="math_answer", flag=flag)


def chat(row_id: str, n_turns: int = 1, *before: Message, flag: Flag | None = None, **fields: Any) -> Chat:
    turns = [turn for n in range(n_turns) for turn in (user(f"{row_id} {n}?"), said(f"{n}"))]
    return Chat(id=row_id, messages=[*before, *turns], mode="no_think", flag=flag, **fields)


def flags(n: int) -> list[Flag | None]:
    given: tuple[Flag | None, ...] = ("/no_think", None, "/think")
    return [given[index % 3] for index in range(n)]


CHATS = [chat(f"c{n}", 1 + n % 3, *([system()] if n % 2 else []), flag=flag) for n, flag in enumerate(flags(30))]
ROWS: list[Trace | Chat] = [
    *(trace(f"t{n}", *([system("Count.")] if n % 2 else []), flag="/think" if n % 4 else None) for n in range(40)),
    *CHATS,
]
EVERYTHING = MixedFlags(history_share=0.5, earlier_flags_share=0.8, system_share=0.6)


def obeyed_flag(row: Trace | Chat) -> Flag | None:
    """The last flag the model sees before its last answer."""
    return row.flag or find_last_flag(row.messages)


def obeys(row: Trace | Chat) -> bool:
    """Whether a row's mode is what its last flag asks for, or is enforced by the hard switch."""
    flag = obeyed_flag(row)
    if row.mode == "think":
        return flag != "/no_think"
    is_hard = row.flag is None or row.flag == "/think"
    return is_hard or flag == "/no_think"


def test_nothing_is_changed_unless_asked() -> None:
    assert MixedFlags().mix_flags(ROWS, CHATS, 0) == ROWS


@given(st.integers(0, 2**32))
def test_the_last_flag_is_the_one_that_is_obeyed(seed: int) -> None:
    mixed = EVERYTHING.mix_flags(ROWS, CHATS, seed)
    assert [row.id for row in mixed] == [row.id for row in ROWS]
    assert all(obeys(row) for row in mixed)
    for before, after in zip(ROWS, mixed, strict=True):
        assert after.mode == before.mode
        assert remove_flags(after.messages[-1].content).strip() == before.messages[-1].content
        if before.flag is not None:
            assert after.flag == before.flag or (after.flag is None and find_last_flag(after.messages) == before.flag)


def test_shares_are_exact_and_the_seed_decides_whose() -> None:
    mixed = EVERYTHING.mix_flags(ROWS, CHATS, 0)
    assert mixed == EVERYTHING.mix_flags(ROWS, CHATS, 0)
    assert mixed != EVERYTHING.mix_flags(ROWS, CHATS, 1)
    joined = [row for row in mixed if "history" in row.meta]
    assert len(joined) == 20
    assert all(isinstance(row, Trace) and sum(turn.role == "user" for turn in row.messages) > 1 for row in joined)
    some = MixedFlags(system_share=0.5).mix_flags(ROWS, CHATS, 0)
    can = [row for row in ROWS if row.flag is not None and row.messages[0].role == "system"]
    moved = [row for row in some if row.messages[0].role == "system" and has_thinking_flag(row.messages[:1])]
    assert len(moved) == round(len(can) / 2) > 5
    assert all(row.flag is None for row in moved)


def test_history_goes_between_the_system_message_and_the_question() -> None:
    rows = MixedFlags(history_share=1.0).mix_flags([trace("t", system("Count."))], [chat("c", 2, system())], 0)
    assert [turn.content for turn in rows[0].messages] == ["Count.", "c 0?", "0", "c 1?", "1", "t?"]
    assert rows[0].meta == {"asked": ["t?"], "history": "c"}
    tools = [{"function": {"name": "f"}}]
    assert MixedFlags(history_share=1.0).mix_flags([trace("t")], [chat("c", tools=tools)], 0) == [trace("t")]


def test_earlier_turns_draw_every_flag_and_the_last_has_the_rows_own() -> None:
    row = chat("c", 3, flag="/no_think")
    drawn = Counter(
        tuple(find_last_flag([turn]) for turn in changed.messages if turn.role == "user")
        for changed in (add_earlier_flags(row, make_random(seed)) for seed in range(300))
    )
    assert set(drawn) == {(one, other, None) for one in flags(3) for other in flags(3)}
    assert min(drawn.values()) > 15


def test_an_unflagged_thinking_row_is_never_told_not_to_think_last() -> None:
    row = trace("t", user("a"), said("b"), user("c"), said("d"))
    seen = {obeyed_flag(add_earlier_flags(row, make_random(seed))) for seed in range(100)}
    assert seen == {None, "/think"}


def render_training_text(row: Row) -> list[tuple[str, str]]:
    """What a hybrid model sees and what it is trained to say, a pair for every answer."""
    renderer = Renderer.load(ROOT / "recipes" / "tiny_base")
    found = []
    for sample in renderer.render_turns(row):
        n_seen = sample.mask.index(True)
        parts = (
            renderer.tokenizer.decode(ids, skip_special_tokens=False)
            for ids in (sample.ids[:n_seen], sample.ids[n_seen:])
        )
        found.append((next(parts), next(parts)))
    return found


def test_a_thinking_row_with_its_flag_in_the_system_message_is_trained_to_think() -> None:
    [row] = MixedFlags(system_share=1.0).mix_flags([trace("t", system(), flag="/think")], [], 0)
    [(seen, answer)] = render_training_text(row)
    assert "/think<|im_end|>" in seen.split("<|im_start|>user")[0]
    assert "/think" not in seen.split("<|im_start|>user")[1]
    assert answer.startswith("<think>\nhm\n</think>")


def test_the_soft_switch_in_a_system_message_trains_the_empty_block() -> None:
    rows = MixedFlags(system_share=1.0).mix_flags([chat("c", 1, system(), flag="/no_think")], [], 0)
    assert (rows[0].flag, rows[0].messages[0].content) == (None, "Be kind. /no_think")
    [(seen, answer)] = render_training_text(rows[0])
    assert "<think>" not in seen
    assert seen.count("/no_think") == 1
    assert answer.startswith("<think>\n\n</think>")


EMPTY = "<think>\n\n</think>\n\n"
USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


@given(st.sampled_from(SWITCHES), st.integers(2, 4), st.integers(0, 2**32))
def test_no_user_turn_has_two_flags_and_no_answer_is_trained_against_the_last_one(
    switch: tuple[Mode, Flag | None], n_turns: int, seed: int
) -> None:
    mode, flag = switch
    before = chat("c", n_turns, flag=flag)
    row = before if mode == "no_think" else trace("t", *before.messages, flag=flag)
    [row] = MixedFlags(earlier_flags_share=1.0).mix_flags([row], [], seed)
    answers = render_training_text(row)
    assert answers
    for seen, answer in answers:
        asked = [FLAG_IN_TEXT.findall(text) for text in USER_TURN.findall(seen)]
        assert all(len(flags) <= 1 for flags in asked)
        last = next((flags[0] for flags in reversed(asked) if flags), None)
        is_hard = seen.endswith(EMPTY)
        assert answer.startswith("<think>\nhm") == (mode == "think") == (last != "/no_think" and not is_hard)
        assert answer.startswith(EMPTY) == (last == "/no_think")
        assert not (is_hard and last == "/no_think")


def test_an_answer_without_thinking_is_not_trained_under_think_but_by_the_hard_switch() -> None:
    turns = [user("a /think"), said("1"), user("b /no_think"), said("2"), user("c"), said("3")]
    soft = Chat(id="c", messages=turns, mode="no_think", flag="/no_think")
    assert [answer for _, answer in render_training_text(soft)] == [f"{EMPTY}{text}<|im_end|>" for text in "23"]
    hard = soft.model_copy(update={"flag": "/think"})
    assert [answer for _, answer in render_training_text(hard)] == ["1<|im_end|>", f"{EMPTY}2<|im_end|>", "3<|im_end|>"]
    assert [seen.endswith(EMPTY) for seen, _ in render_training_text(hard)] == [True, False, True]


def test_a_chat_in_which_no_answer_obeys_its_flag_is_refused() -> None:
    row = Chat(id="c", messages=[user("a /think"), said("1")], mode="no_think", flag="/no_think")
    with pytest.raises(TemplateError, match=r"row 'c': .* all are among the answers under another flag"):
        render_training_text(row)
