"""Finds, adds and removes the flags `/think` and `/no_think` in a prompt's own text."""

from collections.abc import Sequence

from qwen_align.align.rows import FLAG_IN_TEXT, Flag, Message


def has_thinking_flag(messages: Sequence[Message]) -> bool:
    """Tells whether a user or system turn holds a flag, which would contradict the one that the row is given."""
    return any(FLAG_IN_TEXT.search(turn.content) for turn in messages if turn.role in ("user", "system"))


def append_flag(turn: Message, flag: Flag | None) -> Message:
    """Returns the turn with the flag after its text, as the renderer appends a row's own flag."""
    if flag is None:
        return turn
    return turn.model_copy(update={"content": f"{turn.content} {flag}" if turn.content else flag})


def remove_flags(text: str) -> str:
    """Removes every flag from a text."""
    return FLAG_IN_TEXT.sub(" ", text)
