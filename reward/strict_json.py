"""Parses JSON strictly from untrusted text and compares the parsed values for equality."""

import json
import math
import re
from collections.abc import Hashable
from typing import Any

MAX_CHARACTERS = 50_000  # characters; the arguments of a call that writes a file
MAX_DEPTH = 64  # brackets within brackets; Python's own limit would end the process's stack first
_DIGITS = 400  # of an integer; Python's reader takes time quadratic in them
_LONG_INTEGER = re.compile(rf"[0-9]{{{_DIGITS + 1}}}")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class JsonError(ValueError):
    """Raised for a text that is not one strict JSON value. The message is a short reason."""


def parse_json(text: str) -> Any:
    """Parses an untrusted JSON text strictly and returns its value. Raises JsonError if it is not strict JSON.

    Refused beyond the standard's own errors: a key said twice, NaN and infinite numbers (`1e999`), and what is too
    long or too deep to be read safely.
    """
    if len(text) > MAX_CHARACTERS:
        raise JsonError("JSON too long")
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket[0], 0)
        if depth > MAX_DEPTH:
            raise JsonError("JSON too deep")
    if _LONG_INTEGER.search(text):
        raise JsonError("JSON number too long")
    try:
        return json.loads(
            text, object_pairs_hook=_make_object, parse_constant=_reject_nan_or_infinity, parse_float=_parse_finite
        )
    except json.JSONDecodeError:
        raise JsonError("invalid JSON") from None


def to_comparable(value: Any) -> Hashable:
    """Converts a JSON value to a hashable that is equal for equal JSON values.

    1 and 1.0 are one number, 1 and true are not, keys have no order.
    """
    if isinstance(value, dict):
        return ("object", frozenset((key, to_comparable(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("array", tuple(to_comparable(item) for item in value))
    return (type(value).__name__ if isinstance(value, bool | str | None) else "number", value)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object from key and value pairs. Raises JsonError if a key occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise JsonError("JSON key twice")
    return content


def _reject_nan_or_infinity(constant: str) -> Any:
    """Raises JsonError for the constants NaN, Infinity and -Infinity."""
    raise JsonError("invalid JSON")


def _parse_finite(text: str) -> float:
    """Parses the text of a JSON number to a float. Raises JsonError if it is too large."""
    number = float(text)
    if not math.isfinite(number):
        raise JsonError("JSON number too large")
    return number
