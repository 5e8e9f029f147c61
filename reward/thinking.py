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


def contains_thinking_tag(text: str) -> bool:
    """Tells whether the text holds `<think>` or `</think>`."""
    return OPEN in text or CLOSE in text


def extract_thinking(text: str) -> str:
    """Returns the thinking in raw model output, closed or not; "" if there is none."""
    before, _, _ = text.partition(CLOSE)
    return before.partition(OPEN)[2] if OPEN in before else (before if CLOSE in text else "")


def wrap_thinking(thinking: str, answer: str) -> str:
    """Returns a turn with its thinking in a block in front of its answer, as Qwen's template writes it.

    Newlines, and nothing else, are stripped around the thinking and before the answer.
    """
    newline = "\n"
    return f"{_HEAD}{thinking.strip(newline)}{_FOOT}{answer.lstrip(newline)}"


def split_for_display(text: str) -> tuple[str, str]:
    """Returns thinking and answer of any model output, well formed or not, without the tags around the thinking."""
    thinking, close, answer = text.partition(CLOSE)
    if not close:
        thinking, answer = ("", text) if OPEN not in text else (text, "")
    return thinking.replace(OPEN, "").strip(), answer.strip()
