"""Computes longest common subsequences, and finds benchmark texts that share a long one with a given text.

Lengths come from bit-parallel rows of the usual table (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004):
a zero bit is a position where the length grows. A text is compared with those candidates only that have enough units in
common in any order, which bounds the subsequence from above; so the answer is that of comparing with all.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

_MAX_BITS = 4096  # units of a text that become bits; a longer one is read against all candidates' bits at once


class Alike(NamedTuple):
    """A similar benchmark text, by its index, with the number and share of units in common.

    Units are words or tokens, in common in the same order.
    """

    text: int
    common: int
    share: Fraction


def compute_lcs_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Returns the length of the longest common subsequence of two sequences."""
    short, long = (left, right) if len(left) <= len(right) else (right, left)
    return _compute_length_from_bits(_build_position_bits(short), long, len(short))


def compute_shorter_share(common: int, n_left: int, n_right: int) -> Fraction:
    """Returns the number of common units divided by the length of the shorter text. Returns 0 if that is empty."""
    return Fraction(common, max(1, min(n_left, n_right)))


class SubsequenceIndex:
    """An index of benchmark texts that finds those nearly contained in another text."""

    def __init__(self, texts: Iterable[Sequence[Hashable]], *, min_common: int, min_share: Fraction) -> None:
        import numpy as np

        self._texts = list(texts)
        self._lengths = np.array([len(text) for text in self._texts], dtype=np.int64)
        self._min_common = min_common
        self._min_share = min_share
        holders: dict[tuple[Hashable, int], list[int]] = {}
        for index, text in enumerate(self._texts):
            for unit, count in Counter(text).items():
                for occurrence in range(count):
                    holders.setdefault((unit, occurrence), []).append(index)
        # The texts that have a unit at least n times; two texts share as many units as they share of these keys.
        self._holders = {key: np.array(indices, dtype=np.int32) for key, indices in holders.items()}

    def find_first_alike(self, text: Sequence[Hashable]) -> Alike | None:
        """Returns the benchmark text with the most units in common that reaches both thresholds.

        Returns None if there is none.
        """
        indices = self._list_candidates(text)
        if not indices:
            return None
        for index, common in self._measure_candidates(indices, text):
            share = compute_shorter_share(common, len(text), len(self._texts[index]))
            if common >= self._min_common and share >= self._min_share:
                return Alike(index, common, share)
        return None

    def _measure_candidates(self, indices: Sequence[int], text: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
        """Yields each candidate's index with the length of its longest common subsequence with the text."""
        if len(text) > _MAX_BITS:
            yield from zip(
                indices, _compute_lengths_together([self._texts[index] for index in indices], text), strict=True
            )
        else:
            position_bits = _build_position_bits(text)
            yield from (
                (index, _compute_length_from_bits(position_bits, self._texts[index], len(text))) for index in indices
            )

    def _list_candidates(self, text: Sequence[Hashable]) -> list[int]:
        """Lists the indices of benchmark texts that share enough units with a text in any order.

        The largest share comes first.
        """
        import numpy as np

        keys = ((unit, occurrence) for unit, count in Counter(text).items() for occurrence in range(count))
        holder_lists: list[Any] = [self._holders[key] for key in keys if key in self._holders]
        if len(holder_lists) < self._min_common:
            return []
        shared = np.bincount(np.concatenate(holder_lists), minlength=len(self._texts))
        shorter = np.minimum(self._lengths, len(text))
        has_enough = shared * self._min_share.denominator >= shorter * self._min_share.numerator
        indices = np.flatnonzero(has_enough & (shared >= self._min_common))
        order = np.argsort(-(shared[indices] / shorter[indices]), kind="stable")
        return [int(index) for index in indices[order]]


def _build_position_bits(units: Sequence[Hashable]) -> dict[Hashable, int]:
    """Returns a dict from each unit of a sequence to an integer with a bit set for each of its positions."""
    bits: dict[Hashable, int] = {}
    for position, unit in enumerate(units):
        bits[unit] = bits.get(unit, 0) | 1 << position
    return bits


def _compute_length_from_bits(position_bits: dict[Hashable, int], units: Sequence[Hashable], n_bits: int) -> int:
    """Computes the length of the longest common subsequence from one sequence's position bits."""
    all_bits = row = (1 << n_bits) - 1
    for unit in units:
        unit_bits = position_bits.get(unit)
        if unit_bits is not None:
            common = row & unit_bits
            row = (row + common | row - common) & all_bits
    return n_bits - row.bit_count()


def _compute_lengths_together(texts: Sequence[Sequence[Hashable]], units: Sequence[Hashable]) -> list[int]:
    """Computes the longest common subsequence's length of one sequence with each of many texts in one pass.

    The texts' bits lie side by side with one bit between them to catch the carry.
    """
    starts: list[int] = []
    all_bits, end = 0, 0
    position_bits: dict[Hashable, int] = {}
    for text in texts:
        starts.append(end)
        all_bits |= (1 << len(text)) - 1 << end
        for unit, text_bits in _build_position_bits(text).items():
            position_bits[unit] = position_bits.get(unit, 0) | text_bits << end
        end += len(text) + 1
    row = all_bits
    for unit in units:
        unit_bits = position_bits.get(unit)
        if unit_bits is not None:
            common = row & unit_bits
            row = (row + common | row - common) & all_bits
    return [
        len(text) - (row >> start & (1 << len(text)) - 1).bit_count() for text, start in zip(texts, starts, strict=True)
    ]
