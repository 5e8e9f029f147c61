"""What counts as a unit."""

import pytest

from qwen_align.data_builders.text_to_words import split_words, split_words_and_signs


@pytest.mark.parametrize(
    ("text", "only_words", "with_signs"),
    [
        ("", "", ""),
        ("How many?", "how many", "how many ?"),
        ("x+y = 3.5", "x y 3 5", "x + y = 3 . 5"),
        ("\\frac{1}{2}", "frac 1 2", "\\ frac { 1 } { 2 }"),
        ("a_1", "a 1", "a _ 1"),
        ("苹果有3个ab？", "苹 果 有 3 个 ab", "苹 果 有 3 个 ab ?"),
        ("りんごは２個", "り ん ご は 2 個", "り ん ご は 2 個"),
        ("Café ÉTÉ", "café été", "café été"),
        (" \n\t", "", ""),
    ],
)
def test_units(text: str, only_words: str, with_signs: str) -> None:
    assert split_words(text) == only_words.split()
    assert split_words_and_signs(text) == with_signs.split()
