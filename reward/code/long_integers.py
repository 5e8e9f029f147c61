"""Reads integers of more digits than Python converts at once (4,300), in a gold's code and JSON."""

import json
import re
from typing import Any

_LONG_INTEGER = re.compile(r"(?<![\w.])[1-9][0-9]{4000,}(?![\w.])")
_CHUNK = 4_000  # digits, below Python's limit
MAX_DIGITS = 50_000  # of an integer in a gold; converting one takes milliseconds


def rewrite_long_integers(source: str) -> str:
    """Returns Python code with its very long integers in hexadecimal digits, which have no limit."""
    return _LONG_INTEGER.sub(lambda match: hex(read_long_integer(match[0])), source)


def read_long_json(text: str) -> Any:
    """Parses JSON that may hold very long integers. Raises ValueError for invalid JSON."""
    return json.loads(text, parse_int=read_long_integer)


def read_long_integer(digits: str) -> int:
    """Converts the digits of an integer. Raises ValueError for too many or for anything else."""
    if len(digits) <= _CHUNK:
        return int(digits)
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    is_negative = digits.startswith("-")
    value = 0
    digits = digits.removeprefix("-")
    for start in range(0, len(digits), _CHUNK):
        chunk = digits[start : start + _CHUNK]
        value = value * 10 ** len(chunk) + int(chunk)
    return -value if is_negative else value
