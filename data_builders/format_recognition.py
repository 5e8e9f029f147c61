"""Recognises the format of a data source by the keys of its rows, and lists the candidates if that is unclear."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.data_builders.chat_formats import CHAT_FORMATS
from qwen_align.data_builders.code_formats import CODE_FORMATS
from qwen_align.data_builders.format_definition import Kind, RowFormat
from qwen_align.data_builders.preference_formats import PREFERENCE_FORMATS
from qwen_align.data_builders.problem_formats import PROBLEM_FORMATS

FORMATS: dict[str, RowFormat] = {
    one.name: one for one in (*CHAT_FORMATS, *PREFERENCE_FORMATS, *PROBLEM_FORMATS, *CODE_FORMATS)
}
FormatName = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer",
    "preference", "sharegpt_preference", "kto",
    "gsm8k", "s1k", "s1k_deepseek", "s1k_gemini", "prompt_trace", "limo", "prompt_gold", "svamp", "text",
    "humaneval", "mbpp",
]  # fmt: skip
TYPED_FORMAT = "typed"
N_ROWS_INSPECTED = 100  # rows: enough to see a mixture, few enough to hold in memory
_KINDS = ("text", "problem", "chat", "trace", "pair", "labelled", "steps", "completion")


class Guess(NamedTuple):
    """A candidate source format: the number of rows that fit it and the location of the first."""

    name: str
    n_rows: int
    first: str


def guess_formats(rows: Iterable[tuple[str, Any]], kind: Kind | None = None) -> list[Guess]:
    """Lists every source format that at least one of the rows fits.

    Rows are given with their locations. `kind` leaves those that make it.
    """
    counts: dict[str, tuple[int, str]] = {}
    for location, value in rows:
        for name in _list_fitting_formats(value):
            if kind is None or (name != TYPED_FORMAT and kind in FORMATS[name].kinds):
                count, first = counts.get(name, (0, location))
                counts[name] = (count + 1, first)
    return [Guess(name, count, first) for name, (count, first) in counts.items()]


def _list_fitting_formats(value: Any) -> list[str]:
    """Lists the names of the source formats that one row fits."""
    if not isinstance(value, Mapping):
        return []
    if is_typed_row(value):
        return [TYPED_FORMAT]
    return [row_format.name for row_format in FORMATS.values() if row_format.fits(value)]


def is_typed_row(value: Mapping[str, Any]) -> bool:
    """Returns whether a row says that it is one of our own rows."""
    return value.get("row") in _KINDS and ("id" in value or "prompt_id" in value)


def recognise_format(rows: list[tuple[str, Any]], source: str, kind: Kind | None = None) -> str:
    """Returns the name of the only source format that the rows fit.

    It is `typed` or a name of FORMATS. Rows are given with their locations.

    Rows that fit no format do not count: they are bad rows of the others' format. Raises DataError, listing the
    candidates, if there are several or none.
    """
    if not rows:
        raise DataError(f"{source}: has no row to recognise a format by; name one if it may be empty: format: alpaca")
    guesses = guess_formats(rows, kind)
    if len(guesses) == 1:
        return guesses[0].name
    if guesses:
        candidates = "; ".join(_describe_guess(row_format, len(rows)) for row_format in guesses)
        raise DataError(
            f"{source}: could be in {len(guesses)} formats; name one, as format: {guesses[0].name}. {candidates}"
        )
    keys = list(dict.fromkeys(str(key) for _, value in rows if isinstance(value, Mapping) for key in value))
    kinds = "" if kind is None else f" that makes {kind} rows"
    known = ", ".join(row_format.name for row_format in FORMATS.values() if kind is None or kind in row_format.kinds)
    key_list = ", ".join(keys) or "none, they are no objects"
    separator_hint = " (separated by ';'? Then convert it)" if len(keys) == 1 and ";" in keys[0] else ""
    hint = separator_hint or _hint_at_nested_rows(rows)
    raise DataError(
        f"{source}: the rows are in no format we know{kinds}; their keys: {key_list}{hint}. Say what to "
        f"make of them, as rows: chat, or name a format ({known}), and in columns the keys that differ"
    )


def _hint_at_nested_rows(rows: list[tuple[str, Any]]) -> str:
    """Returns a hint where the only row is an object around a list of rows, as {"data": [...]}, else an empty text."""
    values = rows[0][1] if len(rows) == 1 else None
    for key, item in values.items() if isinstance(values, Mapping) else ():
        if isinstance(item, list) and item and all(isinstance(one, Mapping) for one in item):
            return f" (are the rows those under '{key}': write the file as that list alone)"
    return ""


def _describe_guess(guess: Guess, n_rows: int) -> str:
    """Describes a candidate format: what it reads, what it makes, and how many of the inspected rows fit it."""
    row_format = FORMATS.get(guess.name)
    conversion = (
        "our own rows" if row_format is None else f"{row_format.description} -> {' or '.join(row_format.kinds)} rows"
    )
    return f"{guess.name} ({conversion}) fits {guess.n_rows} of the first {n_rows} rows, first {guess.first}"
