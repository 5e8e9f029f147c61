"""Bit maps of shingles: no pair that is near is ever left out, and nearly all that are far are."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.data_builders.shingle_bitmaps import Hashes, Indices, ShingleMaps


def hash_shingles(shingles: set[int]) -> Hashes:
    return np.array(sorted(shingles), np.uint32)


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def alike(sets: list[set[int]], one: set[int], threshold: float) -> list[int]:
    maps = ShingleMaps()
    for other in sets:
        maps.add(hash_shingles(other))
    everywhere: Indices = np.arange(len(sets), dtype=np.uintc)
    return sorted(map(int, maps.find_possibly_alike(everywhere, hash_shingles(one), threshold)))


SETS = st.sets(st.integers(0, 40) | st.integers(0, 2**32 - 1), min_size=1, max_size=60)


@given(st.lists(SETS, max_size=12), SETS, st.sampled_from([0.05, 0.3, 0.5, 0.75, 1.0]))
def test_no_near_set_is_left_out(sets: list[set[int]], one: set[int], threshold: float) -> None:
    near = [index for index, other in enumerate(sets) if jaccard(one, other) >= threshold]
    assert set(near) <= set(alike(sets, one, threshold))


@pytest.mark.parametrize("n_shingles", [20, 72, 1000, 9000])
def test_nearly_all_far_sets_are_left_out_whatever_their_size(n_shingles: int) -> None:
    """Three in four shingles common to all: an index of 0.6, where 0.75 is asked for."""
    draw = Random(n_shingles)
    n_common = n_shingles * 3 // 4
    common = {draw.getrandbits(32) for _ in range(n_common)}
    sets = [common | {draw.getrandbits(32) for _ in range(n_shingles - n_common)} for _ in range(200)]
    assert all(jaccard(sets[0], other) < 0.62 for other in sets[1:])
    assert len(alike(sets, sets[0], 0.75)) <= 3


def test_only_the_places_asked_for_are_looked_at() -> None:
    maps = ShingleMaps()
    for n in range(50):
        maps.add(hash_shingles(set(range(n % 5, n % 5 + 10))))
    asked = np.array([0, 7, 45, 0], np.uintc)
    assert list(maps.find_possibly_alike(asked, hash_shingles(set(range(10))), 1.0)) == [0, 45, 0]
    assert list(maps.find_possibly_alike(asked[:0], hash_shingles({1}), 1.0)) == []
