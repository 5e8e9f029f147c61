"""Draws that depend on a seed and on what is drawn, never on what stands beside it: a new row moves no other."""

import hashlib
from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

_Item = TypeVar("_Item")


def hash_to_number(*parts: object) -> int:
    """A number of 64 bits that the parts' texts alone decide, on every machine."""
    encoded = "".join(
        f"{len(text)}:{text}" for text in map(str, parts)
    )  # the lengths keep ('a', 'bc') from ('ab', 'c')
    return int.from_bytes(hashlib.sha256(encoded.encode()).digest()[:8])


def make_random(*parts: object) -> Random:
    """A generator of the parts' own, such as one for a seed and a row's id."""
    return Random(hash_to_number(*parts))


def shuffle_by_name(items: Sequence[_Item], names: Iterable[str], *seed: object) -> list[_Item]:
    """The items in an order drawn by the seed; each one's place is decided by its name, then by its place before."""
    keyed_indices = [(hash_to_number(*seed, name), index) for index, name in enumerate(names)]
    assert len(keyed_indices) == len(items)
    return [items[index] for _, index in sorted(keyed_indices)]
