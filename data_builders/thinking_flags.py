"""Finds, adds and removes the thinking flags `/think` and `/no_think` in the texts of a prompt."""

from collections.abc import Sequence

from qwen_align.align.rows import FLAG_IN_TEXT, Flag, Message


def has_thinking_flag(messages: Sequence[Message]) -> bool:
    """Returns whether a user or system turn holds the text `/think` or `/no_think`.

    It would contradict the row's own flag.
    """
    return any(FLAG_IN_TEXT.search(turn.content) for turn in messages if turn.role in ("user", "system"))


def append_flag(turn: Message, flag: Flag | None) -> Message:
    """Returns a turn with a thinking flag appended to its text, as the renderer does."""
    if flag is None:
        return turn
    return turn.model_copy(update={"content": f"{turn.content} {flag}" if turn.content else flag})


def remove_flags(text: str) -> str:
    """Returns a text without the thinking flags `/think` and `/no_think`."""
    return FLAG_IN_TEXT.sub(" ", text)
