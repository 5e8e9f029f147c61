"""Extracts the texts of a data row: all its texts, or only the question."""

from typing import Literal

from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace

Dialogue = Problem | Chat | Trace | Pair | Labelled | Steps | Completion
Part = Literal["question", "everything"]


def list_all_texts(row: Row) -> list[str]:
    """Lists all texts of a row, in order, empty ones included."""
    if isinstance(row, Text):
        return [row.text]
    texts = [text for message in get_turns(row) for text in (message.thinking or "", message.content)]
    return texts + _list_texts_beside_turns(row)


def join_part_texts(row: Row, part: Part) -> str:
    """Joins the texts of a row's user turns, or of all its turns except the system turn, by line breaks.

    The latter include the thinking. System turns are left out because the same one stands in every row. A Text row is
    its text.
    """
    if isinstance(row, Text):
        return row.text
    if part == "question":
        return "\n".join(message.content for message in get_turns(row) if message.role == "user")
    texts = [
        text
        for message in get_turns(row)
        if message.role != "system"
        for text in (message.thinking or "", message.content)
    ]
    return "\n".join(text for text in texts + _list_texts_beside_turns(row) if text)


def get_turns(row: Dialogue) -> list[Message]:
    """Returns the messages of a row, with its prompt among them, as a list."""
    return row.prompt if isinstance(row, Completion) else row.messages


def _list_texts_beside_turns(row: Dialogue) -> list[str]:
    """Lists the texts of a row that are not in its turns, such as a trace's answer."""
    if isinstance(row, Completion):
        return [row.text]
    if isinstance(row, Trace):
        return [row.thinking, row.answer]
    if isinstance(row, Steps):
        return row.steps
    return [text for reply in list_replies(row) for text in (reply.thinking or "", reply.content)]


def list_replies(row: Row) -> list[Message]:
    """Lists a row's replies outside its messages: both sides of a pair, or a labelled completion."""
    if isinstance(row, Pair):
        return [row.chosen, row.rejected]
    return [row.completion] if isinstance(row, Labelled) else []
