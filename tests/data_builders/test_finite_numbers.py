"""Which numbers a row may hold."""

from typing import Any

import pytest

from qwen_align.data_builders.finite_numbers import parse_finite_float, to_finite_float


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (-0.5, -0.5),
        (2**60 + 1, float(2**60)),
        (int("9" * 308), 1e308),
        (True, None),
        (None, None),
        (float("nan"), None),
        (float("-inf"), None),
        (int("9" * 309), None),
        (-int("9" * 400), None),
        ([1], None),
    ],
)
def test_numbers(value: Any, number: float | None) -> None:
    assert to_finite_float(value) == parse_finite_float(value) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5),
        (" -3 ", -3.0),
        ("+.5e-1", 0.05),
        ("5.", 5.0),
        ("1e400", None),
        ("9" * 400, None),
        ("nan", None),
        ("inf", None),
        ("1_000", None),
        ("1,5", None),
        ("٣", None),
        ("", None),
        ("true", None),
    ],
)
def test_a_number_in_a_text(text: str, number: float | None) -> None:
    assert to_finite_float(text) is None
    assert parse_finite_float(text) == number
