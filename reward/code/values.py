"""Plain values as bytes and back: how values cross the border between processes that do not trust each other.

Only exact types of the standard library cross, by their contents; no class, method or pickle of the sender
reaches the receiver, so a value cannot say of itself that it is equal to something.
The bytes are JSON: None, bool, int, float, str and list stand for themselves, all else is an object of one tag.
"""

import collections
import datetime
import decimal
import fractions
import itertools
import json
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MAX_BYTES = 2 << 20  # of one encoded value: 100,000 integers of 20 digits
MAX_ITEMS = 400_000  # containers and their elements, of one value
MAX_DEPTH = 100  # well under the interpreter's 1,000 frames, in JSON's parser and in comparisons
MAX_BITS = 1 << 18  # of an integer: 10,000! has 118,458 bits, and division stays under 0.1 s
MAX_ITERATED = 10_000  # taken from a generator, which may be endless
MAX_EXPONENT = 10_000  # of a Decimal, which would be written out as an integer when compared with a Fraction
_NATIVE_BITS = 4_096  # JSON's decimal integers; Python refuses more than 4,300 digits, and longer ones are dear
_BUILD_S = 0.2  # CPU seconds for the hash tables of one value: far more than honest keys take, cut for colliding ones

Special = Callable[[Any], Any]


class NotPlainError(Exception):
    """A value that does not cross; the message says why."""


def dumps(value: Any, special: Special | None = None) -> bytes:
    """The value's bytes; raises NotPlainError. `special` gives the tree of a value that is not plain, or None."""
    data = write(_Encoder(special).tree(value, 0))
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    return data


def loads(data: bytes, special: Special | None = None) -> Any:
    """The value whose bytes these are, made of builtin types only; raises NotPlainError on any other bytes."""
    return decode(read(data), special)


def encode(value: Any, special: Special | None = None) -> Any:
    """The value's tree, to be part of a larger message."""
    return _Encoder(special).tree(value, 0)


def decode(tree: Any, special: Special | None = None) -> Any:
    """The value of a tree; raises NotPlainError. `special` gives the value of an unknown tag's object."""
    return _Decoder(special).value(tree, 0)


def write(tree: Any) -> bytes:
    """JSON bytes of a tree."""
    return json.dumps(tree, separators=(",", ":"), check_circular=False).encode("ascii")


def read(data: bytes) -> Any:
    """The tree of JSON bytes, whoever wrote them; raises NotPlainError."""
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NotPlainError("no JSON") from None


_SCALARS = frozenset({type(None), bool, float})
_ITERATORS: frozenset[type] = frozenset(
    {types.GeneratorType, map, filter, zip, enumerate, reversed, *map(type, (iter([]), iter(()), iter({}), iter("")))}
    | {type(iter({}.values())), type(iter({}.items())), type(iter(set())), type(iter(range(0))), type(iter(b""))}
    | {type(reversed([])), type(reversed({})), type(iter(range(1 << 70)))}
    | {kind for kind in vars(itertools).values() if isinstance(kind, type)}
)
_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (int, float, bool, str, list, tuple, dict, set, frozenset, bytes, complex, type(None), object, range)
}
_SEQUENCES: dict[type, str] = {tuple: "t", set: "s", frozenset: "f"}
_MAPPINGS: dict[type, str] = {
    dict: "d",
    collections.OrderedDict: "O",
    collections.Counter: "C",
    collections.defaultdict: "D",
}
_VIEWS: dict[type, str] = {type({}.keys()): "k", type({}.values()): "v", type({}.items()): "m"}


class _Encoder:
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
        if bits <= _NATIVE_BITS:
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
        if kind is type and value in _TYPES.values():
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
        if kind in _DATES and (kind is datetime.date or value.tzinfo is None):
            return {"w": [kind.__name__, value.isoformat()]}
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind in (numpy.bool_, numpy.int64, numpy.int32, numpy.float64, numpy.str_):
            return self.tree(value.item(), 0)
        return None


_DATES: dict[type, Callable[[str], Any]] = {
    kind: kind.fromisoformat for kind in (datetime.datetime, datetime.date, datetime.time)
}


class _Decoder:
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
        if time.thread_time() - start > _BUILD_S:
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
    return {kind.__name__: parse for kind, parse in _DATES.items()}[name](written)


def _counter(pairs: dict[Any, Any]) -> collections.Counter[Any]:
    made: collections.Counter[Any] = collections.Counter()
    dict.update(made, pairs)
    return made


_READERS: dict[str, Callable[[_Decoder, Any, int], Any]] = {
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
    "T": lambda decoder, content, depth: _TYPES[content],
}
