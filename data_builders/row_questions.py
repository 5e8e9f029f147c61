"""Finds a data row's own questions, without the text that a builder puts around or before them.

They decide in which part of the data a row is, so they have to be those that its source was divided by: a prefix of a
solution belongs to the solution's question, a trace that goes on after a chat to the trace's.
"""

from collections.abc import Sequence
from typing import Any

from qwen_align.align.rows import Message, Row, Text
from qwen_align.data_builders.row_texts import get_turns

_ASKED = "asked"  # key in meta


def add_questions_to_meta(meta: dict[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
    """Returns a row's meta with the user turns of `messages` noted as its questions.

    Questions that are noted there already stay.
    """
    return {_ASKED: _list_user_turns(messages), **meta}


def list_own_questions(row: Row) -> list[str]:
    """Lists the questions that a row's meta notes, or else all its user turns. A raw text is its own question."""
    if isinstance(row, Text):
        return [row.text]
    stored = row.meta.get(_ASKED)
    if isinstance(stored, list) and all(isinstance(question, str) for question in stored):
        return stored
    return _list_user_turns(get_turns(row))


def list_all_questions(row: Row) -> list[str]:
    """Lists the questions that a row's meta notes, followed by all its user turns."""
    questions = list_own_questions(row)
    return questions if isinstance(row, Text) else list(dict.fromkeys([*questions, *_list_user_turns(get_turns(row))]))


def _list_user_turns(messages: Sequence[Message]) -> list[str]:
    """Lists the texts of the user turns among the messages."""
    return [turn.content for turn in messages if turn.role == "user"]
