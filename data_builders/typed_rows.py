"""Parses data rows in our own format, and checks that a row can be written and read again."""

import json
from typing import Any

from qwen_align.align.rows import Problem, Row, RowError, Text, Trace, parse_row, to_json_line
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.reward.settings import check_row_reward


def parse_typed_row(value: Any) -> Row:
    """Parses a JSON value as a data row in our own format.

    Raises BadValue if it is none, or if its reward is none that rows can name.
    """
    if isinstance(value, dict):  # a null cell of a table counts as a missing key
        value = {key: item for key, item in value.items() if item is not None}
    check_json_value(value, "row")
    try:
        row = parse_row(json.dumps(value), where="")
    except RowError as error:
        raise BadValue("no row of ours", str(error).removeprefix(": ")) from None
    if isinstance(row, Problem | Trace):
        try:
            check_row_reward(row.reward)
        except ValueError as error:
            raise BadValue("unknown reward", f"reward: {error}") from None
    return row


def check_writable_row(row: Row) -> None:
    """Raises BadValue for a row that cannot be written as JSON and read again.

    Examples are NaN, a table's dates, deep nesting.
    """
    if isinstance(row, Text):
        return
    for name in ("gold", "tools"):
        value = getattr(row, name, None)
        if value is not None and not isinstance(value, str):
            check_json_value(value, name)
    try:
        parse_row(to_json_line(row), where="")
    except (ValueError, RecursionError) as error:
        message = str(error).removeprefix(": ")
        raise BadValue("not JSON", f"cannot be read again once it is written: {message}") from None


def check_json_value(value: Any, name: str) -> None:
    """Raises BadValue for a value that JSON cannot hold. `name` opens the message."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"{name}: is {shorten_repr(value)}, which JSON cannot hold: {error}"
        raise BadValue("not JSON", message) from None
