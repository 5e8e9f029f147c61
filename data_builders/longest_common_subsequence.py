"""Lengths of longest common subsequences, and the texts of a benchmark that share a long one with a given text.

Lengths come from bit-parallel rows of the usual table (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004):
a zero bit is a place where the length grows. A text is compared with those candidates only that have enough units in
common in any order, which bounds the subsequence from above; so the answer is that of comparing with all.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

_LONGEST_BITS = 4096  # units of a text that become bits; a longer one is read against all candidates' bits at once


class Alike(NamedTuple):
    """A benchmark's text by place, and how many units it has in common, in order, with the text asked about."""

    text: int
    common: int
    share: Fraction


def lcs_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many units the longest common subsequence of two sequences has."""
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    return _length(_places(short), long, len(short))


def share_of_shorter(common: int, n_one: int, n_other: int) -> Fraction:
    """What `common` units are of the shorter of two texts; 0 where it is empty."""
    return Fraction(common, max(1, min(n_one, n_other)))


class SubsequenceIndex:
    """Texts of a benchmark as sequences of units, to be asked which one is nearly contained in another text."""

    def __init__(self, texts: Iterable[Sequence[Hashable]], *, min_common: int, min_share: Fraction) -> None:
        import numpy as np

        self._texts = list(texts)
        self._lengths = np.array([len(text) for text in self._texts], dtype=np.int64)
        self._min_common = min_common
        self._min_share = min_share
        holders: dict[tuple[Hashable, int], list[int]] = {}
        for place, text in enumerate(self._texts):
            for unit, count in Counter(text).items():
                for nth in range(count):
                    holders.setdefault((unit, nth), []).append(place)
        # Who has a unit at least n times. What units two texts share, counted, is what the two have of these.
        self._holders = {key: np.array(places, dtype=np.int32) for key, places in holders.items()}

    def first_alike(self, text: Sequence[Hashable]) -> Alike | None:
        """The first benchmark's text, most units in common first, that reaches both thresholds."""
        places = self._candidates(text)
        if not places:
            return None
        for place, common in self._with_lengths(places, text):
            share = share_of_shorter(common, len(text), len(self._texts[place]))
            if common >= self._min_common and share >= self._min_share:
                return Alike(place, common, share)
        return None

    def _with_lengths(self, places: Sequence[int], text: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
        if len(text) > _LONGEST_BITS:
            yield from zip(places, _lengths_at_once([self._texts[place] for place in places], text), strict=True)
        else:
            bits = _places(text)
            yield from ((place, _length(bits, self._texts[place], len(text))) for place in places)

    def _candidates(self, text: Sequence[Hashable]) -> list[int]:
        """Places of the benchmark's texts that share enough units in any order, the largest share first."""
        import numpy as np

        keys = ((unit, nth) for unit, count in Counter(text).items() for nth in range(count))
        held: list[Any] = [self._holders[key] for key in keys if key in self._holders]
        if len(held) < self._min_common:
            return []
        shared = np.bincount(np.concatenate(held), minlength=len(self._texts))
        shorter = np.minimum(self._lengths, len(text))
        enough = shared * self._min_share.denominator >= shorter * self._min_share.numerator
        places = np.flatnonzero(enough & (shared >= self._min_common))
        order = np.argsort(-(shared[places] / shorter[places]), kind="stable")
        return [int(place) for place in places[order]]


def _places(units: Sequence[Hashable]) -> dict[Hashable, int]:
    """For each unit an integer whose set bits are the places where it stands."""
    bits: dict[Hashable, int] = {}
    for place, unit in enumerate(units):
        bits[unit] = bits.get(unit, 0) | 1 << place
    return bits


def _length(bits: dict[Hashable, int], units: Sequence[Hashable], n_bits: int) -> int:
    every = row = (1 << n_bits) - 1
    for unit in units:
        at = bits.get(unit)
        if at is not None:
            common = row & at
            row = (row + common | row - common) & every
    return n_bits - row.bit_count()


def _lengths_at_once(texts: Sequence[Sequence[Hashable]], units: Sequence[Hashable]) -> list[int]:
    """The length with each of the texts, whose bits lie side by side with one between them to catch the carry."""
    starts: list[int] = []
    every, end = 0, 0
    bits: dict[Hashable, int] = {}
    for text in texts:
        starts.append(end)
        every |= (1 << len(text)) - 1 << end
        for unit, places in _places(text).items():
            bits[unit] = bits.get(unit, 0) | places << end
        end += len(text) + 1
    row = every
    for unit in units:
        at = bits.get(unit)
        if at is not None:
            common = row & at
            row = (row + common | row - common) & every
    return [
        len(text) - (row >> start & (1 << len(text)) - 1).bit_count() for text, start in zip(texts, starts, strict=True)
    ]
