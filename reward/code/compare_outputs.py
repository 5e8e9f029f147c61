"""Compares a program's printed output or a function's return value with the output that the data set expects."""

from typing import Any


def split_output_lines(text: str) -> list[str]:
    """Splits a program's output into lines without trailing white space. Empty lines at the end are dropped."""
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def equals_expected_output(printed: str, expected_lines: list[str]) -> bool:
    """Returns whether a program printed the expected lines."""
    return split_output_lines(printed) == expected_lines


def equals_expected(value: Any, expected: Any) -> bool:
    """Returns whether a returned value equals the expected value that was stored as JSON.

    JSON made lists of tuples and text of keys. Numbers are equal as Python has it, so True is 1; NaN equals no number.
    """
    return bool(to_json_shape(value) == expected)


def to_json_shape(value: Any) -> Any:
    """Converts tuples to lists and dict keys to text, as writing the value to JSON would."""
    if isinstance(value, list | tuple):
        return [to_json_shape(item) for item in value]
    if isinstance(value, dict):
        return {_to_json_key(key): to_json_shape(item) for key, item in value.items()}
    return value


def _to_json_key(key: Any) -> Any:
    """Converts a dict key to the text that JSON would store."""
    if key is None or key is True or key is False:
        return {None: "null", True: "true", False: "false"}[key]
    return str(key) if type(key) in (int, float) and (type(key) is float or key.bit_length() < 1024) else key
