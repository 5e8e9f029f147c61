"""The n-grams found through strides are all of those a text shares, in order, and no others."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_align.data_builders.ngram_index import STRIDE, NgramIndex

WORDS = st.lists(st.sampled_from("ab"), max_size=24)


def find_by_brute_force(
    texts: Sequence[Sequence[str]], words: Sequence[str], n: int
) -> list[tuple[str, tuple[int, ...]]]:
    def grams(text: Sequence[str]) -> list[str]:
        return [" ".join(text[start : start + n]) for start in range(len(text) - n + 1)]

    holders = {gram: tuple(index for index, text in enumerate(texts) if gram in grams(text)) for gram in grams(words)}
    return [(gram, holders[gram]) for gram in grams(words) if holders[gram]]


@given(st.lists(WORDS, max_size=4), WORDS, st.integers(1, 2 * STRIDE + 1))
@example([list("abab")], list("abab"), 4)
@example([[]], [], 1)
def test_all_shared_ngrams_in_order(texts: list[list[str]], words: list[str], n: int) -> None:
    assert list(NgramIndex(texts, n).find_shared(words)) == find_by_brute_force(texts, words, n)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("before", range(9))
def test_an_ngram_is_found_wherever_it_stands(n: int, before: int) -> None:
    ngram = [f"w{place}" for place in range(n)]
    index = NgramIndex([["x"] * 20, ["y", *ngram, "z"]], n)
    for after in (0, 1, 7):
        found = list(index.find_shared(["p"] * before + ngram + ["q"] * after))
        assert found == [(" ".join(ngram), (1,))]
    assert not list(index.find_shared(["p"] * before + ngram[:-1] + ["q"] * 9))
