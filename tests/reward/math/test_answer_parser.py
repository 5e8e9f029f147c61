"""Golds with many right and wrong ways to write them, and what the parsers make of a text."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.math import sympy_fallback
from qwen_align.reward.math.answer_parser import parse_answer
from qwen_align.reward.math.answer_values import (
    BaseNumeral,
    BracketedTuple,
    Choice,
    Matrix,
    Ratio,
    RelationChain,
    Scalar,
    SetUnion,
    UnorderedItems,
    Words,
)
from qwen_align.reward.math.final_answer import extract_declared_answer
from qwen_align.reward.math.latex_normalization import normalize_latex
from qwen_align.reward.math.number_parser import parse_plain_number, parse_spelled_number
from qwen_align.reward.math.units import get_conversion_factor, split_off_unit
from qwen_align.reward.math_answer import MathAnswer

TABLE = Path(__file__).parents[2] / "cases" / "math_gold_spellings.jsonl"
CASES = [json.loads(line) for line in TABLE.read_text("utf-8").splitlines()]
REWARD = MathAnswer()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['why']}: {case['gold']}")
def test_ways_to_say_a_gold(case: dict[str, Any]) -> None:
    def list_paid(answers: list[str]) -> list[str]:
        """Returns the answers that are paid."""
        return [
            answer for answer in answers if REWARD.judge(rf"It is $\boxed{{{answer}}}$.", case["gold"]).value == 1.0
        ]

    assert list_paid(case["wrong"]) == []
    assert list_paid(case["right"]) == case["right"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (r"3\sqrt{2}", Scalar), ("east", Words), ("(C)", Choice), ("C. 12", Choice), ("(1,2]", BracketedTuple),
        ("1,2", UnorderedItems), (r"\{1\}", UnorderedItems), (r"1\pm\sqrt2", UnorderedItems),
        (r"(0,1)\cup(2,3)", SetUnion), (r"\mathbb{R}\setminus\{0\}", SetUnion),
        (r"\begin{bmatrix}1&2\end{bmatrix}", Matrix), ("2x+1=0", RelationChain), (r"a \ge b", RelationChain),
        ("101_2", BaseNumeral), ("3:2", Ratio), ("7:32", Ratio), ("x y z", Scalar), ("5 (or 6)", Words),
        (r"\text{all real numbers}", BracketedTuple), ("1,234", Scalar), ("32, 349", UnorderedItems),
        (r"\infty", Scalar), ("f(x)", Scalar), ("x_1", Scalar),
    ],
)  # fmt: skip
def test_kinds_of_values(text: str, kind: type) -> None:
    assert type(parse_answer(text)) is kind


@pytest.mark.parametrize("text", ["", "?", " ", "{}", r"\text{}", "None", "nan", "$$", r"\boxed{}"])
def test_what_says_nothing(text: str) -> None:
    assert parse_answer(text) is None


@pytest.mark.parametrize(
    ("first_text", "second_text", "factor"),
    [
        (r"1\text{ m}", "1 cm", Fraction(100)),
        ("1 inch", "1 cm", Fraction(127, 50)),
        ("1 km/h", r"1 \text{ m/s}", Fraction(5, 18)),
        ("1 mph", "1 miles per hour", Fraction(1)),
        ("1 hour", "1 minutes", Fraction(60)),
        (r"1 \text{ m}^2", r"1 \text{ cm}^2", Fraction(10_000)),
        ("1 liter", r"1 \text{ cm}^3", Fraction(1_000)),
        (r"\$1", "1 cents", Fraction(100)),
        ("1 square units", "1 cm^2", Fraction(1)),
        ("1 cm", "1 kg", None),
        ("1 cm", "1 cm^2", None),
        ("1 apples", "1 oranges", None),
        ("1 year", "1 day", None),
    ],
)
def test_units_are_converted_exactly_or_not_at_all(first_text: str, second_text: str, factor: Fraction | None) -> None:
    first_unit, second_unit = (
        split_off_unit(normalize_latex(first_text)).unit,
        split_off_unit(normalize_latex(second_text)).unit,
    )
    assert first_unit is not None
    assert second_unit is not None
    assert get_conversion_factor(first_unit, second_unit) == factor


@pytest.mark.parametrize("text", ["2h", "x^2 t", r"\frac{a}{2}c", r"\sin 30°", "5", "cm", r"2\cos 15°", "5 million of"])
def test_what_has_no_unit(text: str) -> None:
    assert split_off_unit(text).unit is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-1,234.50", Fraction(-2469, 2)), (r"\frac{-7}{3}", Fraction(-7, 3)), ("2 1/3", Fraction(7, 3)),
        (r"2\frac13", Fraction(7, 3)), ("1/0", None), ("--5", None), ("0,123", None), ("1.2.3", None),
    ],
)  # fmt: skip
def test_plain_numbers(text: str, number: Fraction | None) -> None:
    assert parse_plain_number(text) == number


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("十五", 15), ("二十", 20), ("一百零五", 105), ("三万二千", 32_000), ("两", 2), ("负五", -5),
        ("二〇二四", 2024), ("三分之二", Fraction(2, 3)), ("三点五", Fraction(7, 2)), ("seven", 7), ("apples", None),
        ("零分之一", None),
    ],
)  # fmt: skip
def test_spelled_numbers(word: str, number: Fraction | None) -> None:
    assert parse_spelled_number(word) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("We add.\n\nThe final answer is $7$.", "7"),
        ("$28$ %", "28 %"),
        ("It is $1$ and $2$.", "1, 2"),
        ("nothing\nat all", None),
        ("It is not $7$.", None),
        ("", None),
    ],
)
def test_declared_answers(text: str, answer: str | None) -> None:
    assert extract_declared_answer(text) == answer


def test_only_calculus_reaches_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_pairs: list[Any] = []
    monkeypatch.setattr(
        sympy_fallback, "judge_pairs", lambda pairs, deadline=None: asked_pairs.append(pairs) or "wrong"
    )
    for answer in ("133!", "9^{9^{9}}", "silent", "x^2+1=0", "101_2", "5\\text{ cm}", r"\sin^{40} x", "x^{x^x}", "|||"):
        assert REWARD.judge(rf"\boxed{{{answer}}}", r"x^{x^{x}}+1").reason == "wrong"
    assert asked_pairs == []
    REWARD.judge(r"\boxed{\int_0^1 \sqrt{t}\,dt}", r"\frac{2}{3}")
    assert asked_pairs == [((r"\frac{2}{3}", r"\int_0^1 \sqrt{t} dt"),)]
