"""The flags `/think` and `/no_think` in a prompt's own text: finding them, and putting them at the end of a turn."""

from collections.abc import Sequence

from qwen_align.align.rows import FLAG_IN_TEXT, Flag, Message


def asks_for_a_mode(messages: Sequence[Message]) -> bool:
    """Whether a user or system turn holds a flag, which would contradict the one that the row is given."""
    return any(FLAG_IN_TEXT.search(turn.content) for turn in messages if turn.role in ("user", "system"))


def append_flag(turn: Message, flag: Flag | None) -> Message:
    """The turn with the flag after its text, as the renderer appends a row's own flag."""
    if flag is None:
        return turn
    return turn.model_copy(update={"content": f"{turn.content} {flag}" if turn.content else flag})


def without_flags(text: str) -> str:
    """The text with every flag taken out."""
    return FLAG_IN_TEXT.sub(" ", text)
