"""Extracts the texts of a row: everything that it says, or only the question."""

from typing import Literal

from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace

Dialogue = Problem | Chat | Trace | Pair | Labelled | Steps | Completion
Part = Literal["question", "everything"]


def list_all_texts(row: Row) -> list[str]:
    """Lists everything that is said in the row, in order, empty texts included."""
    if isinstance(row, Text):
        return [row.text]
    texts = [text for message in get_turns(row) for text in (message.thinking or "", message.content)]
    return texts + _list_texts_beside_turns(row)


def join_part_texts(row: Row, part: Part) -> str:
    """Joins the user turns (`question`), or every turn with its thinking but the system's, by line breaks.

    System turns are left out because the same one stands in every row. A Text row is its text.
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
    """Returns the turns that stand in the row as a list, the prompt among them."""
    return row.prompt if isinstance(row, Completion) else row.messages


def _list_texts_beside_turns(row: Dialogue) -> list[str]:
    """Lists the texts that stand beside the row's turns, such as a trace's answer."""
    if isinstance(row, Completion):
        return [row.text]
    if isinstance(row, Trace):
        return [row.thinking, row.answer]
    if isinstance(row, Steps):
        return row.steps
    return [text for reply in list_replies(row) for text in (reply.thinking or "", reply.content)]


def list_replies(row: Row) -> list[Message]:
    """Lists the assistant turns beside the row's messages: both sides of a pair, a labelled completion."""
    if isinstance(row, Pair):
        return [row.chosen, row.rejected]
    return [row.completion] if isinstance(row, Labelled) else []
