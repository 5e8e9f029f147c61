"""Sends members of a candidate's enumerations and named tuples to the tests, which compare them by what they hold."""

import collections
import enum
from collections.abc import Callable
from typing import Any

from qwen_align.reward.code.remote_objects import RefusedError, RemoteObject
from qwen_align.reward.code.value_limits import NotPlainError

MEMBER_TAG, NAMED_TUPLE_TAG = "E", "P"
_MAX_FIELDS = 100
_LENT = "lent"  # attribute of a named tuple built here: the number under which the other process knows it


class RemoteMember(RemoteObject):
    """A stand-in for a member of a candidate's enumeration.

    Two are equal if enumeration, name and value are, which are known here: no code of the candidate's compares. One of
    integers or texts equals its value.
    """

    __slots__ = ("_is_value", "_known")

    def __init__(
        self, ask: Callable[..., Any], target: list[Any], known: tuple[str, str, Any], *, is_value: bool
    ) -> None:
        super().__init__(ask, target, of_class=True)
        object.__setattr__(self, "_known", known)
        object.__setattr__(self, "_is_value", is_value)

    def __getattr__(self, name: str) -> Any:
        if name in ("name", "value", "_name_", "_value_"):
            return object.__getattribute__(self, "_known")[1 if "name" in name else 2]
        return super().__getattr__(name)

    def __eq__(self, other: object) -> bool:
        known = object.__getattribute__(self, "_known")
        if isinstance(other, RemoteMember):
            return bool(known == object.__getattribute__(other, "_known"))
        if object.__getattribute__(self, "_is_value") and type(other) in (bool, int, float, str):
            return bool(known[2] == other)
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        known = object.__getattribute__(self, "_known")
        return hash(known[2] if object.__getattribute__(self, "_is_value") else known[:2])


def describe_member(member: enum.Enum, index: int, encode: Callable[[Any], Any]) -> list[Any]:
    """Returns what is sent of a member: under which number it is lent, its enumeration, name and value.

    Raises NotPlainError if the value is not plain.
    """
    value = member._value_
    if type(value) not in (bool, int, float, str, tuple, type(None)):
        raise NotPlainError("the value of a member")
    return [index, type(member).__name__, member._name_, encode(value), isinstance(member, int | str)]


def read_member(content: Any, decode: Callable[[Any], Any], ask: Callable[..., Any]) -> RemoteMember:
    """Builds the stand-in for a member from what was sent of it. Raises RefusedError if that is malformed."""
    types = [type(part) for part in content] if type(content) is list else []
    if len(types) != 5 or types[:3] != [int, str, str] or types[4] is not bool:
        raise RefusedError
    index, enumeration, name, value, is_value = content
    return RemoteMember(ask, ["lent", index], (enumeration, name, decode(value)), is_value=is_value)


def is_named_tuple(value: Any) -> bool:
    """Returns whether a value is a named tuple that compares as a tuple does."""
    kind = type(value)
    return issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple) and kind.__eq__ is tuple.__eq__


def describe_named_tuple(value: Any, index: int, encode: Callable[[Any], Any]) -> list[Any]:
    """Returns what is sent of a named tuple: under which number it is lent, its type's name, its fields and items."""
    return [index, type(value).__name__, list(type(value)._fields), encode(list(tuple.__iter__(value)))]


def read_named_tuple(content: Any, decode: Callable[[Any], Any]) -> Any:
    """Builds a named tuple of its own type from what was sent of it. Raises NotPlainError if that is malformed."""
    types = [type(part) for part in content] if type(content) is list else []
    if types[:3] != [int, str, list] or len(types) != 4 or len(content[2]) > _MAX_FIELDS:
        raise NotPlainError("no named tuple")
    index, name, fields, items = content
    try:
        kind = type(name, (collections.namedtuple(name, fields),), {})
        value = kind(*decode(items))
    except (TypeError, ValueError):
        raise NotPlainError("no named tuple") from None
    value.__dict__[_LENT] = index
    return value


def get_lent_index(value: Any) -> int | None:
    """Returns the number under which the other process lent a named tuple. Returns None for any other value."""
    index = getattr(value, "__dict__", {}).get(_LENT) if isinstance(value, tuple) else None
    return index if type(index) is int else None
