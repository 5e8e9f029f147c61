"""The code of a completion: all of it, or its last fenced block of Python."""

import re

_FENCE = re.compile(r"^([ \t]*)(`{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "py", "python3", "py3"})
MAX_CHARACTERS = 200_000  # of code; ten times the longest accepted solution of a programming contest


def codes(text: str) -> list[str]:
    """What may be the code of a text without thinking, the likelier first; none where a fence is left open.

    A text without fences is code as it stands. One with fences may still be, where they are part of a string: such
    a text compiles as a whole, which only the sandbox finds out; otherwise the last block of Python counts.
    """
    if len(text) > MAX_CHARACTERS or not text.strip():
        return []
    fences = list(_FENCE.finditer(text))
    if not fences:
        return [text]
    block = _last_block(text, fences)
    return [text] if block is None else [text, block]


def _last_block(text: str, fences: list[re.Match[str]]) -> str | None:
    last: str | None = None
    opened: re.Match[str] | None = None
    for fence in fences:
        indent, ticks, info = fence.groups()
        if opened is None:
            opened = fence
        elif len(ticks) >= len(opened[2]) and not info.strip():
            if _language(opened) in _PYTHON:
                last = _without_indent(text[opened.end() + 1 : fence.start()], opened[1])
            opened = None
    return None if opened is not None else last


def _language(fence: re.Match[str]) -> str:
    words = fence[3].strip().lower().split()
    return words[0].strip("{}.") if words else ""


def _without_indent(block: str, indent: str) -> str:
    """The block as it reads inside a list item, whose lines are indented like its fence."""
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True)) if indent else block
