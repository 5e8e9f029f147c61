"""The functions, methods and operators of the expression evaluator, each bounded in time and memory."""

import ast
import collections
import math
import operator
from collections.abc import Callable
from typing import Any

from qwen_align.reward.code.value_serialization import (
    MAX_BITS,
    MAX_BYTES,
    MAX_ITEMS,
    NotPlainError,
    build_dict,
    build_set,
)


def check_length(value: Any) -> Any:
    """Returns an iterable unchanged. Raises NotPlainError for a range longer than the limit on values."""
    if isinstance(value, range) and len(value) > MAX_ITEMS:
        raise NotPlainError("too large")
    return value


def _count_bits(value: Any) -> int:
    """Returns the bit length of an integer, and 0 for any other value."""
    return value.bit_length() if isinstance(value, int) else 0


def _count_items(value: Any) -> int:
    """Returns the length of a text or sequence, and 0 for any other value."""
    return len(value) if isinstance(value, str | bytes | bytearray | list | tuple | collections.deque) else 0


def _multiply(left: Any, right: Any) -> Any:
    """Multiplies two values. Raises NotPlainError if the product would be too large."""
    sequence, factor = (left, right) if _count_items(left) else (right, left)
    if _count_bits(left) + _count_bits(right) > 2 * MAX_BITS or (
        _count_items(sequence) and isinstance(factor, int) and _count_items(sequence) * factor > MAX_ITEMS
    ):
        raise NotPlainError("too large")
    return left * right


def _power(left: Any, right: Any) -> Any:
    """Raises a number to a power.

    Raises NotPlainError if the result would be too large or an operand is no plain number.
    """
    if not isinstance(left, int | float | complex) or not isinstance(right, int | float | complex):
        raise NotPlainError("power")  # of a Fraction or by one, whose result has no bound as cheap as the next
    if isinstance(left, int) and isinstance(right, int) and _count_bits(left) * abs(right) > MAX_BITS:
        raise NotPlainError("too large")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    """Computes the remainder of a division. Raises NotPlainError for text, where `%` would format."""
    if isinstance(left, str | bytes):  # a format may ask for a gigabyte of blanks
        raise NotPlainError("format")
    return left % right


def join_texts(separator: Any, parts: Any) -> Any:
    """Joins texts by a separator. Raises NotPlainError if the result would be too long."""
    parts = list(parts)
    if len(separator) * len(parts) > MAX_BYTES:
        raise NotPlainError("too large")
    return separator.join(parts)


def _round_number(number: Any, ndigits: Any = None) -> Any:
    """Rounds a number to `ndigits` digits. Raises NotPlainError if `ndigits` is too large."""
    if isinstance(ndigits, int) and abs(ndigits) > 400:  # more than a float has; an integer is raised to that power
        raise NotPlainError("too large")
    return round(number, ndigits)


def _contains(left: Any, right: Any) -> bool:
    """Returns whether the right operand contains the left one.

    Raises NotPlainError if a long range would be searched one by one.
    """
    return left in (right if isinstance(left, int) else check_length(right))


def _sum_numbers(values: Any, start: int | float = 0) -> Any:
    """Sums numbers from a start value. Raises NotPlainError if the start value is no number."""
    if not isinstance(start, int | float):  # lists added up take quadratic time
        raise NotPlainError("sum")
    return sum(values, start)


def _make_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Makes a dict from key and value pairs or from another dict."""
    return build_dict(pairs.items() if isinstance(pairs, dict) else pairs)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        call.__name__: call
        for call in (abs, all, any, bool, complex, enumerate, float, int, isinstance, iter, len, list)
    },
    **{call.__name__: call for call in (max, min, next, ord, chr, repr, reversed, sorted, str, tuple, zip)},
    "range": lambda *parts: check_length(range(*parts)),
    "set": lambda values=(): build_set(values),
    "frozenset": lambda values=(): frozenset(build_set(values)),
    "dict": _make_dict,
    "sum": _sum_numbers,
    "round": _round_number,
    "type": lambda value: type(value),
}
KEY_FUNCTIONS = (len, abs, str, int, float)
PASSABLE_FUNCTIONS: dict[str, Any] = {
    call.__name__: call
    for call in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex, len, abs, sum)
}
KEYWORDS = frozenset({"reverse", "key", "default", "rel_tol", "abs_tol", "strict", "ndigits", "start", "base"})
MATH_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        call.__name__: call
        for call in (math.isclose, math.fabs, math.sqrt, math.floor, math.ceil, math.trunc, math.gcd)
    },
    **{
        call.__name__: call
        for call in (math.isnan, math.isinf, math.isfinite, math.log, math.log2, math.log10, math.exp)
    },
    **{call.__name__: call for call in (math.sin, math.cos, math.tan, math.atan, math.atan2, math.asin, math.acos)},
    **{call.__name__: call for call in (math.hypot, math.radians, math.degrees, math.copysign)},
}
MATH_CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan, "tau": math.tau}
METHODS = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "split", "splitlines", "startswith", "endswith", "count", "index"}
    | {"find", "keys", "values", "items", "get", "isdigit", "isalpha", "isupper", "islower", "title", "capitalize"}
    | {"copy", "is_integer", "join", "swapcase"}
)
TYPES_WITH_METHODS = frozenset({str, bytes, list, tuple, dict, set, frozenset, int, float})
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: _contains,
    ast.NotIn: lambda left, right: not _contains(left, right),
}
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _modulo,
    ast.Pow: _power,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.RShift: operator.rshift,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
