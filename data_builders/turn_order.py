"""Checks whether the turns of a data row come in an order that a chat model meets in use."""

from collections.abc import Sequence

from qwen_align.align.rows import Chat, Message, Row, Text
from qwen_align.data_builders.row_texts import Dialogue, get_turns

# The roles that may come before each role. Chat templates render other orders too, which no user produces.
_ALLOWED_BEFORE = {
    "user": ("", "system", "assistant"),
    "tool": ("calls", "tool"),
    "assistant": ("user", "tool"),
}


def find_turn_disorder(row: Row) -> str | None:
    """Returns a description of the first fault in the order of a row's turns.

    Returns None if there is none, as for a raw text. At most one system turn, which is the first; then user and
    assistant in turn, results of tools after an assistant that calls them. What is beside the turns (a trace's answer,
    both sides of a pair) is an assistant's.
    """
    if isinstance(row, Text):
        return None
    return _find_order_fault(get_turns(row)) or _find_end_fault(row)


def _find_end_fault(row: Dialogue) -> str | None:
    """Returns a description of what is wrong with the last turn of a row. Returns None if nothing is."""
    turns = get_turns(row)
    if isinstance(row, Chat):
        return None if any(turn.role == "assistant" for turn in turns) else "no assistant turn"
    return (
        None
        if turns[-1].role in ("user", "tool")
        else f"an answer after {'an assistant' if turns[-1].role == 'assistant' else 'a system'} turn"
    )


def _find_order_fault(turns: Sequence[Message]) -> str | None:
    """Returns a description of the first turn that may not follow the turn before it. Returns None if there is none."""
    if not turns:
        return "no turn"
    before = ""
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system":
            if number > 1:
                return f"turn {number}: a system turn that is not the first"
        elif before not in _ALLOWED_BEFORE[turn.role]:
            return f"turn {number}: {turn.role} {_PHRASES[before]}"
        before = "calls" if turn.role == "assistant" and turn.tool_calls else turn.role
    return None


_PHRASES = {
    "": "opens the conversation",
    "calls": "after calls of tools, before their results",
    "system": "after the system turn",
    "user": "after user",
    "assistant": "after assistant",
    "tool": "after results of tools, before the assistant says anything",
}
