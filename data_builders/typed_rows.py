"""Our own rows as others wrote them, and what of a row cannot be written for the next stage to read."""

import json
from typing import Any

from qwen_align.align.rows import Problem, Row, RowError, Text, Trace, parse_row, to_json_line
from qwen_align.data_builders.bad_row import BadValue, quoted
from qwen_align.reward.settings import check_nameable


def typed_row(value: Any) -> Row:
    """The row that the value is; raises BadValue if it is none, or if its reward is none that rows can name."""
    if isinstance(value, dict):  # a column that is null in this row of a table is not there
        value = {key: item for key, item in value.items() if item is not None}
    check_json(value, "row")
    try:
        row = parse_row(json.dumps(value), where="")
    except RowError as error:
        raise BadValue("no row of ours", str(error).removeprefix(": ")) from None
    if isinstance(row, Problem | Trace):
        try:
            check_nameable(row.reward)
        except ValueError as error:
            raise BadValue("unknown reward", f"reward: {error}") from None
    return row


def check_writable(row: Row) -> None:
    """Raises BadValue for a row that cannot be written, or not be read again: NaN, a table's dates, deep nesting."""
    if isinstance(row, Text):
        return
    for what in ("gold", "tools"):
        value = getattr(row, what, None)
        if value is not None and not isinstance(value, str):
            check_json(value, what)
    try:
        parse_row(to_json_line(row), where="")
    except (ValueError, RecursionError) as error:
        said = str(error).removeprefix(": ")
        raise BadValue("not JSON", f"cannot be read again once it is written: {said}") from None


def check_json(value: Any, what: str) -> None:
    """Raises BadValue for a value that JSON cannot hold; `what` opens the message."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        said = f"{what}: is {quoted(value)}, which JSON cannot hold: {error}"
        raise BadValue("not JSON", said) from None
