r"""Finds the boxed answers of a text, written as `\boxed{...}`, `\fbox{...}` or `\boxed 7`, in one pass."""

import re
from typing import NamedTuple

_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACELESS = re.compile(r"\\(?:boxed|fbox)(?:\s+|(?=[0-9]))(-?[0-9][0-9.,/]*|[A-Za-z])(?=[\s$.,;\\]|$)")
_LONGEST_JOINT = 80  # characters; room for `$ \quad \text{ and } \quad $` on a few lines
JOINT = re.compile(
    r"(?:[\s,;/&*$、和或与及者且以]|(?:[.?]\s+[Oo]r|\bor) (?:maybe|perhaps|possibly)\b"
    r"|\\[,;:! ()\[\]]|\\q?quad\b|\band\b|\bor\b"
    r"|\\(?:text|mathrm|mbox)\{\s*,?\s*(?:and|or)?\s*\})*"
)


class Box(NamedTuple):
    """A box of a LaTeX text, with its start, its end and its content."""

    start: int
    end: int
    content: str


def find_last_boxes(text: str) -> list[Box] | str:
    """Returns the last box of a text and the boxes directly before it, joined by `,`, "and" or "or".

    Returns the reason as text if there is no box.

    A box inside a box is part of the outer one. If the last box that opens never closes there is no answer: an
    earlier box is not what the writer ended on.
    """
    text = _BRACELESS.sub(r"\\boxed{\1}", text)
    boxes = _find_outermost_boxes(text)
    if isinstance(boxes, str):
        return boxes
    first = len(boxes) - 1
    while first > 0 and _are_boxes_joined(text, boxes[first - 1], boxes[first]):
        first -= 1
    return boxes[first:]


def find_all_boxes(text: str) -> list[Box]:
    """Returns all boxes of a text that lie inside no other, in order, or none if the last never closes."""
    boxes = _find_outermost_boxes(_BRACELESS.sub(r"\\boxed{\1}", text))
    return [] if isinstance(boxes, str) else boxes


def _are_boxes_joined(text: str, left: Box, right: Box) -> bool:
    """Returns whether only a comma, "and" or "or" stands between two boxes of a text."""
    gap = right.start - left.end
    return gap <= _LONGEST_JOINT and JOINT.fullmatch(text, left.end, right.start) is not None


def _find_outermost_boxes(text: str) -> list[Box] | str:
    """Returns the boxes of a text that lie inside no other box, in order.

    Returns the reason as text if there is no box.
    """
    open_spans: list[tuple[int, int] | None] = []  # span of what opened it; None for a plain brace
    closed_boxes: list[tuple[int, int, int]] = []  # start of the box, start and end of its content
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark == "}" and open_spans:
            span = open_spans.pop()
            if span is not None:
                closed_boxes.append((*span, token.start()))
        elif mark == "{":
            open_spans.append(None)
        elif len(mark) > 2:
            open_spans.append(token.span())
    last_open = max((span[0] for span in open_spans if span is not None), default=-1)
    if not closed_boxes:
        return "no boxed answer" if last_open < 0 else "unterminated box"
    outermost: list[Box] = []
    for start, begin, end in reversed(closed_boxes):  # by falling end, so an outer box comes before what it holds
        if not outermost or end < outermost[-1].start:
            outermost.append(Box(start, end + 1, text[begin:end]))
    return "unterminated box" if last_open > outermost[0].start else outermost[::-1]
