"""What is wrong with one row of a source, and who decides whether it ends the build."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qwen_align.align.rows import RowError

MOST_MIB_A_ROW = 8  # over two million tokens: more than any Qwen model's context, and no row anyone means to train
MOST_BYTES_A_ROW = MOST_MIB_A_ROW * 1024**2


class BadRow(RowError):
    """A row that cannot be read or converted; `reason` is short and countable, the message names file and line."""

    def __init__(self, where: str, reason: str, said: str) -> None:
        super().__init__(f"{where}: {said}")
        self.where, self.reason = where, reason


class BadValue(ValueError):
    """What is wrong with a row, said by one who does not know the row's place."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


Reject = Callable[[BadRow], None]
"""What is done with a bad row before the next one is read."""


def refuse(error: BadRow) -> None:
    """Raises the error: one bad row ends the build."""
    raise error


def quoted(value: Any) -> str:
    """The value as Python writes it, cut to 60 characters."""
    text = repr(value[:60] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def without_nul(
    rows: Iterable[dict[str, Any]], where: Callable[[int], str], reject: Reject, first: int = 1
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of the rows; one that holds a NUL character goes to `reject`. `where` names a row by its number."""
    for number, row in enumerate(rows, start=first):
        if has_nul(row):
            reject(BadRow(where(number), "NUL character", "holds a NUL character"))
        else:
            yield where(number), row


def has_nul(value: Any) -> bool:
    """Whether a text anywhere in the value, keys included, holds a NUL character."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(has_nul(key) or has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_nul, value))
