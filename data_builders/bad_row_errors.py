"""Defines the errors for malformed data rows and decides whether such a row ends the build."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qwen_align.align.rows import RowError

MAX_ROW_MIB = 8  # over two million tokens: more than any Qwen model's context
MAX_ROW_BYTES = MAX_ROW_MIB * 1024**2


class BadRow(RowError):
    """An error for a data row that cannot be read or converted.

    `reason` is short and countable, the message names file and line.
    """

    def __init__(self, where: str, reason: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where, self.reason = where, reason


class BadValue(ValueError):
    """An error for a malformed value in a data row, raised where the row's file and line are not known."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Reject = Callable[[BadRow], None]
"""What is done with a bad row before the next one is read."""


def raise_bad_row(error: BadRow) -> None:
    """Raises the error of a malformed data row, so that it ends the build."""
    raise error


def shorten_repr(value: Any) -> str:
    """Returns the Python repr of a value, cut to 60 characters."""
    text = repr(value[:60] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def reject_rows_with_nul(
    rows: Iterable[dict[str, Any]], locate_row: Callable[[int], str], reject: Reject, first_number: int = 1
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row with its location, and passes rows that hold a NUL character to `reject`.

    `locate_row` names a row by its number.
    """
    for number, row in enumerate(rows, start=first_number):
        if has_nul_character(row):
            reject(BadRow(locate_row(number), "NUL character", "holds a NUL character"))
        else:
            yield locate_row(number), row


def has_nul_character(value: Any) -> bool:
    """Returns whether any text in a nested value, keys included, holds a NUL character."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(has_nul_character(key) or has_nul_character(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_nul_character, value))
