"""Compares what a program printed, or a function returned, with what the data set expects."""

from typing import Any


def split_output_lines(text: str) -> list[str]:
    """Returns the lines of a program's output without white space at their ends and empty lines at the end."""
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def equals_expected_output(printed: str, expected_lines: list[str]) -> bool:
    """Returns whether a program printed the expected lines."""
    return split_output_lines(printed) == expected_lines


def equals_expected(value: Any, expected: Any) -> bool:
    """Returns whether a returned value is the expected one, which went through JSON.

    JSON made lists of tuples and text of keys. Numbers are equal as Python has it, so True is 1; NaN equals no number.
    """
    return bool(to_json_shape(value) == expected)


def to_json_shape(value: Any) -> Any:
    """Returns the value with lists for tuples and text for the keys of a dict, as JSON would have written them."""
    if isinstance(value, list | tuple):
        return [to_json_shape(item) for item in value]
    if isinstance(value, dict):
        return {_to_json_key(key): to_json_shape(item) for key, item in value.items()}
    return value


def _to_json_key(key: Any) -> Any:
    """Returns a dict's key as JSON would have written it."""
    if key is None or key is True or key is False:
        return {None: "null", True: "true", False: "false"}[key]
    return str(key) if type(key) in (int, float) and (type(key) is float or key.bit_length() < 1024) else key
