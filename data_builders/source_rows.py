"""Numbers the rows of a data source, and reads their turns and ids before they are converted."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qwen_align.data_builders.bad_row_errors import BadRow, BadValue, Reject, shorten_repr
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.format_recognition import is_typed_row
from qwen_align.data_builders.turn_texts import parse_turn_texts

RowReader = Callable[[Reject], Iterable[tuple[str, Any]]]
"""Reads (location, row) from the start; what cannot be read goes to the function it is given."""
NumberedRow = tuple[int, str, Any]


def number_rows(read: RowReader, reject: Reject, report: Report) -> Iterator[NumberedRow]:
    """Yields the source rows with their numbers, counting unreadable rows too, and notes which keys the rows have."""
    number = 0

    def count_and_reject(error: BadRow) -> None:
        nonlocal number
        number += 1
        reject(error)

    for location, value in read(count_and_reject):
        number += 1
        if isinstance(value, dict):
            report.met_keys.update(value)
        yield number, location, value


def read_turn_texts(rows: Iterable[NumberedRow], reject: Reject, report: Report) -> Iterator[NumberedRow]:
    """Yields source rows with the turns read that stand in one text. Our own rows are left as they are."""
    for number, location, value in rows:
        if not isinstance(value, dict) or is_typed_row(value):
            yield number, location, value
            continue
        try:
            yield number, location, parse_turn_texts(value, report.n_converted)
        except BadValue as error:
            reject(BadRow(location, error.reason, str(error)))


def read_row_id(value: Any, new_id: str) -> str:
    """Returns the id in a source row as a text, or `new_id` if it has none. Raises BadValue for any other value."""
    if value is None:
        return new_id
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadValue("wrong type", f"id: is {shorten_repr(value)}, neither a text nor a whole number")
    return str(value)
