"""Draws random numbers and orders from a seed and each item's name, so that a new row moves no other."""

import hashlib
from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

_Item = TypeVar("_Item")


def hash_to_number(*parts: object) -> int:
    """Hashes the texts of the given parts to a 64-bit number, the same on every machine."""
    encoded = "".join(
        f"{len(text)}:{text}" for text in map(str, parts)
    )  # the lengths keep ('a', 'bc') from ('ab', 'c')
    return int.from_bytes(hashlib.sha256(encoded.encode()).digest()[:8])


def make_random(*parts: object) -> Random:
    """Makes a random generator seeded by the given parts, such as a seed and a row's id."""
    return Random(hash_to_number(*parts))


def shuffle_by_name(items: Sequence[_Item], names: Iterable[str], *seed: object) -> list[_Item]:
    """Returns the items in a random order decided by the seed and each item's name.

    Equal names are ordered by the item's index.
    """
    keyed_indices = [(hash_to_number(*seed, name), index) for index, name in enumerate(names)]
    assert len(keyed_indices) == len(items)
    return [items[index] for _, index in sorted(keyed_indices)]
