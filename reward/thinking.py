"""Splits and builds assistant turns with a `<think>...</think>` block, as in Qwen's chat template."""

from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_HEAD, _FOOT = f"{OPEN}\n", f"\n{CLOSE}\n\n"
_EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"


class Turn(NamedTuple):
    """A well-formed assistant turn, with thinking and answer.

    `thinking` is None without a block and with an empty one.
    """

    thinking: str | None
    answer: str


def strip_thinking(text: str) -> str | None:
    """Returns the text after the last `</think>`, or the whole text without thinking tags.

    Returns None if a `<think>` is still open.
    """
    close_start = text.rfind(CLOSE)
    if text.rfind(OPEN) > close_start:
        return None
    return text if close_start < 0 else text[close_start + len(CLOSE) :]


def split_turn(text: str) -> Turn | str:
    """Splits a well-formed assistant turn into thinking and answer.

    Returns the reason as text if the turn is malformed.

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


def contains_thinking_tag(text: str) -> bool:
    """Returns whether a text contains `<think>` or `</think>`."""
    return OPEN in text or CLOSE in text


def extract_thinking(text: str) -> str:
    """Returns the thinking part of raw model output, whether its block is closed or not.

    Returns "" if there is none.
    """
    before, _, _ = text.partition(CLOSE)
    return before.partition(OPEN)[2] if OPEN in before else (before if CLOSE in text else "")


def wrap_thinking(thinking: str, answer: str) -> str:
    """Joins thinking and answer into one assistant turn with a thinking block, as Qwen's template writes it.

    Newlines, and nothing else, are stripped around the thinking and before the answer.
    """
    newline = "\n"
    return f"{_HEAD}{thinking.strip(newline)}{_FOOT}{answer.lstrip(newline)}"


def split_for_display(text: str) -> tuple[str, str]:
    """Splits any model output into thinking and answer for display, even if its tags are malformed."""
    thinking, close, answer = text.partition(CLOSE)
    if not close:
        thinking, answer = ("", text) if OPEN not in text else (text, "")
    return thinking.replace(OPEN, "").strip(), answer.strip()
