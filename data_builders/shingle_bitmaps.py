"""Stores bit maps of shingle sets, which rule out most pairs of dissimilar sets without counting."""

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_MIN_BITS_PER_SHINGLE = 8  # at least: so full, a map hides one in nine of the shingles that the other set lacks
_MIN_BITS = 256
_BLOCK_MAPS = 4096  # maps compared at once: so many stay in the processor's cache
_ROUNDING = 1e-6  # what an inequality of floats may be off by, in shingles

Hashes = NDArray[np.uint32]
Indices = NDArray[np.uintc]
_Number = TypeVar("_Number", np.int32, np.uint64)


class ShingleMaps:
    """A store of shingle sets, given by their hashes, each under an index counted from 0.

    In a map the bits are set that the set's hashes fall on. A bit that is set for one set and not for another is of a
    shingle that the other does not have, so the maps bound from above how many two sets can have in common.
    """

    def __init__(self) -> None:
        self._sizes = _GrowingArray(1, np.int32)
        self._n_bits = _GrowingArray(1, np.int32)
        self._rows = _GrowingArray(1, np.int32)
        self._maps: dict[int, _GrowingArray[np.uint64]] = {}

    def add(self, hashes: Hashes) -> None:
        """Stores a shingle set, given by its hashes, under the next index."""
        n_bits = max(_MIN_BITS, 1 << (_MIN_BITS_PER_SHINGLE * len(hashes) - 1).bit_length())
        maps = self._maps.setdefault(n_bits, _GrowingArray(n_bits // 64, np.uint64))
        self._sizes.append(len(hashes))
        self._n_bits.append(n_bits)
        self._rows.append(len(maps))
        maps.append(_make_bitmap(hashes, n_bits))

    def find_possibly_alike(self, indices: Indices, hashes: Hashes, threshold: float) -> Indices:
        """Returns the indices of stored sets whose Jaccard index with a set could reach `threshold`.

        No set that reaches it is left out.
        """
        own_maps: dict[int, NDArray[np.uint64]] = {}
        alike = []
        for start in range(0, len(indices), _BLOCK_MAPS):
            block = indices[start : start + _BLOCK_MAPS]
            sizes, n_bits = self._sizes.get_rows(block)[:, 0], self._n_bits.get_rows(block)[:, 0]
            min_common = threshold / (1 + threshold) * (len(hashes) + sizes) - _ROUNDING  # i / (a + b - i) >= t
            is_possible = np.minimum(sizes, len(hashes)) >= min_common
            for width, maps in self._maps.items():
                positions = np.flatnonzero(is_possible & (n_bits == width))
                if len(positions):
                    if width not in own_maps:
                        own_maps[width] = _make_bitmap(hashes, width)
                    stored_maps = maps.get_rows(self._rows.get_rows(block[positions])[:, 0])
                    n_lacking = _count_set_bits(own_maps[width]) - _count_set_bits(stored_maps & own_maps[width])
                    alike.append(block[positions[len(hashes) - n_lacking >= min_common[positions]]])
        return np.concatenate(alike) if alike else indices[:0]


def _count_set_bits(maps: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Counts the set bits of each bit map."""
    counts: NDArray[np.int32] = np.einsum("...i->...", np.bitwise_count(maps), dtype=np.int32)
    return counts


def _make_bitmap(hashes: Hashes, n_bits: int) -> NDArray[np.uint64]:
    """Makes a bit map in which the bits are set that the hashes map to."""
    bits = np.zeros(n_bits, np.uint8)
    bits[hashes & np.uint32(n_bits - 1)] = 1
    return np.packbits(bits).view(np.uint64)


class _GrowingArray(Generic[_Number]):
    """An array of rows of equal width to which rows can be appended."""

    def __init__(self, width: int, dtype: type[_Number]) -> None:
        self._n_rows = 0
        self._held: NDArray[_Number] = np.zeros((16, width), dtype)

    def __len__(self) -> int:
        return self._n_rows

    def append(self, row: int | NDArray[_Number]) -> None:
        """Appends a row, doubling the allocated space where it is full."""
        if self._n_rows == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._n_rows] = row
        self._n_rows += 1

    def get_rows(self, indices: NDArray[np.integer[Any]]) -> NDArray[_Number]:
        """Returns the rows at the given indices."""
        return self._held.take(indices, axis=0)
