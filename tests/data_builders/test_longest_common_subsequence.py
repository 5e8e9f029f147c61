"""Lengths against the textbook's table, and the index against comparing with every text."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.data_builders import longest_common_subsequence
from qwen_align.data_builders.longest_common_subsequence import (
    SubsequenceIndex,
    compute_lcs_length,
    compute_shorter_share,
)

UNITS = st.lists(st.sampled_from("abcd"), max_size=20)


def compute_lcs_by_table(one: list[str], other: list[str]) -> int:
    row = [0] * (len(other) + 1)
    for left in one:
        before = row
        row = [0]
        for index, right in enumerate(other):
            row.append(before[index] + 1 if left == right else max(row[index], before[index + 1]))
    return row[-1]


@given(UNITS, UNITS)
def test_length_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    assert compute_lcs_length(one, other) == compute_lcs_by_table(one, other)


@pytest.mark.parametrize("longest_bits", [0, 4096])
@given(texts=st.lists(UNITS, max_size=6), text=UNITS, min_common=st.integers(1, 6), tenths=st.integers(1, 10))
def test_the_index_finds_what_comparing_with_all_finds(
    longest_bits: int, texts: list[list[str]], text: list[str], min_common: int, tenths: int
) -> None:
    min_share = Fraction(tenths, 10)
    all_alike = {}
    for index, other in enumerate(texts):
        common = compute_lcs_by_table(text, other)
        share = compute_shorter_share(common, len(text), len(other))
        if common >= min_common and share >= min_share:
            all_alike[index] = (common, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longest_common_subsequence, "_MAX_BITS", longest_bits)
        found = SubsequenceIndex(texts, min_common=min_common, min_share=min_share).find_first_alike(text)
    if found is None:
        assert not all_alike
    else:
        assert all_alike[found.text] == (found.common, found.share)


def test_long_texts_and_short_ones_give_the_same() -> None:
    short = [f"w{place % 50}" for place in range(60)]
    texts = [["x"] * 70, short]
    index = SubsequenceIndex(texts, min_common=13, min_share=Fraction(1))
    for padding in (10, 3000, 20000):
        found = index.find_first_alike(["pad"] * padding + short)
        assert found is not None
        assert (found.text, found.common, found.share) == (1, 60, 1)
    assert index.find_first_alike(["pad"] * 20000 + short[::-1]) is None


def test_thresholds_are_the_decimals_that_were_written() -> None:
    text = [str(index) for index in range(35)]
    half = text[:21] + ["x"] * 14
    assert 0.6 * 35 == 21  # so is the rule's; as a float product 0.07 * 100 is 7.000000000000001
    assert SubsequenceIndex([half], min_common=1, min_share=Fraction("0.6")).find_first_alike(text) is not None
    hundred = [str(index) for index in range(100)]
    seven = hundred[:7] + ["x"] * 93
    assert 0.07 * 100 > 7
    assert SubsequenceIndex([seven], min_common=1, min_share=Fraction("0.07")).find_first_alike(hundred) is not None
