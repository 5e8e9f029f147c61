"""Sends numpy's numbers and arrays between cells, as plain values and by their exact types."""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from qwen_align.reward.code.value_limits import MAX_ITEMS, NotPlainError

ARRAY_TAG = "N"
_KINDS = frozenset("biufc")  # of the numbers in an array: truth values, integers, floats, complex
_MAX_DIMENSIONS = 32  # as many as numpy allows


def to_builtin_number(value_type: type, value: Any) -> Any:
    """Returns the built-in number or text that equals a numpy scalar. Returns None for any other value."""
    numpy = sys.modules.get("numpy")
    if numpy is None or value_type not in _list_scalar_types(numpy):
        return None
    number = value.item()
    return number if type(number) in (bool, int, float, complex, str) else None


def split_array(value_type: type, value: Any) -> tuple[str, list[int], list[Any]] | None:
    """Returns the kind, the shape and the flat items of a numpy array of numbers. Returns None for any other value."""
    numpy = sys.modules.get("numpy")
    if numpy is None or value_type is not numpy.ndarray or value.dtype.kind not in _KINDS or value.size > MAX_ITEMS:
        return None
    return value.dtype.kind, list(value.shape), value.astype(_get_widest(value.dtype.kind)).ravel().tolist()


def build_array(content: Any, decode: Callable[[Any], Any]) -> Any:
    """Builds the numpy array of its sent parts. Raises NotPlainError if they are none."""
    import numpy

    kind, shape, items = _check_parts(content)
    numbers = decode(items)
    if any(type(number) not in (bool, int, float, complex) for number in numbers) or math.prod(shape) != len(numbers):
        raise NotPlainError("no array")
    return numpy.array(numbers, dtype=_get_widest(kind)).reshape(shape)


def nest_items(content: Any, decode: Callable[[Any], Any]) -> Any:
    """Builds the nested lists of a sent array, as JSON would hold it. Raises NotPlainError if it is none."""
    _, shape, items = _check_parts(content)
    numbers = decode(items)
    if math.prod(shape) != len(numbers):
        raise NotPlainError("no array")
    for length in reversed(shape[1:]):
        numbers = [numbers[start : start + length] for start in range(0, len(numbers), length)] if length else []
    return numbers if shape else numbers[0]


def _check_parts(content: Any) -> tuple[str, list[int], Any]:
    """Returns the kind, the shape and the items of a sent array. Raises NotPlainError for anything else."""
    if type(content) is not list or len(content) != 3:
        raise NotPlainError("no array")
    kind, shape, items = content
    is_shape = type(shape) is list and len(shape) <= _MAX_DIMENSIONS
    if kind not in _KINDS or not is_shape or not all(type(n) is int and 0 <= n <= MAX_ITEMS for n in shape):
        raise NotPlainError("no array")
    if type(items) is not list or len(items) > MAX_ITEMS:
        raise NotPlainError("no array")
    return kind, shape, items


def _get_widest(kind: str) -> Any:
    """Returns numpy's type that holds all numbers of a kind."""
    return {"b": "bool", "i": "int64", "u": "uint64", "f": "float64", "c": "complex128"}[kind]


@cache
def _list_scalar_types(numpy: Any) -> frozenset[type]:
    """Returns numpy's own types of scalars; a subclass of a candidate's is none of them."""
    return frozenset(numpy.sctypeDict.values())
