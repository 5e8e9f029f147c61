"""Plain values cross and come back as they were; nothing else does, and no bytes do harm."""

import collections
import datetime
import decimal
import fractions
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_align.reward.code.value_serialization import (
    MAX_BITS,
    NotPlainError,
    build_set,
    decode_value,
    deserialize_value,
    serialize_value,
    write_json,
)
from tests.clock import cpu_limit

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary()
)
KEYS = SCALARS | st.tuples(st.integers(), st.text()) | st.frozensets(st.integers()) | st.fractions()
VALUES = st.recursive(
    SCALARS
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False, places=3)
    | st.dates(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS),
    max_leaves=20,
)


def types_of(value: Any) -> Any:
    """The value's type and those of what it holds, so that 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return dict, [(types_of(key), types_of(one)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types_of(one) for one in value]
    return type(value)


@given(VALUES)
@settings(max_examples=max(300, settings().max_examples))
def test_a_plain_value_comes_back(value: Any) -> None:
    back = deserialize_value(serialize_value(value))
    assert back == value
    assert types_of(back) == types_of(value)


@pytest.mark.parametrize(
    "value",
    [
        -(2**5000),
        2**70,
        math.inf,
        -0.0,
        "\ud800",
        collections.Counter("aab"),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(None, {1: [2]}),
        collections.deque([1, 2], 5),
        range(3, 9, 2),
        decimal.Decimal("-1.50"),
        datetime.datetime(2024, 2, 29, 1, 2, 3),
        datetime.timedelta(days=-1, microseconds=5),
        bytearray(b"ab"),
        {1: 2}.keys(),
        {1: 2}.items(),
        int,
        type(None),
    ],
)
def test_values_of_the_standard_library_come_back(value: Any) -> None:
    back = deserialize_value(serialize_value(value))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_what_equals_a_plain_value_by_its_contents_crosses_as_that() -> None:
    point = collections.namedtuple("point", "x y")
    assert deserialize_value(serialize_value(point(1, 2))) == (1, 2)
    assert list(deserialize_value(serialize_value(x * x for x in range(4)))) == [0, 1, 4, 9]
    assert list(deserialize_value(serialize_value(map(str, (1, 2))))) == ["1", "2"]
    assert math.isnan(deserialize_value(serialize_value(math.nan)))


def test_an_endless_generator_gives_its_first_values() -> None:
    def count() -> Any:
        at = 0
        while True:
            yield at
            at += 1

    values = deserialize_value(serialize_value(count()))
    assert [next(values) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(NotPlainError):
        list(values)


class EqualInt(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Spoofed:
    __class__ = int  # type: ignore[assignment]


cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        EqualInt(3),
        [EqualInt(3)],
        {EqualInt(3): 1},
        Spoofed(),
        EqualInt,
        len,
        lambda: 1,
        cyclic,
        1 << (MAX_BITS + 1),
        "x" * (3 << 20),
        [0] * 500_000,
        NotImplemented,
        ...,
        Exception("x"),
        datetime.datetime.now(datetime.UTC),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_crosses(value: Any) -> None:
    with pytest.raises(NotPlainError):
        serialize_value(value)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*"itsfdOCDkvmqgbaceFrlwTzx"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=40) | TREES.map(write_json))
@settings(max_examples=max(500, settings().max_examples))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = deserialize_value(data)
    except NotPlainError:
        return
    assert type(value).__module__ in ("builtins", "collections", "decimal", "fractions", "datetime")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"[" * 500 + b"]" * 500,
        b"1" * 5000,
        b'{"i": "0x' + b"f" * 200_000 + b'"}',
        b'{"e": "1e999999999"}',
        b'{"F": [1, 0]}',
        b'{"s": [[]]}',
        b'{"t": 3}',
        b'{"r": [0, 1, 0]}',
        b'{"q": [[1], -1]}',
        b'{"T": "eval"}',
        b'{"lent": [0, true]}',
        b'{"d": [], "s": []}',
        b"[" + b"[]," * 600_000 + b"[]]",
        b'{"d": [[1, 2, 3]]}',
    ],
    ids=lambda data: data[:12].decode(),
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(NotPlainError):
        deserialize_value(data)


def test_colliding_keys_are_given_up_in_time() -> None:
    with cpu_limit(2.0):
        with pytest.raises(NotPlainError):
            build_set(fractions.Fraction(i * (2**61 - 1)) for i in range(100_000))
        with pytest.raises(NotPlainError):
            decode_value({"d": [[i * (2**61 - 1), 0] for i in range(100_000)]})
    assert len(build_set(range(100_000))) == 100_000
