"""Encodes a plain value as a JSON tree, by its exact type and never by a method of its own."""

import collections
import datetime
import decimal
import enum
import fractions
import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_align.reward.code.numpy_values import ARRAY_TAG, split_array, to_builtin_number
from qwen_align.reward.code.value_limits import (
    CROSSING_TYPES,
    DATE_PARSERS,
    MAX_BITS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_ITERATED,
    NATIVE_BITS,
    NotPlainError,
    Special,
)

_SCALARS = frozenset({type(None), bool, float})
_ITERATORS: frozenset[type] = frozenset(
    {types.GeneratorType, map, filter, zip, enumerate, reversed, *map(type, (iter([]), iter(()), iter({}), iter("")))}
    | {type(iter({}.values())), type(iter({}.items())), type(iter(set())), type(iter(range(0))), type(iter(b""))}
    | {type(reversed([])), type(reversed({})), type(iter(range(1 << 70)))}
    | {kind for kind in vars(itertools).values() if isinstance(kind, type)}
)
_SEQUENCES: dict[type, str] = {tuple: "t", set: "s", frozenset: "f"}
_MAPPINGS: dict[type, str] = {
    dict: "d",
    collections.OrderedDict: "O",
    collections.Counter: "C",
    collections.defaultdict: "D",
}
_VIEWS: dict[type, str] = {type({}.keys()): "k", type({}.values()): "v", type({}.items()): "m"}


class Encoder:
    """An encoder of one value as a JSON tree, within limits of size and depth."""

    def __init__(self, special: Special | None) -> None:
        self.special = special
        self.items = MAX_ITEMS
        self.characters = MAX_BYTES

    def encode_value(self, value: Any, depth: int) -> Any:
        """Encodes a value as a JSON tree. Raises NotPlainError if it is not a plain value."""
        value_type = type(value)
        if value_type in _SCALARS:
            return value
        if value_type is int:
            return self.encode_integer(value)
        if value_type is str:
            self.spend_character_budget(len(value))
            return value
        if depth > MAX_DEPTH:
            raise NotPlainError("too deep")
        if value_type is list:
            return self.encode_items(value, depth)
        if value_type in _SEQUENCES:
            return {_SEQUENCES[value_type]: self.encode_items(value, depth)}
        if value_type in _MAPPINGS:
            return {_MAPPINGS[value_type]: self.encode_pairs(dict.items(value), depth)}
        return self.encode_rare_type(value_type, value, depth)

    def encode_integer(self, value: int) -> Any:
        """Encodes an integer as itself, or as tagged hexadecimal digits if it is large."""
        bits = value.bit_length()
        if bits <= NATIVE_BITS:
            return value
        if bits > MAX_BITS:
            raise NotPlainError("too large")
        self.spend_character_budget(bits // 4)
        return {"i": hex(value)}

    def encode_items(self, values: Iterable[Any], depth: int) -> list[Any]:
        """Encodes the items of an iterable as JSON trees. Raises NotPlainError if the whole value becomes too large."""
        trees = []
        for value in values:
            self.items -= 1
            if self.items < 0:
                raise NotPlainError("too large")
            trees.append(self.encode_value(value, depth + 1))
        return trees

    def encode_pairs(self, items: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
        """Encodes key and value pairs as JSON trees."""
        return [self.encode_items(pair, depth) for pair in items]

    def spend_character_budget(self, count: int) -> None:
        """Subtracts from the number of characters that the value may still have.

        Raises NotPlainError when none remain.
        """
        self.characters -= count
        if self.characters < 0:
            raise NotPlainError("too large")

    def encode_rare_type(self, value_type: type, value: Any, depth: int) -> Any:
        """Encodes a value such as a set, deque or Counter as a JSON tree. Raises NotPlainError for an unknown type."""
        if value_type in _ITERATORS:
            return self.encode_iterator(value, depth)
        if value_type in _VIEWS:
            trees = (
                self.encode_pairs(value, depth) if value_type is type({}.items()) else self.encode_items(value, depth)
            )
            return {_VIEWS[value_type]: trees}
        if value_type is collections.deque:
            return {"q": [self.encode_items(value, depth), value.maxlen]}
        if value_type is bytes or value_type is bytearray:
            self.spend_character_budget(2 * len(value))
            return {"b" if value_type is bytes else "a": value.hex()}
        tree = self.encode_number_or_date(value_type, value)
        if tree is not None:
            return tree
        if value_type is type and value in CROSSING_TYPES.values():
            return {"T": value.__name__}
        array = split_array(value_type, value)
        if array is not None:
            kind, shape, items = array
            return {ARRAY_TAG: [kind, shape, self.encode_items(items, depth)]}
        if self.special is not None:
            special_tree = self.special(value)
            if special_tree is not None:
                return special_tree
        if type(value_type) is enum.EnumMeta and issubclass(value_type, int | str):  # a member that equals its value
            return self.encode_value(int(value) if issubclass(value_type, int) else str.__str__(value), depth)
        if issubclass(value_type, tuple) and hasattr(value_type, "_fields") and value_type.__eq__ is tuple.__eq__:
            return {"t": self.encode_items(tuple(value), depth)}
        raise NotPlainError(f"{value_type.__name__} is no plain data")

    def encode_iterator(self, value: Iterator[Any], depth: int) -> Any:
        """Encodes the first items of an iterator as a JSON tree, with a flag for whether there were more."""
        items = list(itertools.islice(value, MAX_ITERATED + 1))
        return {"g": [self.encode_items(items[:MAX_ITERATED], depth), len(items) > MAX_ITERATED]}

    def encode_number_or_date(self, value_type: type, value: Any) -> Any:
        """Encodes a number, range, date or numpy scalar as a JSON tree. Returns None for any other type."""
        if value_type is complex:
            return {"c": [value.real, value.imag]}
        if value_type is decimal.Decimal:
            return {"e": str(value)}
        if value_type is fractions.Fraction:
            return {"F": [self.encode_integer(value.numerator), self.encode_integer(value.denominator)]}
        if value_type is range:
            return {"r": [self.encode_integer(part) for part in (value.start, value.stop, value.step)]}
        if value_type is datetime.timedelta:
            return {"l": [value.days, value.seconds, value.microseconds]}
        if value_type in DATE_PARSERS and (value_type is datetime.date or value.tzinfo is None):
            return {"w": [value_type.__name__, value.isoformat()]}
        number = to_builtin_number(value_type, value)
        return None if number is None else self.encode_value(number, 0)
