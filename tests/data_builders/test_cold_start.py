"""The cold start's filters: each drops what it is for, counts it, and leaves sound traces alone."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.rows import Completion, Message, Problem, Row, Trace
from qwen_align.data_builders.cold_start import ColdStart
from qwen_align.data_builders.guess_detection import extract_numbers, find_guess_reason
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.verdict import Verdict
from tests.clock import cpu_limit

QUESTION = "Tom has 12 apples and buys 30 more. How many apples does he have?"
THINKING = "Tom starts with 12 apples. He buys 30, so we add: 12 + 30 = 42."
ANSWER = "Tom has \\boxed{42} apples."


def completion(
    sample: int = 0,
    thinking: str = THINKING,
    answer: str = ANSWER,
    *,
    prompt_id: str = "p",
    question: str = QUESTION,
    value: float | None = 1.0,
    **fields: Any,
) -> Completion:
    defaults: dict[str, Any] = {"mode": "think", "finish_reason": "stop", "n_tokens": len(thinking), "gold": "42"}
    return Completion(
        prompt_id=prompt_id,
        sample=sample,
        prompt=[Message(role="user", content=question)],
        text=f"<think>\n{thinking}\n</think>\n\n{answer}",
        verdicts={"math_answer": Verdict(value=value, reason="judged")},
        **defaults | fields,
    )


def build_rows(
    rows: Sequence[Row], held_out: Sequence[Row] = (), seed: int = 0, **settings: Any
) -> tuple[list[Trace], list[tuple[str, str]], Drops]:
    drops = Drops()
    builder = ColdStart.model_validate({"from_rollout": "own", "validation": [], **settings})
    sources = {"own": lambda: iter(rows), "held_out": lambda: iter(held_out)}
    kept = [row for row in builder.build(sources, seed, drops) if isinstance(row, Trace)]
    return kept, [(drop.reason, drop.id) for drop in drops.rows], drops


def test_a_trace_in_full() -> None:
    kept, dropped, _ = build_rows([completion(3, source="toy", meta={"level": 1})])
    assert kept == [
        Trace(
            id="p#3",
            messages=[Message(role="user", content=QUESTION)],
            thinking=THINKING,
            answer=ANSWER,
            gold="42",
            reward="math_answer",
            source="toy",
            meta={"level": 1},
        )
    ]
    assert dropped == []


LOOP = "Wait, let me add the apples that he bought to those that he had at the start of the day and see. "
FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("wrong", {"value": 0.0}),
    ("no verdict", {"value": None}),
    ("cut at the length limit", {"finish_reason": "length"}),
    ("malformed turn", {"thinking": " "}),
    ("not in thinking mode", {"mode": "no_think"}),
    ("flag in the prompt's text", {"question": f"{QUESTION} /no_think"}),
    ("repetitive", {"thinking": THINKING + LOOP * 5}),
    ("guessed", {"thinking": "Easy."}),
    ("guessed", {"thinking": "I cannot tell how many there are. I'll just guess 42."}),
    ("guessed", {"thinking": "There are some apples, and then some more, which makes a number of apples."}),
    ("thinking and summary disagree", {"thinking": f"{THINKING} So it is \\boxed{{43}}."}),
    ("mixed language", {"thinking": f"{THINKING} 所以汤姆现在一共有四十二个苹果, 我们再检查一遍。"}),
    ("mixed language", {"thinking": "汤姆有十二个苹果, 又买了三十个, 所以12+30=42, 一共四十二个苹果。"}),
]


@pytest.mark.parametrize(("reason", "fields"), FILTERS, ids=lambda one: one if isinstance(one, str) else "")
def test_each_filter_counts_what_it_drops(reason: str, fields: dict[str, Any]) -> None:
    kept, dropped, drops = build_rows([completion(**fields)])
    assert kept == []
    assert dropped == [(reason, "p#0"), ("prompt without a trace", "p")]
    assert drops.rows[-1].detail == f"1 {reason}"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": f"{THINKING} So it is \\boxed{{42}}. Let me check: 42 - 30 = 12. Yes."},
        {
            "thinking": "First perhaps I could guess, but no. "
            + THINKING
            + " "
            + "We check it again by 42 - 30 = 12. " * 2
        },
        {"thinking": f"{THINKING} In \\boxed{{12}} and 30, that is \\boxed{{42.0}}."},
        {"thinking": "12+30=42, so that is it", "answer": "$\\boxed{42}$"},
        {
            "question": "汤姆有12个苹果, 又买了30个。一共有几个?",
            "thinking": "十二加三十: 12+30=42。",
            "answer": "一共\\boxed{42}个。",
        },
        {"thinking": f'He said "苹果". {THINKING}'},
    ],
)
def test_sound_traces_pass(fields: dict[str, Any]) -> None:
    kept, dropped, _ = build_rows([completion(**fields)])
    assert dropped == []
    assert len(kept) == 1


def test_validation_items_are_kept_away() -> None:
    near = "  TOM has 12 apples and buys 30 more. How many pears does he have?"
    held_out = [Problem(id="v1", messages=[Message(role="user", content=near)], reward="math_answer")]
    rows = [completion(), completion(prompt_id="q", question="Ann has 12 books and buys 30. How many are there?")]
    rule = {"method": "s1", "against": "held_out"}
    kept, dropped, drops = build_rows(rows, held_out, validation=[rule])
    assert [row.id for row in kept] == ["q#0"]
    assert dropped[0] == ("too near to validation", "p#0")
    assert drops.rows[0].detail.startswith("held_out, s1: v1: 'tom has 12 apples and buys 30 more.")
    assert len(build_rows(rows, held_out)[0]) == 2


@pytest.mark.parametrize(
    ("choose", "ids"),
    [("first", ["p#0", "p#1"]), ("shortest", ["p#2", "p#0"]), ("longest", ["p#1", "p#3"]), ("random", ["p#3", "p#2"])],
)
def test_which_traces_of_a_prompt_are_kept(choose: str, ids: list[str]) -> None:
    more = ("", " And that is all there is to it.", "", " Good.")
    rows = [completion(n, f"{THINKING}{text} {n}") for n, text in enumerate(more)]
    rows[2] = completion(2, "12+30=42, done")
    kept, dropped, _ = build_rows(rows, choose=choose, per_prompt=2)
    assert [row.id for row in kept] == ids
    assert [reason for reason, _ in dropped] == ["over per_prompt"] * 2
    assert {row_id for _, row_id in dropped} | {row.id for row in kept} == {f"p#{n}" for n in range(4)}


def test_equal_texts_are_one_trace() -> None:
    kept, dropped, _ = build_rows([completion(0), completion(1)], per_prompt=2)
    assert ([row.id for row in kept], dropped) == (["p#0"], [("duplicate", "p#1")])


def test_a_small_subset_is_drawn_by_the_seed_and_keeps_the_order() -> None:
    rows = [completion(prompt_id=f"p{n:02}") for n in range(30)]
    kept, dropped, _ = build_rows(rows, max_prompts=10)
    assert len(kept) == 10
    assert [row.id for row in kept] == sorted(row.id for row in kept)
    assert dropped == [("over max_prompts", row.id) for row in rows if row.id not in {one.id for one in kept}]
    assert build_rows(rows, max_prompts=10)[0] == kept
    assert build_rows(rows, seed=1, max_prompts=10)[0] != kept


def test_every_completion_is_a_row_or_counted_once() -> None:
    rows = [completion(n, **fields) for n, (_, fields) in enumerate(FILTERS)] + [completion(99)]
    kept, dropped, _ = build_rows(rows)
    assert sorted([row.id for row in kept] + [row_id for _, row_id in dropped]) == sorted(row.id for row in rows)


def test_what_is_held_out_has_to_be_said() -> None:
    with pytest.raises(ValidationError, match="validation"):
        ColdStart.model_validate({"from_rollout": "own"})


@pytest.mark.parametrize(
    ("thinking", "answer", "is_guess"),
    [
        ("half of it is 0.5, I think", "\\boxed{\\frac12}", False),
        ("one half is \\frac{1}{2} of it", "\\boxed{0.5}", False),
        ("12 and 1,200 make it", "\\boxed{1200}", False),
        ("there are seven days in it", "\\boxed{7}", False),
        ("minus 7 is the one", "\\boxed{-7}", False),
        ("the sum of x and y", "\\boxed{x+y}", False),
        ("half of sixty is thirty, so that is it", "\\boxed{30}", False),
        ("that makes two hundred and five of them", "\\boxed{205}", False),
        ("一共是三十五个苹果", "\\boxed{35}", False),
        ("that is 2.5e3 in all", "\\boxed{2500}", False),
        ("there are 17 and 27 and 1.7", "\\boxed{7}", True),
        ("there are twenty, then five more", "\\boxed{25}", True),
        ("he is the thirtieth of them", "\\boxed{30}", True),
        ("I guess that 7 is right", "\\boxed{7}", False),
        ("no idea, a wild guess: 7", "\\boxed{7}", True),
        ("我不知道, 猜一个: 7", "\\boxed{7}", True),
    ],
)
def test_guesses(thinking: str, answer: str, is_guess: bool) -> None:
    assert (find_guess_reason(thinking, answer, 3) is not None) == is_guess


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Thirty-five", {"35", "30", "5"}),
        ("one thousand, two hundred and thirty four", {"1234"}),
        ("three million and one", {"3000001"}),
        ("twelve hundred", {"1200"}),
        ("three twenty-five", {"3", "25"}),
        ("one two three", {"1", "2", "3"}),
        ("ninety nine thousand", {"99000"}),
        ("a hundred", {"100"}),
        ("一百零二", {"102"}),
        ("两千零六", {"2006"}),
        ("三万五千", {"35000"}),
        ("二〇二六", {"2026"}),
        ("三點五", {"7/2"}),
        ("三分之一", {"1/3"}),
        ("3.5万", {"35000"}),
        ("2.5 million", {"2500000"}),
        ("2.5e3 and 1E-2", {"2500", "1/100"}),
        ("2.5 \\times 10^{3}", {"2500"}),
        ("3*10**4 or 10^6", {"30000", "1000000"}),
    ],
)
def test_numbers_that_are_spelled_out_or_have_an_exponent(text: str, numbers: set[str]) -> None:
    assert numbers <= {str(number) for number in extract_numbers(text)}


def test_what_is_no_number_word_is_none() -> None:
    assert extract_numbers("someone, often, tension, thirtyish, a ton") == set()
    assert extract_numbers("thirty, five") == {30, 5}
    assert 24 not in extract_numbers("four twenty, twenty and four tens, 10^123")


HOSTILE = ("1,", "\\frac{", "9", "one and ", "twenty-", "thousand, ", "9.9e", "10^ ", "1\\times ", "亿", "一点", "分之")


@pytest.mark.parametrize("part", HOSTILE)
def test_numbers_in_a_hostile_text_are_found_in_linear_time(part: str) -> None:
    with cpu_limit(5.0, part):
        assert len(extract_numbers(part * 50_000)) < 10
