"""A plain value as a tree of JSON: by its exact type, and never by a method of its own."""

import collections
import datetime
import decimal
import fractions
import itertools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_align.reward.code.value_limits import (
    DATES,
    MAX_BITS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_ITERATED,
    NATIVE_BITS,
    TYPES,
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
    def __init__(self, special: Special | None) -> None:
        self.special = special
        self.items = MAX_ITEMS
        self.characters = MAX_BYTES

    def tree(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is int:
            return self.integer(value)
        if kind is str:
            self.spend_characters(len(value))
            return value
        if depth > MAX_DEPTH:
            raise NotPlainError("too deep")
        if kind is list:
            return self.trees(value, depth)
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: self.trees(value, depth)}
        if kind in _MAPPINGS:
            return {_MAPPINGS[kind]: self.pairs(dict.items(value), depth)}
        return self.rare(kind, value, depth)

    def integer(self, value: int) -> Any:
        bits = value.bit_length()
        if bits <= NATIVE_BITS:
            return value
        if bits > MAX_BITS:
            raise NotPlainError("too large")
        self.spend_characters(bits // 4)
        return {"i": hex(value)}

    def trees(self, values: Iterable[Any], depth: int) -> list[Any]:
        made = []
        for value in values:
            self.items -= 1
            if self.items < 0:
                raise NotPlainError("too large")
            made.append(self.tree(value, depth + 1))
        return made

    def pairs(self, items: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
        return [self.trees(pair, depth) for pair in items]

    def spend_characters(self, count: int) -> None:
        self.characters -= count
        if self.characters < 0:
            raise NotPlainError("too large")

    def rare(self, kind: type, value: Any, depth: int) -> Any:
        if kind in _ITERATORS:
            return self.iterator(value, depth)
        if kind in _VIEWS:
            found = self.pairs(value, depth) if kind is type({}.items()) else self.trees(value, depth)
            return {_VIEWS[kind]: found}
        if kind is collections.deque:
            return {"q": [self.trees(value, depth), value.maxlen]}
        if kind is bytes or kind is bytearray:
            self.spend_characters(2 * len(value))
            return {"b" if kind is bytes else "a": value.hex()}
        number = self.number(kind, value)
        if number is not None:
            return number
        if kind is type and value in TYPES.values():
            return {"T": value.__name__}
        if self.special is not None:
            made = self.special(value)
            if made is not None:
                return made
        if issubclass(kind, tuple) and hasattr(kind, "_fields") and kind.__eq__ is tuple.__eq__:
            return {"t": self.trees(tuple(value), depth)}
        raise NotPlainError(f"{kind.__name__} is no plain data")

    def iterator(self, value: Iterator[Any], depth: int) -> Any:
        found = list(itertools.islice(value, MAX_ITERATED + 1))
        return {"g": [self.trees(found[:MAX_ITERATED], depth), len(found) > MAX_ITERATED]}

    def number(self, kind: type, value: Any) -> Any:
        if kind is complex:
            return {"c": [value.real, value.imag]}
        if kind is decimal.Decimal:
            return {"e": str(value)}
        if kind is fractions.Fraction:
            return {"F": [self.integer(value.numerator), self.integer(value.denominator)]}
        if kind is range:
            return {"r": [self.integer(part) for part in (value.start, value.stop, value.step)]}
        if kind is datetime.timedelta:
            return {"l": [value.days, value.seconds, value.microseconds]}
        if kind in DATES and (kind is datetime.date or value.tzinfo is None):
            return {"w": [kind.__name__, value.isoformat()]}
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind in (numpy.bool_, numpy.int64, numpy.int32, numpy.float64, numpy.str_):
            return self.tree(value.item(), 0)
        return None
