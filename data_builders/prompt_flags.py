"""The flags `/think` and `/no_think` in a prompt's own text: finding them, and putting them at the end of a turn."""

import re
from collections.abc import Sequence
from typing import cast

from qwen_align.align.rows import Flag, Message

_FLAG = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")


def asks_for_a_mode(messages: Sequence[Message]) -> bool:
    """Whether a user or system turn holds a flag, which would contradict the one that the row is given."""
    return any(_FLAG.search(turn.content) for turn in messages if turn.role in ("user", "system"))


def last_flag(messages: Sequence[Message]) -> Flag | None:
    """The flag that a model has to obey: the last one in the texts of user and system turns."""
    flags = [flag for turn in messages if turn.role in ("user", "system") for flag in _FLAG.findall(turn.content)]
    return cast(Flag, flags[-1]) if flags else None


def with_flag(turn: Message, flag: Flag | None) -> Message:
    """The turn with the flag after its text, as the renderer appends a row's own flag."""
    if flag is None:
        return turn
    return turn.model_copy(update={"content": f"{turn.content} {flag}" if turn.content else flag})


def without_flags(text: str) -> str:
    """The text with every flag taken out."""
    return _FLAG.sub(" ", text)
