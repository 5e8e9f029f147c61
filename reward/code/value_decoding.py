"""The plain value of a tree of JSON, whoever made the tree: bounded in time and memory."""

import collections
import datetime
import decimal
import fractions
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qwen_align.reward.code.value_limits import (
    BUILD_S,
    DATES,
    MAX_BITS,
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_ITEMS,
    MAX_ITERATED,
    TYPES,
    NotPlainError,
    Special,
)


class Decoder:
    def __init__(self, special: Special | None) -> None:
        self.special = special
        self.items = MAX_ITEMS

    def value(self, tree: Any, depth: int) -> Any:
        kind = type(tree)
        if kind is not list and kind is not dict:
            return tree
        if depth > MAX_DEPTH:
            raise NotPlainError("too deep")
        if kind is list:
            return self.values(tree, depth)
        if len(tree) != 1:
            raise NotPlainError("no tag")
        [(tag, content)] = tree.items()
        read_tag = _READERS.get(tag)
        if read_tag is None:
            if self.special is None:
                raise NotPlainError("unknown tag")
            return self.special(tree)
        try:
            return read_tag(self, content, depth)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
            raise NotPlainError("wrong content") from None

    def values(self, content: Any, depth: int) -> list[Any]:
        if type(content) is not list:
            raise NotPlainError("wrong content")
        self.items -= len(content)
        if self.items < 0:
            raise NotPlainError("too large")
        return [self.value(one, depth + 1) for one in content]

    def integer(self, content: Any) -> int:
        found = self.value(content, MAX_DEPTH)
        if type(found) is not int:
            raise NotPlainError("wrong content")
        return found

    def mapping(self, content: Any, depth: int) -> dict[Any, Any]:
        pairs = [self.values(pair, depth) for pair in content]
        return build_dict((key, value) for key, value in pairs)


def build_set(values: Iterable[Any]) -> set[Any]:
    """The set of the values; raises NotPlainError where their hashes collide so much that it would take too long."""
    return set(build_dict((value, None) for value in values))


def build_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dict of the pairs; raises NotPlainError where the keys' hashes collide so much that it would take too long.

    Hashes of integers can be chosen to collide: 100,000 such keys take minutes, in which no other thread runs.
    """
    made: dict[Any, Any] = {}
    start = time.thread_time()
    pairs = iter(pairs)
    while some := list(itertools.islice(pairs, 256)):
        made.update(some)
        if time.thread_time() - start > BUILD_S:
            raise NotPlainError("keys collide")
    return made


def _whole(content: str) -> int:
    if len(content) > MAX_BITS // 4 + 3:
        raise NotPlainError("too large")
    return int(content, 16)


def _decimal(content: str) -> decimal.Decimal:
    found = decimal.Decimal(content)
    if found.is_finite() and (len(content) > MAX_EXPONENT or abs(found.adjusted()) > MAX_EXPONENT):
        raise NotPlainError("too large")
    return found


def _iterator(content: Any) -> Iterator[Any]:
    items, more = content
    yield from items
    if more:
        raise NotPlainError(f"more than {MAX_ITERATED} items")


def _date(content: Any) -> Any:
    name, written = content
    return {kind.__name__: parse for kind, parse in DATES.items()}[name](written)


def _counter(pairs: dict[Any, Any]) -> collections.Counter[Any]:
    made: collections.Counter[Any] = collections.Counter()
    dict.update(made, pairs)
    return made


_READERS: dict[str, Callable[[Decoder, Any, int], Any]] = {
    "i": lambda decoder, content, depth: _whole(content),
    "t": lambda decoder, content, depth: tuple(decoder.values(content, depth)),
    "s": lambda decoder, content, depth: build_set(decoder.values(content, depth)),
    "f": lambda decoder, content, depth: frozenset(build_set(decoder.values(content, depth))),
    "d": lambda decoder, content, depth: decoder.mapping(content, depth),
    "O": lambda decoder, content, depth: collections.OrderedDict(decoder.mapping(content, depth)),
    "C": lambda decoder, content, depth: _counter(decoder.mapping(content, depth)),
    "D": lambda decoder, content, depth: collections.defaultdict(None, decoder.mapping(content, depth)),
    "k": lambda decoder, content, depth: dict.fromkeys(
        build_dict((k, 0) for k in decoder.values(content, depth))
    ).keys(),
    "v": lambda decoder, content, depth: dict(enumerate(decoder.values(content, depth))).values(),
    "m": lambda decoder, content, depth: decoder.mapping(content, depth).items(),
    "q": lambda decoder, content, depth: collections.deque(decoder.values(content[0], depth), content[1]),
    "g": lambda decoder, content, depth: _iterator((decoder.values(content[0], depth), content[1])),
    "b": lambda decoder, content, depth: bytes.fromhex(content),
    "a": lambda decoder, content, depth: bytearray.fromhex(content),
    "c": lambda decoder, content, depth: complex(float(content[0]), float(content[1])),
    "e": lambda decoder, content, depth: _decimal(content),
    "F": lambda decoder, content, depth: fractions.Fraction(*map(decoder.integer, content)),
    "r": lambda decoder, content, depth: range(*map(decoder.integer, content)),
    "l": lambda decoder, content, depth: datetime.timedelta(*map(decoder.integer, content)),
    "w": lambda decoder, content, depth: _date(content),
    "T": lambda decoder, content, depth: TYPES[content],
}
