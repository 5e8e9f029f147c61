"""Splits and builds assistant turns with a `<think>...</think>` block, as in Qwen's chat template."""

import itertools
import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_HEAD, _FOOT = f"{OPEN}\n", f"\n{CLOSE}\n\n"
_TURN_END = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|start_header_id|end)\|>|<｜end▁of▁sentence｜>|<end_of_turn>|</s>"
)
MAY_END_TURN = re.compile(r"<(?:\||/s>|end_|｜)")  # how the marks of a turn's end begin
_QUOTED = re.compile(r"(?<![\w\\])(?P<quote>[\"'`])(?:(?!(?P=quote))[^\\]|\\.)*(?P=quote)(?!\w)")
_FENCE = re.compile(r"(^[ \t]*)?(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_MAX_QUOTED_TAGS = 20  # looked at from the end, so that the time stays linear in the text
_EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"


class Turn(NamedTuple):
    """A well-formed assistant turn, with thinking and answer.

    `thinking` is None without a block and with an empty one.
    """

    thinking: str | None
    answer: str


def strip_thinking(text: str) -> str | None:
    """Returns the text after the last `</think>`, or the whole text without thinking tags.

    Returns None if a `<think>` is still open. A tag in quotation marks is part of the text: a string of a program, an
    argument. So is one in a code block of the answer.
    """
    if OPEN not in text and CLOSE not in text:
        return text
    first_closes = itertools.islice(re.finditer(CLOSE, text), _MAX_QUOTED_TAGS)
    blocks = _find_code_blocks(
        text, next((mark.end() for mark in first_closes if not _is_quoted(text, mark.start())), 0)
    )
    close_start = _find_last_tag(text, CLOSE, blocks)
    if _find_last_tag(text, OPEN, blocks) > close_start:
        return None
    return text if close_start < 0 else text[close_start + len(CLOSE) :]


def cut_at_turn_end(text: str) -> str:
    """Returns a text up to the first mark that ends the assistant's turn, after which nothing is its answer.

    A mark in quotation marks is part of the text.
    """
    if not MAY_END_TURN.search(text):
        return text
    for mark in itertools.islice(_TURN_END.finditer(text), _MAX_QUOTED_TAGS):
        if (mark[0] != "</s>" or "<s>" not in text[: mark.start()]) and not _is_quoted(text, mark.start()):
            return text[: mark.start()]
    return text


def _find_code_blocks(text: str, start: int) -> list[tuple[int, int]]:
    """Returns where the closed code blocks of a text lie that name a language, from a position on."""
    blocks: list[tuple[int, int]] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text, start):
        if opening is None:
            opening = fence if fence[1] is not None else None
        elif fence[2].startswith(opening[2]) and not fence[3]:
            if opening[3]:
                blocks.append((opening.end(), fence.start()))
            opening = None
    return blocks


def _find_last_tag(text: str, tag: str, blocks: list[tuple[int, int]]) -> int:
    """Returns the start of the last tag of a text that is in no code block and not in quotation marks, or -1."""
    start = text.rfind(tag)
    for _ in range(_MAX_QUOTED_TAGS):
        if start < 0:
            break
        if not _is_quoted(text, start) and not any(begin < start < end for begin, end in blocks):
            break
        start = text.rfind(tag, 0, start)
    return start


def _is_quoted(text: str, position: int) -> bool:
    """Returns whether a position of a text is in quotation marks on its line."""
    line_start = text.rfind("\n", 0, position) + 1
    line_end = text.find("\n", position)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    return any(quoted.start() < position - line_start < quoted.end() for quoted in _QUOTED.finditer(line))


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
