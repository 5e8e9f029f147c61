"""Pairs from rollouts: which completions are matched, in what order, and why others are not."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message, Pair, Row, RowError, Text
from qwen_align.data_builders import Drops, Pairs
from qwen_align.data_builders.pair_matching import measure_common_prefix
from qwen_align.reward.verdict import Verdict

PROMPT = [Message(role="user", content="1+1?")]


def completion(prompt_id: str, sample: int, text: str, value: float | None, **fields: Any) -> Completion:
    verdict = Verdict(value=value, reason={1.0: "correct", 0.0: "wrong"}.get(value or 0.0, "partly"))
    defaults: dict[str, Any] = {
        "prompt": PROMPT,
        "finish_reason": "stop",
        "n_tokens": len(text),
        "mode": "think",
        "verdicts": {"math_answer": verdict if value is not None else Verdict(value=None, reason="unusable gold")},
    }
    return Completion(prompt_id=prompt_id, sample=sample, text=text, **defaults | fields)


def thought(thinking: str, answer: str) -> str:
    return f"<think>\n{thinking}\n</think>\n\n{answer}"


def build_rows(rows: Sequence[Row], **settings: Any) -> tuple[list[Pair], list[tuple[str, str, str]]]:
    """The pairs; reason, id and detail of what was dropped, but for completions that are in no pair."""
    pairs, dropped = build_all(rows, **settings)
    return pairs, [drop for drop in dropped if drop[0] != "in no pair"]


def build_all(rows: Sequence[Row], **settings: Any) -> tuple[list[Pair], list[tuple[str, str, str]]]:
    """The pairs; reason, id and detail of everything that was dropped."""

    def read() -> Iterator[Row]:
        return iter(rows)

    drops = Drops()
    pairs = Pairs.model_validate({"from_data": "rollouts", **settings}).build({"rollouts": read}, 0, drops)
    return [pair for pair in pairs if isinstance(pair, Pair)], [
        (drop.reason, drop.id, drop.detail) for drop in drops.rows
    ]


def test_a_pair_in_full() -> None:
    rows = [
        completion("p", 0, thought("1+1=3", "3"), 0.0, flag="/think", source="toy", meta={"steps": 1}),
        completion("p", 1, thought("1+1=2", "2"), 1.0, flag="/think", source="toy", meta={"steps": 1}),
    ]
    assert build_rows(rows) == (
        [
            Pair(
                id="p#1>0",
                messages=PROMPT,
                chosen=Message(role="assistant", content="2", thinking="1+1=2"),
                rejected=Message(role="assistant", content="3", thinking="1+1=3"),
                margin=1.0,
                kind="math_answer",
                mode="think",
                flag="/think",
                source="toy",
                meta={"steps": 1, "common_prefix": len("<think>\n1+1=")},
            )
        ],
        [],
    )


@pytest.mark.parametrize("text", ["2", "<think>\n\n</think>\n\n2"])
def test_a_pair_without_thinking(text: str) -> None:
    (pair,), _ = build_rows(
        [completion("p", 0, text, 1.0, mode="no_think"), completion("p", 1, "3", 0.0, mode="no_think")]
    )
    assert pair.chosen == Message(role="assistant", content="2")
    assert pair.mode == "no_think"


ROWS = [
    completion("p", 0, thought("abcd", "2"), 1.0),
    completion("p", 1, thought("abxxxxx", "3"), 0.0),
    completion("p", 2, thought("abcy", "4"), 0.0),
    completion("p", 3, thought("abxxxxz", "2"), 1.0),
]


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"per_prompt": 1}, ["p#3>1"]),
        ({"per_prompt": 2}, ["p#3>1", "p#0>2"]),
        ({"per_prompt": 9}, ["p#3>1", "p#0>2", "p#0>1", "p#3>2"]),
        ({"per_prompt": 9, "max_length_difference": 2}, ["p#3>1", "p#0>2"]),
        ({"per_prompt": 9, "max_length_difference": 3}, ["p#3>1", "p#0>2", "p#0>1", "p#3>2"]),
    ],
)
def test_the_longest_common_beginning_comes_first(settings: dict[str, Any], ids: list[str]) -> None:
    assert [pair.id for pair in build_rows(ROWS, **settings)[0]] == ids


def test_of_equal_beginnings_the_more_alike_in_length_comes_first() -> None:
    rows = [
        completion("p", 0, thought("a", "2"), 1.0),
        completion("p", 1, thought("bbbb", "3"), 0.0),
        completion("p", 2, thought("b", "3"), 0.0),
    ]
    assert [pair.id for pair in build_rows(rows)[0]] == ["p#0>2", "p#0>1"]


@given(st.randoms(use_true_random=False))
def test_the_order_of_a_prompts_completions_does_not_matter(random: Random) -> None:
    shuffled = random.sample(ROWS, len(ROWS))
    assert build_rows(shuffled, per_prompt=9) == build_rows(ROWS, per_prompt=9)


def test_prompts_keep_their_order_and_need_not_be_together() -> None:
    rows = [
        completion(name, sample, thought(f"{sample}", "2"), value)
        for sample, value in ((0, 1.0), (1, 0.0))
        for name in "zab"
    ]
    assert [pair.id for pair in build_rows(rows)[0]] == ["z#0>1", "a#0>1", "b#0>1"]


def test_equal_texts_make_one_pair() -> None:
    rows = [completion("p", sample, thought("a", "2"), 1.0) for sample in range(3)]
    rows += [completion("p", sample, thought("b", "3"), 0.0) for sample in range(3, 6)]
    assert [pair.id for pair in build_rows(rows, per_prompt=9)[0]] == ["p#0>3"]


def test_why_completions_and_prompts_are_dropped() -> None:
    rows = [
        completion("right", 0, "2", 1.0),
        completion("right", 1, "<think>\nb", 0.0, finish_reason="length"),
        completion("wrong", 0, "3", 0.0),
        completion("wrong", 1, "<think>2</think>2", 1.0),
        completion("gold", 0, "2", None),
        completion("length", 0, "2", 1.0),
        completion("length", 1, "3" * 9, 0.0),
    ]
    assert build_rows(rows, max_length_difference=6) == (
        [],
        [
            ("cut at the length limit", "right#1", ""),
            ("no wrong completion", "right", "of 1 usable completions"),
            ("malformed turn", "wrong#1", "malformed tags"),
            ("no correct completion", "wrong", "of 1 usable completions"),
            ("no verdict", "gold#0", "unusable gold"),
            ("no correct completion", "gold", "of 0 usable completions"),
            ("no pair of like length", "length", "of 1 correct and 1 wrong"),
        ],
    )


def test_completions_in_no_pair_are_counted() -> None:
    rows = [completion("p", sample, f"{sample}", float(sample == 0)) for sample in range(3)]
    rows += [completion("q", sample, f"{sample}", 1.0) for sample in range(2)]
    pairs, dropped = build_all(rows, per_prompt=1)
    assert [pair.id for pair in pairs] == ["p#0>1"]
    assert dropped == [
        ("in no pair", "p#2", "others make 1"),
        ("no wrong completion", "q", "of 2 usable completions"),
        ("in no pair", "q#0", "no wrong completion"),
        ("in no pair", "q#1", "no wrong completion"),
    ]


@given(
    st.lists(st.tuples(st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from(["stop", "length"])), max_size=6),
    st.sampled_from([{}, {"per_prompt": 1}, {"rule": "best_vs_worst"}, {"rule": "online_dpo_r1"}]),
)
def test_every_completion_is_in_a_pair_or_dropped_once(values: list[Any], settings: dict[str, Any]) -> None:
    rows = [
        completion("p", sample, f"{sample % 4}", value, finish_reason=finish)
        for sample, (value, finish) in enumerate(values)
    ]
    pairs, dropped = build_all(rows, **settings)
    paired = {f"p#{side}" for pair in pairs for side in pair.id.removeprefix("p#").split(">")}
    lost = [row_id for _, row_id, _ in dropped if row_id != "p"]
    assert sorted([*paired, *lost]) == sorted(row.id for row in rows)
    assert (["p"] if rows and not pairs else []) == [row_id for _, row_id, _ in dropped if row_id == "p"]


def test_what_is_correct_is_a_setting() -> None:
    rows = [completion("p", 0, "a", 0.5), completion("p", 1, "b", 0.25)]
    assert build_rows(rows)[0] == []
    (pair,), _ = build_rows(rows, correct_from=0.5)
    assert (pair.id, pair.margin) == ("p#0>1", 0.25)


def test_rows_that_are_no_judged_completions_are_an_error() -> None:
    with pytest.raises(RowError, match="stage 'rollouts': row 'a' is a text row; only a rollout stage's completions"):
        build_rows([Text(id="a", text="b")])
    with pytest.raises(RowError, match="completion 'p#0': has no verdict of 'format' but of math_answer; add it"):
        build_rows([completion("p", 0, "2", 1.0)], reward="format")


def test_no_completions_no_pairs() -> None:
    assert build_rows([]) == ([], [])


@given(st.text("ab", max_size=8), st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_common_prefix(head: str, one: str, other: str) -> None:
    length = measure_common_prefix(head + one, head + other)
    assert length >= len(head)
    assert (head + one)[:length] == (head + other)[:length]
    assert (head + one)[: length + 1] != (head + other)[: length + 1] or length == min(
        map(len, (head + one, head + other))
    )


VALUES = [0.2, 0.9, 0.5, 0.9, 0.1, 0.1]
SCORED = [
    completion("p", sample, thought(f"{sample}" * (sample + 1), "2"), value) for sample, value in enumerate(VALUES)
]


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"rule": "online_dpo_r1"}, ["p#1>4"]),
        ({"rule": "best_vs_worst", "per_prompt": 1}, ["p#1>4"]),
        ({"rule": "best_vs_worst"}, ["p#1>4", "p#3>5"]),
        ({"rule": "best_vs_worst", "per_prompt": 9}, ["p#1>4", "p#3>5", "p#2>0"]),
        ({"rule": "best_vs_worst", "per_prompt": 9, "min_margin": 0.5}, ["p#1>4", "p#3>5"]),
        ({"rule": "best_vs_worst", "per_prompt": 9, "max_length_difference": 1}, ["p#3>4", "p#1>0"]),
        ({"correct_from": 0.9, "min_margin": 0.75}, ["p#3>4", "p#3>5"]),
    ],
)
def test_rules_for_rewards_of_any_value(settings: dict[str, Any], ids: list[str]) -> None:
    pairs, dropped = build_rows(SCORED, **settings)
    assert [pair.id for pair in pairs] == ids
    assert dropped == []
    for pair in pairs:
        chosen, rejected = pair.id.removeprefix("p#").split(">")
        assert pair.margin == VALUES[int(chosen)] - VALUES[int(rejected)] > 0


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), max_size=8))
def test_online_dpo_r1_as_its_code_has_it(values: list[float]) -> None:
    rows = [completion("p", sample, f"{sample}", value) for sample, value in enumerate(values)]
    pairs, _ = build_rows(rows, rule="online_dpo_r1")
    best = max(range(len(values)), key=lambda place: values[place], default=-1)  # as argmax, the first of equal ones
    worst = min(range(len(values)), key=lambda place: values[place], default=-1)
    differ = len(values) > 1 and values[best] != values[worst]
    assert [pair.id for pair in pairs] == ([f"p#{best}>{worst}"] if differ else [])


@pytest.mark.parametrize(
    ("values", "settings", "drop"),
    [
        ([0.5, 0.5], {"rule": "best_vs_worst"}, ("tie", "p", "of 2 usable completions, each worth 0.5")),
        ([0.5, 0.5], {"rule": "online_dpo_r1"}, ("tie", "p", "of 2 usable completions, each worth 0.5")),
        ([0.5], {"rule": "best_vs_worst"}, ("one usable completion", "p", "of 1 usable completions")),
        (
            [0.5, 0.4],
            {"rule": "best_vs_worst", "min_margin": 0.2},
            ("margin too small", "p", "of 2 usable completions"),
        ),
        ([1.0, 0.9], {"min_margin": 0.2}, ("margin too small", "p", "of 1 correct and 1 wrong")),
    ],
)
def test_ties_and_empty_groups_are_counted(values: list[float], settings: dict[str, Any], drop: Any) -> None:
    rows = [completion("p", sample, f"{sample}", value) for sample, value in enumerate(values)]
    assert build_rows(rows, **settings) == ([], [drop])


@pytest.mark.parametrize(
    ("rule", "ids"),
    [("correct_vs_wrong", ["p#0>2", "p#3>1"]), ("best_vs_worst", ["p#0>2"]), ("online_dpo_r1", [])],
)
def test_equal_answers_are_never_set_against_each_other(rule: str, ids: list[str]) -> None:
    judged = [("a", 1.0), ("a", 0.0), ("b", 0.0), ("b", 1.0)]
    rows = [completion("p", n, thought(text, "2"), value) for n, (text, value) in enumerate(judged)]
    pairs, dropped = (
        build_rows(rows, rule=rule, per_prompt=9) if rule != "online_dpo_r1" else build_rows(rows, rule=rule)
    )
    assert [pair.id for pair in pairs] == ids
    assert [drop[0] for drop in dropped] == ([] if ids else ["equal answers of different worth"])
    of_one_text = rows[:2]
    pairs, dropped = build_rows(of_one_text, rule=rule)
    assert (pairs, [drop[0] for drop in dropped]) == ([], ["equal answers of different worth"])


def test_a_cut_answer_is_not_set_against_the_same_words() -> None:
    rows = [
        completion("p", 0, thought("a", "2"), 1.0),
        completion("p", 1, thought("a", "2"), 0.0, finish_reason="length"),
    ]
    assert build_rows(rows, reject_malformed=True) == (
        [],
        [("equal answers of different worth", "p", "of 1 correct and 1 wrong")],
    )


def test_a_group_without_a_verdict_is_counted() -> None:
    _, dropped = build_rows([completion("p", 0, "2", None)], rule="best_vs_worst")
    assert [drop[0] for drop in dropped] == ["no verdict", "no usable completion"]


def test_malformed_and_cut_completions_can_be_rejected_and_never_chosen() -> None:
    rows = [
        completion("p", 0, thought("a", "2"), 0.5),
        completion("p", 1, "<think>\nb", 0.0, finish_reason="length"),
        completion("p", 2, "<think>b</think>2", 1.0),
    ]
    assert build_rows(rows, rule="online_dpo_r1")[0] == []
    (pair,), dropped = build_rows(rows, rule="online_dpo_r1", reject_malformed=True)
    assert pair.id == "p#0>1"
    assert pair.rejected == Message(role="assistant", content="<think>\nb")
    assert dropped == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "online_dpo_r1", "per_prompt": 1}, "per_prompt: rule 'online_dpo_r1' does not look at it"),
        ({"rule": "best_vs_worst", "correct_from": 0.5}, "correct_from: rule 'best_vs_worst' does not look at it"),
        ({"min_margin": 0.0}, "greater than 0"),
        ({"rule": "first_vs_last"}, "'best_vs_worst' or 'online_dpo_r1'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rows([], **settings)
