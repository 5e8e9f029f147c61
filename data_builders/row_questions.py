"""The questions that a row asks in its own right, where a builder puts more around or before them.

What decides in which part of the data a row is has to be what its source decided by: a prefix of a solution belongs to
the solution's question, a trace that goes on after a chat to the trace's.
"""

from collections.abc import Sequence
from typing import Any

from qwen_align.align.rows import Message, Row, Text
from qwen_align.data_builders.row_texts import turns_of

_ASKED = "asked"  # the key in meta


def with_questions(meta: dict[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
    """The meta of a row made of these turns, with their questions; those that are there already stay."""
    return {_ASKED: _user_turns(messages), **meta}


def own_questions(row: Row) -> list[str]:
    """What the row asks in its own right: what its meta says, else every user turn; of a raw text, the text."""
    if isinstance(row, Text):
        return [row.text]
    said = row.meta.get(_ASKED)
    if isinstance(said, list) and all(isinstance(one, str) for one in said):
        return said
    return _user_turns(turns_of(row))


def all_questions(row: Row) -> list[str]:
    """What the row asks in its own right, and every user turn."""
    own = own_questions(row)
    return own if isinstance(row, Text) else list(dict.fromkeys([*own, *_user_turns(turns_of(row))]))


def _user_turns(messages: Sequence[Message]) -> list[str]:
    return [turn.content for turn in messages if turn.role == "user"]
