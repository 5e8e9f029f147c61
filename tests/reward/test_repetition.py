"""Repetition: the share of repeated n-grams, checked against counting them, on words, characters and token ids."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.repetition import Repetition, compute_repeated_share, split_words

# text, n, value with max_penalty -1, why
CASES = [
    ("", 3, 0.0, "no units at all"),
    ("so it", 3, 0.0, "fewer than n units"),
    ("so it is", 3, 0.0, "one n-gram"),
    ("a b c d e", 3, 0.0, "no n-gram twice"),
    ("a a a a a", 3, -2 / 3, "three n-grams, one kind"),
    ("A a, a. A! a", 3, -2 / 3, "case and punctuation do not hide a repeat"),
    ("a b a b a b", 2, -3 / 5, "five n-grams, two kinds"),
    ("a a a a", 1, -3 / 4, "n = 1 counts words"),
    ("三加四等于七", 3, 0.0, "Chinese by characters"),
    ("好好好好好", 3, -2 / 3, "a repeated Chinese character"),
    ("答案是七答案是七", 4, -1 / 5, "a repeated Chinese clause: four characters again"),
    ("ok好ok好ok", 3, -1 / 3, "Latin words and Chinese characters mixed, without spaces"),
]


def completion(text: str, token_ids: list[int] | None) -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    return Completion(
        prompt_id="p", sample=0, prompt=prompt, text=text, finish_reason="stop", n_tokens=1, token_ids=token_ids
    )


@pytest.mark.parametrize(("text", "n", "value", "why"), CASES, ids=[case[3] for case in CASES])
def test_case(text: str, n: int, value: float, why: str) -> None:
    assert Repetition(n=n).judge(text).value == pytest.approx(value), why
    assert Repetition(n=n).judge(completion(text, None)) == Repetition(n=n).judge(text)


def test_token_ids_go_before_words() -> None:
    assert Repetition().judge(completion("a a a a a", [1, 2, 3, 4, 5])).value == 0.0
    assert Repetition().judge(completion("a b c d e", [7, 7, 7, 7])).value == -0.5
    assert Repetition().judge(completion("a a a a a", [])).reason == "too short to repeat"


def test_words_keep_their_letters() -> None:
    assert split_words("Don't 3.5, x_1 好的 ok") == ["don", "t", "3", "5", "x_1", "好", "的", "ok"]


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 12))
def test_the_share_is_what_counting_gives(said: list[int], n: int) -> None:
    grams = [tuple(said[place : place + n]) for place in range(len(said) - n + 1)]
    expected = 1 - len(set(grams)) / len(grams) if grams else None
    assert compute_repeated_share(said, n) == expected


@given(st.lists(st.integers(0, 3), min_size=3, max_size=20))
def test_saying_it_all_again_never_pays(said: list[int]) -> None:
    once, twice = (Repetition().judge(completion("", ids)).value for ids in (said, said * 2))
    assert once is not None
    assert twice is not None
    assert -1.0 <= twice <= once <= 0.0


@given(st.text(max_size=60), st.floats(min_value=-5, max_value=0))
def test_the_value_is_within_the_bound(text: str, max_penalty: float) -> None:
    reward = Repetition(max_penalty=max_penalty)
    value = reward.judge(text).value
    assert value is not None
    assert -reward.bound <= value <= 0.0


def test_time_does_not_depend_on_n() -> None:
    said = [place % 997 for place in range(50_000)]

    def seconds(n: int) -> float:
        start = time.process_time()
        compute_repeated_share(said, n)
        return time.process_time() - start

    short = min(seconds(3) for _ in range(3))
    assert min(seconds(4000) for _ in range(3)) < 20 * short  # names of doubled width: 12 passes instead of 2
