"""The fusion mix: which rows are in it, under which flags, in what ratio, the same every time."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.rows import Chat, Completion, Flag, Message, Mode, Row, RowError, Text, Trace, compute_rows_digest
from qwen_align.data_builders import Drops, ThinkMix
from qwen_align.reward.verdict import Verdict

SETTINGS = {"from_rollout": "own", "from_chats": "direct"}
RIGHT = Verdict(value=1.0, reason="correct")


def user(content: str) -> Message:
    return Message(role="user", content=content)


def completion(prompt_id: str, sample: int = 0, text: str = "<think>\na\n</think>\n\n2", **fields: Any) -> Completion:
    defaults: dict[str, Any] = {
        "prompt": [user(f"{prompt_id}?")],
        "finish_reason": "stop",
        "n_tokens": 9,
        "mode": "think",
        "gold": "2",
        "verdicts": {"math_answer": RIGHT},
    }
    return Completion(prompt_id=prompt_id, sample=sample, text=text, **defaults | fields)


def chat(row_id: str, question: str = "1+1?", **reply: Any) -> Chat:
    return Chat(id=row_id, messages=[user(question), Message(role="assistant", **{"content": "2"} | reply)])


OWN = [completion(f"t{n}") for n in range(10)]
DIRECT = [chat(f"c{n}") for n in range(8)]
REPLAY = [Text(id=f"r{n}", text="a") for n in range(3)]


def build_rows(
    own: Sequence[Row] = OWN,
    direct: Sequence[Row] = DIRECT,
    replay: Sequence[Row] | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[list[Row], Drops]:
    sources = {"own": lambda: iter(own), "direct": lambda: iter(direct), "replay": lambda: iter(replay or ())}
    if replay is not None:
        settings["from_texts"] = "replay"
    drops = Drops()
    return list(ThinkMix.model_validate({**SETTINGS, **settings}).build(sources, seed, drops)), drops


def switches(rows: Sequence[Row]) -> Counter[tuple[Mode | None, Flag | None]]:
    return Counter((row.mode, row.flag) for row in rows if isinstance(row, Trace | Chat))


def test_every_row_once_under_exact_shares() -> None:
    rows, drops = build_rows(replay=REPLAY)
    assert drops.rows == []
    assert sorted(row.id for row in rows) == sorted([row.id for given in (OWN, DIRECT, REPLAY) for row in given])
    assert switches(rows) == {
        ("think", "/think"): 4,
        ("think", None): 6,
        ("no_think", "/no_think"): 4,
        ("no_think", None): 2,
        ("no_think", "/think"): 2,
    }


def test_a_thinking_row_in_full() -> None:
    rows, _ = build_rows(
        [completion("t", 3, "<think>\na\nb\n</think>\n\n2", source="toy", meta={"steps": 1})], flagged_share=1.0
    )
    (trace,) = [row for row in rows if isinstance(row, Trace)]
    assert trace == Trace(
        id="t#3",
        messages=[user("t?")],
        thinking="a\nb",
        answer="2",
        gold="2",
        reward="math_answer",
        mode="think",
        flag="/think",
        source="toy",
        meta={"steps": 1},
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"soft": 1, "hard": 0, "hard_under_think": 0}, {("no_think", "/no_think"): 8}),
        ({"soft": 0, "hard": 1, "hard_under_think": 0}, {("no_think", None): 8}),
        ({"soft": 0, "hard": 0, "hard_under_think": 2}, {("no_think", "/think"): 8}),
        ({"soft": 1}, {("no_think", "/no_think"): 3, ("no_think", None): 3, ("no_think", "/think"): 2}),
    ],
)
def test_switches_go_round(given: dict[str, int], expected: dict[tuple[str, str], int]) -> None:
    rows, _ = build_rows(switches=given)
    assert switches([row for row in rows if isinstance(row, Chat)]) == expected


@pytest.mark.parametrize(("share", "n_flagged"), [(0.0, 0), (0.5, 5), (1.0, 10)])
def test_flagged_share(share: float, n_flagged: int) -> None:
    assert switches(build_rows(flagged_share=share)[0])["think", "/think"] == n_flagged


@pytest.mark.parametrize(
    ("share", "n_thinking", "n_chats"),
    [(None, 10, 8), (0.5, 8, 8), (0.8, 10, 2), (0.2, 2, 8), (0.01, 1, 8), (0.99, 10, 1)],
)
def test_thinking_share_cuts_the_side_that_has_too_many(share: float | None, n_thinking: int, n_chats: int) -> None:
    rows, drops = build_rows(replay=REPLAY, thinking_share=share)
    assert Counter(row.row for row in rows) == {"trace": n_thinking, "chat": n_chats, "text": 3}
    assert sum(drops.counts.values()) == 18 - n_thinking - n_chats
    assert set(drops.counts) <= {"over the cap"}


def test_caps() -> None:
    rows, drops = build_rows(replay=REPLAY, max_thinking=5, max_non_thinking=4, max_replay=1)
    assert Counter(row.row for row in rows) == {"trace": 5, "chat": 4, "text": 1}
    assert drops.counts == {"over the cap": 5 + 4 + 2}


def test_the_seed_decides_the_order_and_what_a_cap_keeps() -> None:
    first, again, other = (build_rows(replay=REPLAY, seed=seed, max_thinking=5)[0] for seed in (0, 0, 1))
    assert first == again
    assert [row.id for row in first] != [row.id for row in other]
    kept = [{row.id for row in rows if isinstance(row, Trace)} for rows in (first, other)]
    assert kept[0] != kept[1]


def test_kinds_are_mixed_rather_than_one_after_the_other() -> None:
    kinds = [row.row for row in build_rows(replay=REPLAY)[0]]
    assert sum(one != other for one, other in itertools.pairwise(kinds)) > 5


def test_why_completions_are_dropped() -> None:
    own = [
        completion("a", 0),
        completion("a", 1),
        completion("a", 2, "<think>\nb\n</think>\n\n2"),
        completion("b", 0, mode="no_think"),
        completion("c", 0, finish_reason="length"),
        completion("d", 0, "2"),
        completion("e", 0, "<think>\n\n</think>\n\n2"),
        completion("f", 0, "<think>a</think>2"),
        completion("g", 0, verdicts={"math_answer": Verdict(value=0.0, reason="wrong")}),
        completion("h", 0, verdicts={"math_answer": Verdict(value=None, reason="unusable gold")}),
        completion("i", 0, prompt=[user("1+1? /no_think")]),
    ]
    rows, drops = build_rows(own)
    assert [row.id for row in rows if isinstance(row, Trace)] == ["a#0"]
    assert [(drop.id, drop.reason) for drop in drops.rows] == [
        ("a#1", "duplicate"),
        ("a#2", "over per_prompt"),
        ("b#0", "not in thinking mode"),
        ("c#0", "cut at the length limit"),
        ("d#0", "no thinking"),
        ("e#0", "no thinking"),
        ("f#0", "malformed turn"),
        ("g#0", "wrong"),
        ("h#0", "no verdict"),
        ("i#0", "flag in the prompt's text"),
    ]


def test_more_than_one_of_a_prompt() -> None:
    own = [completion("a", sample, f"<think>\n{sample}\n</think>\n\n2") for sample in (3, 1, 2)]
    rows, _ = build_rows(own, per_prompt=2)
    assert sorted(row.id for row in rows if isinstance(row, Trace)) == ["a#1", "a#2"]


def test_a_completion_without_a_mode_counts_if_it_thought() -> None:
    assert isinstance(build_rows([completion("a", mode=None)], [chat("c")])[0][0], Trace | Chat)
    assert switches(build_rows([completion("a", mode=None)])[0])["think", None] == 1


def test_why_chats_are_dropped() -> None:
    direct = [
        chat("a"),
        chat("b", thinking="hm"),
        Chat(id="c", messages=[user("1+1?")]),
        chat("d", "1+1? /think"),
        chat("e", "/no_think 1+1?"),
        chat("f", "Is a/think or /thinking a path?"),
    ]
    rows, drops = build_rows(direct=direct)
    assert sorted(row.id for row in rows if isinstance(row, Chat)) == ["a", "f"]
    assert [(drop.id, drop.reason) for drop in drops.rows] == [
        ("b", "chat with thinking"),
        ("c", "chat without a reply"),
        ("d", "flag in the prompt's text"),
        ("e", "flag in the prompt's text"),
    ]


@pytest.mark.parametrize(
    ("own", "direct", "reason"),
    [(OWN, [], "no non-thinking row to mix with"), ([], DIRECT, "no thinking row to mix with")],
)
def test_one_side_alone_makes_no_mix(own: list[Row], direct: list[Row], reason: str) -> None:
    rows, drops = build_rows(own, direct, REPLAY)
    assert rows == []
    assert drops.counts == {reason: len(own) + len(direct), "nothing to mix with": len(REPLAY)}


def test_rows_of_the_wrong_kind_are_an_error() -> None:
    with pytest.raises(RowError, match="stage 'direct': row 'r0' is a text row; from_chats takes chat rows"):
        build_rows(direct=REPLAY)
    with pytest.raises(RowError, match="stage 'replay': row 'c0' is a chat row; from_texts takes texts"):
        build_rows(replay=DIRECT)
    with pytest.raises(RowError, match="stage 'own': row 'c0' is a chat row; only a rollout stage's completions"):
        build_rows(own=DIRECT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"switches": {"soft": 0, "hard": 0, "hard_under_think": 0}}, "all switches are 0"),
        ({"switches": {"soft": -1}}, "greater than or equal to 0"),
        ({"thinking_share": 1.0}, "less than 1"),
        ({"flagged_share": 40.0}, "less than or equal to 1"),
        ({"reward": "math"}, "'math' is no reward"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThinkMix.model_validate({**SETTINGS, **settings})


def test_mixed_flags_are_applied_to_the_mix() -> None:
    plain, _ = build_rows(replay=REPLAY)
    mixed, _ = build_rows(replay=REPLAY, mixed_flags={"history_share": 0.5})
    assert [row.id for row in mixed] == [row.id for row in plain]
    assert sum("history" in row.meta for row in mixed if isinstance(row, Trace)) == 5
    assert switches(mixed) == switches(plain)


def test_the_bytes_of_a_mix_are_what_they_were() -> None:
    assert (
        compute_rows_digest(build_rows(replay=REPLAY)[0])
        == "494a622afe599a3440680bc4d56a4cf314dd69d0ee061562b2746909f7effc73"
    )
