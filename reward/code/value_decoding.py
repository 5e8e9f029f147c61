"""Decodes a JSON tree from an untrusted sender to a plain value, bounded in time and memory."""

import collections
import datetime
import decimal
import fractions
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qwen_align.reward.code.value_limits import (
    BUILD_LIMIT_S,
    CROSSING_TYPES,
    DATE_PARSERS,
    MAX_BITS,
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_ITEMS,
    MAX_ITERATED,
    NotPlainError,
    Special,
)


class Decoder:
    """A decoder of one value from its JSON tree, within limits of size and depth."""

    def __init__(self, special: Special | None) -> None:
        self.special = special
        self.items = MAX_ITEMS

    def decode_value(self, tree: Any, depth: int) -> Any:
        """Decodes a JSON tree to the value it stands for. Raises NotPlainError if it stands for none."""
        tree_type = type(tree)
        if tree_type is not list and tree_type is not dict:
            return tree
        if depth > MAX_DEPTH:
            raise NotPlainError("too deep")
        if tree_type is list:
            return self.decode_list(tree, depth)
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

    def decode_list(self, content: Any, depth: int) -> list[Any]:
        """Decodes a list of JSON trees to their values. Raises NotPlainError if the whole value becomes too large."""
        if type(content) is not list:
            raise NotPlainError("wrong content")
        self.items -= len(content)
        if self.items < 0:
            raise NotPlainError("too large")
        return [self.decode_value(item, depth + 1) for item in content]

    def decode_integer(self, content: Any) -> int:
        """Decodes a JSON tree to an integer. Raises NotPlainError for anything else."""
        value = self.decode_value(content, MAX_DEPTH)
        if type(value) is not int:
            raise NotPlainError("wrong content")
        return value

    def decode_mapping(self, content: Any, depth: int) -> dict[Any, Any]:
        """Decodes a list of pairs of JSON trees to a dict."""
        pairs = [self.decode_list(pair, depth) for pair in content]
        return build_dict((key, value) for key, value in pairs)


def build_set(values: Iterable[Any]) -> set[Any]:
    """Builds a set of values. Raises NotPlainError if so many hashes collide that it would take too long."""
    return set(build_dict((value, None) for value in values))


def build_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Builds a dict of key and value pairs. Raises NotPlainError if so many keys collide that it would take too long.

    Hashes of integers can be chosen to collide: 100,000 such keys take minutes, in which no other thread runs.
    """
    mapping: dict[Any, Any] = {}
    start = time.thread_time()
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, 256)):
        mapping.update(chunk)
        if time.thread_time() - start > BUILD_LIMIT_S:
            raise NotPlainError("keys collide")
    return mapping


def _parse_hex_integer(content: str) -> int:
    """Parses an integer from hexadecimal digits. Raises NotPlainError if there are too many."""
    if len(content) > MAX_BITS // 4 + 3:
        raise NotPlainError("too large")
    return int(content, 16)


def _parse_decimal(content: str) -> decimal.Decimal:
    """Parses a Decimal from its text. Raises NotPlainError if its exponent is too large."""
    value = decimal.Decimal(content)
    if value.is_finite() and (len(content) > MAX_EXPONENT or abs(value.adjusted()) > MAX_EXPONENT):
        raise NotPlainError("too large")
    return value


def _replay_iterator(content: Any) -> Iterator[Any]:
    """Yields the encoded items of an iterator. Raises NotPlainError at the end if the iterator was cut off there."""
    items, is_cut = content
    yield from items
    if is_cut:
        raise NotPlainError(f"more than {MAX_ITERATED} items")


def _parse_date(content: Any) -> Any:
    """Parses a date, time or datetime from its type's name and its ISO text."""
    name, text = content
    return {kind.__name__: parse for kind, parse in DATE_PARSERS.items()}[name](text)


def _build_counter(pairs: dict[Any, Any]) -> collections.Counter[Any]:
    """Builds a Counter from the given pairs, whatever their counts are."""
    counter: collections.Counter[Any] = collections.Counter()
    dict.update(counter, pairs)
    return counter


_READERS: dict[str, Callable[[Decoder, Any, int], Any]] = {
    "i": lambda decoder, content, depth: _parse_hex_integer(content),
    "t": lambda decoder, content, depth: tuple(decoder.decode_list(content, depth)),
    "s": lambda decoder, content, depth: build_set(decoder.decode_list(content, depth)),
    "f": lambda decoder, content, depth: frozenset(build_set(decoder.decode_list(content, depth))),
    "d": lambda decoder, content, depth: decoder.decode_mapping(content, depth),
    "O": lambda decoder, content, depth: collections.OrderedDict(decoder.decode_mapping(content, depth)),
    "C": lambda decoder, content, depth: _build_counter(decoder.decode_mapping(content, depth)),
    "D": lambda decoder, content, depth: collections.defaultdict(None, decoder.decode_mapping(content, depth)),
    "k": lambda decoder, content, depth: dict.fromkeys(
        build_dict((k, 0) for k in decoder.decode_list(content, depth))
    ).keys(),
    "v": lambda decoder, content, depth: dict(enumerate(decoder.decode_list(content, depth))).values(),
    "m": lambda decoder, content, depth: decoder.decode_mapping(content, depth).items(),
    "q": lambda decoder, content, depth: collections.deque(decoder.decode_list(content[0], depth), content[1]),
    "g": lambda decoder, content, depth: _replay_iterator((decoder.decode_list(content[0], depth), content[1])),
    "b": lambda decoder, content, depth: bytes.fromhex(content),
    "a": lambda decoder, content, depth: bytearray.fromhex(content),
    "c": lambda decoder, content, depth: complex(float(content[0]), float(content[1])),
    "e": lambda decoder, content, depth: _parse_decimal(content),
    "F": lambda decoder, content, depth: fractions.Fraction(*map(decoder.decode_integer, content)),
    "r": lambda decoder, content, depth: range(*map(decoder.decode_integer, content)),
    "l": lambda decoder, content, depth: datetime.timedelta(*map(decoder.decode_integer, content)),
    "w": lambda decoder, content, depth: _parse_date(content),
    "T": lambda decoder, content, depth: CROSSING_TYPES[content],
}
