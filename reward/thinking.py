"""The thinking block of an assistant turn: `<think>`, a line break, the thinking, `</think>` and a blank line."""

from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_HEAD, _FOOT = f"{OPEN}\n", f"\n{CLOSE}\n\n"
_EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"


class Turn(NamedTuple):
    """A well-formed turn; `thinking` is None without a block and with an empty one."""

    thinking: str | None
    answer: str


def strip_thinking(text: str) -> str | None:
    """Returns the text after the last `</think>`, all of it without tags, None if a `<think>` is still open."""
    close_start = text.rfind(CLOSE)
    if text.rfind(OPEN) > close_start:
        return None
    return text if close_start < 0 else text[close_start + len(CLOSE) :]


def split_turn(text: str) -> Turn | str:
    """Returns thinking and answer of a well-formed turn, else the short reason why it is none.

    Well formed is a non-blank answer, alone or after one block that opens the text: an empty block exactly as
    Qwen's template writes it, or a block with non-blank thinking. Tags anywhere else are malformed.
    """
    if OPEN not in text and CLOSE not in text:
        return Turn(None, text) if text.strip() else "no answer"
    if text.startswith(_EMPTY):
        thinking, answer = None, text[len(_EMPTY) :]
    else:
        if text.rfind(OPEN) > text.rfind(CLOSE):
            return "unfinished thinking"
        head, foot, answer = text.partition(_FOOT)
        if not foot or not head.startswith(_HEAD):
            return "malformed tags"
        thinking = head[len(_HEAD) :]
        if not thinking.strip():
            return "empty thinking"
    if any(tag in part for part in (thinking or "", answer) for tag in (OPEN, CLOSE)):
        return "malformed tags"
    return Turn(thinking, answer) if answer.strip() else "no answer"
