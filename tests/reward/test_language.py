"""Language consistency by table, on prompts' languages, against hostile texts, and on real texts."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.language import LanguageShare, compute_language_shares, extract_prose
from tests.clock import cpu_limit

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
CASES = [json.loads(line) for line in (ROOT / "tests/cases/language.jsonl").read_text("utf-8").splitlines()]
ENGLISH, CHINESE = "We add three and four to get seven.", "三加四等于七。"


def completion(prompt: str, text: str) -> Completion:
    turns = [Message(role="user", content="earlier"), Message(role="assistant", content="yes")]
    asked = [*turns, Message(role="user", content=prompt)]
    return Completion(prompt_id="p", sample=0, prompt=asked, text=text, finish_reason="stop", n_tokens=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_case(case: dict[str, Any]) -> None:
    settings = {key: case[key] for key in ("target", "where", "threshold") if key in case}
    verdict = LanguageShare(**settings).judge(case["text"])
    assert verdict.value == pytest.approx(case["value"])
    assert verdict.reason == case.get("reason", verdict.reason)


@pytest.mark.parametrize(
    ("prompt", "text", "value"),
    [
        ("What is three plus four?", ENGLISH, 1.0),
        ("What is three plus four?", CHINESE, 0.0),
        ("三加四是多少？", CHINESE, 1.0),
        ("三加四是多少？", ENGLISH, 0.0),
        ("计算 $\\text{area of the circle}$ 的值 /no_think", CHINESE, 1.0),
        ("3+4=?", ENGLISH, None),
        ("", ENGLISH, None),
        ("Сколько будет три плюс четыре?", ENGLISH, None),
    ],
)
def test_the_language_of_the_last_user_message(prompt: str, text: str, value: float | None) -> None:
    verdict = LanguageShare(target="prompt").judge(completion(prompt, text))
    assert verdict.value == value
    assert (verdict.reason == "no language in the prompt") == (value is None)


def test_a_bare_string_has_no_prompt() -> None:
    assert LanguageShare().judge(ENGLISH).value is None


@given(st.text(alphabet=st.sampled_from('ab cé三の가я$`\\"“”\n[]()<>'), max_size=60))
def test_shares_are_a_division_of_the_words(text: str) -> None:
    found = compute_language_shares(text)
    assert not found or sum(found.values()) == pytest.approx(1.0)
    assert all(0 < share <= 1 for share in found.values())


@given(
    st.lists(st.sampled_from(["three", "seven", "所以", "答案是七", "7", "$x$"]), min_size=1, max_size=12),
    st.sampled_from(["\\begin{array}three\\end{array}", "`seven`", "$$\\text{seven}$$", "https://a.b/three"]),
    st.integers(0, 12),
)
def test_what_is_no_prose_changes_nothing(words: list[str], extra: str, place: int) -> None:
    with_extra = [*words[:place], extra, *words[place:]]
    assert compute_language_shares(" ".join(with_extra)) == compute_language_shares(" ".join(words))


@given(st.integers(0, 10), st.integers(0, 10))
def test_more_words_in_the_language_never_cost(n_inside: int, n_outside: int) -> None:
    def value(inside: int) -> float:
        return LanguageShare(target="zh").judge("七" * inside + " seven" * n_outside).value or 0.0

    assert value(n_inside) <= value(n_inside + 1)


HOSTILE = [
    "`\n" * 50_000,
    "$ " * 50_001,
    "\\[" * 50_000,
    "\\begin{a}" * 12_000,
    '"' * 100_000,
    "“" * 100_000,
    "_a" * 50_000,
    "```" * 33_333,
    "https://" * 12_500,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:9]))
def test_time_is_linear(text: str) -> None:
    with cpu_limit(1.0, text):  # 0.1 s measured; a quadratic scan takes minutes
        extract_prose(text)
        LanguageShare(target="en").judge(text)


@pytest.mark.skipif(
    not (DATA / "chat").is_dir(),
    reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds chat",
)
@pytest.mark.parametrize(("name", "target"), [("alpaca_en_demo.json", "en"), ("alpaca_zh_demo.json", "zh")])
def test_real_answers_are_in_their_language(name: str, target: str) -> None:
    rows = json.loads((DATA / "chat" / name).read_text("utf-8"))[:300]
    texts = [row["output"] for row in rows if compute_language_shares(row["output"])]
    values = [LanguageShare.model_validate({"target": target}).judge(text).value or 0.0 for text in texts]
    assert sum(values) / len(values) > 0.95
    assert sum(value > 0.5 for value in values) / len(values) > 0.97
