"""The three length rewards: the papers' formulas at their corners, and what holds for every length and group."""

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.length import CosineLength, KimiLength, SoftOverlong
from qwen_align.reward.verdict import Verdict

LENGTHS = st.integers(min_value=0, max_value=3000)
RIGHT = st.sampled_from([True, False])


def sized(n_tokens: int, *, right: bool | None = None, prompt_id: str = "p", sample: int = 0) -> Completion:
    verdicts = {} if right is None else {"math_answer": Verdict(value=float(right), reason="given")}
    return Completion(
        prompt_id=prompt_id,
        sample=sample,
        prompt=[Message(role="user", content="1+1?")],
        text="2",
        finish_reason="stop",
        n_tokens=n_tokens,
        verdicts=verdicts,
    )


def value(reward: SoftOverlong | CosineLength | KimiLength, completion: Completion) -> float:
    found = reward.judge(completion).value
    assert found is not None
    return found


def group(lengths_and_right: Sequence[tuple[int, bool]]) -> list[Completion]:
    return [sized(length, right=right, sample=place) for place, (length, right) in enumerate(lengths_and_right)]


@pytest.mark.parametrize(
    ("n_tokens", "expected", "reason"),
    [
        (0, 0.0, "not too long"),
        (16_384, 0.0, "not too long"),
        (16_385, -1 / 4096, "nearly too long"),
        (18_432, -0.5, "nearly too long"),
        (20_480, -1.0, "nearly too long"),
        (20_481, -1.0, "too long"),
        (10**9, -1.0, "too long"),
    ],
)
def test_soft_overlong_is_dapos_equation_13(n_tokens: int, expected: float, reason: str) -> None:
    assert SoftOverlong().judge(sized(n_tokens)) == Verdict(value=expected, reason=reason)


@pytest.mark.parametrize(("n_tokens", "expected"), [(0, 0.0), (100, 0.0), (101, -1.0)])
def test_soft_overlong_without_cache_is_a_step(n_tokens: int, expected: float) -> None:
    assert value(SoftOverlong(max_tokens=100, cache_tokens=0), sized(n_tokens)) == expected


@given(LENGTHS, LENGTHS, st.integers(0, 1000))
def test_soft_overlong_never_rises_and_stays_within_its_range(one: int, other: int, cache: int) -> None:
    reward = SoftOverlong(max_tokens=1000, cache_tokens=cache)
    shorter, longer = (value(reward, sized(n)) for n in sorted((one, other)))
    assert -1.0 <= longer <= shorter <= 0.0


def test_soft_overlong_refuses_a_cache_larger_than_the_whole() -> None:
    with pytest.raises(ValidationError, match=r"cache_tokens is 101 of max_tokens 100; it is the last part"):
        SoftOverlong(max_tokens=100, cache_tokens=101)


@pytest.mark.parametrize(
    ("n_tokens", "right", "expected"),
    [
        (0, True, 1.0),
        (500, True, 0.75),
        (0, False, -1.0),
        (500, False, -0.75),
        (250, True, 0.5 + 0.25 * (1 + math.cos(math.pi / 4))),
        (1000, True, -1.0),  # at the limit it was cut off
        (1000, False, -1.0),
        (2000, True, -1.0),  # where a bare cosine is back at its start
        (2000, False, -1.0),
    ],
)
def test_cosine_is_appendix_c1_and_stays_down_beyond_the_limit(n_tokens: int, right: bool, expected: float) -> None:
    assert value(CosineLength(max_tokens=1000), sized(n_tokens, right=right)) == pytest.approx(expected, abs=1e-12)


@given(LENGTHS, LENGTHS)
def test_cosine_pays_the_shorter_right_and_the_longer_wrong_answer(one: int, other: int) -> None:
    reward = CosineLength(max_tokens=1000)
    shorter, longer = sorted((one, other))
    assert value(reward, sized(longer, right=True)) <= value(reward, sized(shorter, right=True))
    if longer < 1000:
        assert value(reward, sized(longer, right=False)) >= value(reward, sized(shorter, right=False))


@given(LENGTHS, LENGTHS)
def test_cosine_puts_every_right_answer_within_the_limit_above_every_wrong_one(right: int, wrong: int) -> None:
    reward = CosineLength(max_tokens=3001)
    assert value(reward, sized(right, right=True)) > value(reward, sized(wrong, right=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"right": [1.0, -1.0]}, "has to lie above wrong"),
        ({"right": [0.5, 1.0]}, "would pay a right answer for being long"),
        ({"exceeded": 0.0}, "running on would pay"),
        ({"right": [1.0]}, "at least 2 items"),
        ({"right": [math.nan, 0.5]}, "finite"),
    ],
)
def test_cosine_refuses_ranges_that_pay_for_the_wrong_thing(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CosineLength(max_tokens=100, **settings)  # type: ignore[arg-type]


def test_cosine_takes_the_papers_own_values() -> None:
    reward = CosineLength(max_tokens=100, right=[2.0, 1.0], wrong=[-10.0, 0.0], exceeded=-10.0)
    assert value(reward, sized(0, right=True)) == 2.0
    assert value(reward, sized(50, right=False)) == pytest.approx(-5.0)
    assert reward.bound == 10.0


def test_kimi_is_section_233() -> None:
    judged = KimiLength().judge_group(group([(100, True), (200, True), (300, True), (100, False), (300, False)]))
    assert [one.value for one in judged] == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_kimi_gives_nothing_where_all_are_of_one_length() -> None:
    judged = KimiLength().judge_group(group([(100, True), (100, False), (100, True)]))
    assert [(one.value, one.reason) for one in judged] == [(0.0, "all of one length")] * 3
    assert KimiLength().judge(sized(7, right=True)).value == 0.0
    assert KimiLength().judge_group([]) == []


@given(st.lists(st.tuples(LENGTHS, RIGHT), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_kimi_does_not_look_at_the_order(drawn: list[tuple[int, bool]], random: Random) -> None:
    rows = group(drawn)
    order = list(range(len(rows)))
    random.shuffle(order)
    judged = KimiLength().judge_group(rows)
    shuffled = KimiLength().judge_group([rows[place] for place in order])
    assert shuffled == [judged[place] for place in order]


@given(st.lists(st.tuples(LENGTHS, RIGHT), min_size=2, max_size=8))
def test_kimi_never_pays_a_wrong_answer_and_pays_the_shorter_right_one(drawn: list[tuple[int, bool]]) -> None:
    judged = KimiLength().judge_group(group(drawn))
    for (length, right), verdict in zip(drawn, judged, strict=True):
        assert verdict.value is not None
        assert abs(verdict.value) <= KimiLength().bound
        assert right or verdict.value <= 0
        for (other_length, other_right), other in zip(drawn, judged, strict=True):
            assert other.value is not None
            if right == other_right and length < other_length:
                assert verdict.value >= other.value


def test_kimi_judges_each_prompt_by_its_own_group() -> None:
    rows = [
        sized(n, right=True, prompt_id=prompt_id) for n, prompt_id in [(10, "a"), (100, "b"), (20, "a"), (200, "b")]
    ]
    assert [one.value for one in KimiLength().judge_many(rows)] == [0.5, 0.5, -0.5, -0.5]


@given(st.lists(st.tuples(LENGTHS, RIGHT), min_size=1, max_size=8))
def test_a_batch_is_its_completions(drawn: list[tuple[int, bool]]) -> None:
    rows = group(drawn)
    for reward in (SoftOverlong(max_tokens=1000, cache_tokens=500), CosineLength(max_tokens=1000)):
        assert reward.judge_many(rows) == [reward.judge(row) for row in rows]


@pytest.mark.parametrize("reward", [SoftOverlong(), CosineLength(max_tokens=100), KimiLength()])
def test_a_bare_string_has_no_length(reward: SoftOverlong | CosineLength | KimiLength) -> None:
    assert reward.judge("2") == Verdict(value=None, reason="no token count")


@pytest.mark.parametrize("reward", [CosineLength(max_tokens=100), KimiLength()])
def test_without_an_outcome_there_is_no_verdict(reward: CosineLength | KimiLength) -> None:
    assert reward.judge(sized(5)) == Verdict(value=None, reason="no outcome")
    unusable = {"math_answer": Verdict(value=None, reason="unusable gold")}
    assert reward.judge(sized(5).model_copy(update={"verdicts": unusable})).value is None
