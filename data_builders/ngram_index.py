"""Finds the n-grams that a text shares with a benchmark, without building the text's own n-grams.

Only the benchmark is held: its n-grams, and its shorter grams, `STRIDE - 1` words less. Every n-gram of a text has a
shorter gram that starts at a multiple of the stride inside it; if none of those is the benchmark's, none of its
n-grams is. Sets compare the words themselves once hashes meet, so nothing rests on a hash.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

STRIDE = 4  # measured: 3 to 5 are fastest at n = 8 and n = 13; larger ones examine more texts in vain


class SharedNgram(NamedTuple):
    """An n-gram shared with a benchmark, as text, with the indices of the benchmark texts that have it."""

    words: str
    texts: tuple[int, ...]


class NgramIndex:
    """An index of the word n-grams of a benchmark's texts. Words hold no white space."""

    def __init__(self, texts: Iterable[Sequence[str]], n: int) -> None:
        self.n = n
        self._n_short = max(1, n - STRIDE + 1)
        self._texts: dict[str, tuple[int, ...]] = {}
        self._short: set[tuple[str, ...]] = set()
        interned: dict[str, str] = {}
        for index, text in enumerate(texts):
            words = [interned.setdefault(word, word) for word in text]
            if len(words) < n:
                continue
            self._short.update(zip(*(words[skip:] for skip in range(self._n_short)), strict=False))
            only_this = (index,)
            for start in range(len(words) - n + 1):
                ngram = " ".join(words[start : start + n])
                known = self._texts.setdefault(ngram, only_this)
                if known[-1] != index:
                    self._texts[ngram] = (*known, index)

    def find_shared(self, words: Sequence[str]) -> Iterator[SharedNgram]:
        """Yields the n-grams that a text, given as words, shares with the benchmark, in the text's order."""
        n, n_short = self.n, self._n_short
        slack = n - n_short  # a short gram at `slack` lies inside the n-grams that start at 0 … slack
        grams = zip(*(words[slack + skip :: slack + 1] for skip in range(n_short)), strict=False)
        if self._short.isdisjoint(grams):  # runs in C; most texts without a shared n-gram end here
            return
        for gram_start in range(slack, len(words) - n_short + 1, slack + 1):
            if tuple(words[gram_start : gram_start + n_short]) not in self._short:
                continue
            for start in range(gram_start - slack, min(gram_start, len(words) - n) + 1):
                ngram = " ".join(words[start : start + n])
                if ngram in self._texts:
                    yield SharedNgram(ngram, self._texts[ngram])
