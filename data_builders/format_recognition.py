"""Which format a source's rows are in: recognised by their keys, or said to be unclear."""

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
TYPED = "typed"
LOOKED_AT = 100  # rows: enough to see a mixture, few enough to hold in memory
_KINDS = ("text", "problem", "chat", "trace", "pair", "labelled", "steps", "completion")


class Guess(NamedTuple):
    """A format and the first of the rows that could be in it, of how many."""

    name: str
    n_rows: int
    first: str


def guesses(rows: Iterable[tuple[str, Any]], kind: Kind | None = None) -> list[Guess]:
    """Every format that one of the rows, given with their places, could be in; `kind` leaves those that make it."""
    found: dict[str, tuple[int, str]] = {}
    for where, value in rows:
        for name in _fitting(value):
            if kind is None or (name != TYPED and kind in FORMATS[name].kinds):
                count, first = found.get(name, (0, where))
                found[name] = (count + 1, first)
    return [Guess(name, count, first) for name, (count, first) in found.items()]


def _fitting(value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    if value.get("row") in _KINDS and ("id" in value or "prompt_id" in value):
        return [TYPED]
    return [one.name for one in FORMATS.values() if one.fits(value)]


def recognise(rows: list[tuple[str, Any]], place: str, kind: Kind | None = None) -> str:
    """The one format that the rows, given with their places, can be in: `typed` or a name of FORMATS.

    Rows that fit no format do not count: they are bad rows of the others' format. Raises DataError, listing the
    candidates, if there are several or none.
    """
    if not rows:
        raise DataError(f"{place}: has no row to recognise a format by; name one if it may be empty: format: alpaca")
    found = guesses(rows, kind)
    if len(found) == 1:
        return found[0].name
    if found:
        listed = "; ".join(_described(one, len(rows)) for one in found)
        raise DataError(f"{place}: could be in {len(found)} formats; name one, as format: {found[0].name}. {listed}")
    keys = list(dict.fromkeys(str(key) for _, value in rows if isinstance(value, Mapping) for key in value))
    kinds = "" if kind is None else f" that makes {kind} rows"
    known = ", ".join(one.name for one in FORMATS.values() if kind is None or kind in one.kinds)
    said = ", ".join(keys) or "none, they are no objects"
    alone = " (separated by ';'? Then convert it)" if len(keys) == 1 and ";" in keys[0] else ""
    raise DataError(
        f"{place}: the rows are in no format we know{kinds}; their keys: {said}{alone}. Say what to make of them, as "
        f"rows: chat, or name a format ({known}), and in columns the keys that differ"
    )


def _described(guess: Guess, n_rows: int) -> str:
    """A candidate: what it reads, what it makes, and how many of the rows looked at could be in it."""
    one = FORMATS.get(guess.name)
    what = "our own rows" if one is None else f"{one.says} -> {' or '.join(one.kinds)} rows"
    return f"{guess.name} ({what}) fits {guess.n_rows} of the first {n_rows} rows, first {guess.first}"
