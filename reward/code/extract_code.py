"""Extracts the Python code from a completion, as its whole answer or its last fenced code block."""

import re
from typing import NamedTuple

_FENCE = re.compile(r"^([ \t]*)(`{3,})([^\n`]*)$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "py", "python3", "py3"})
MAX_CHARACTERS = 200_000  # of code; ten times the longest accepted solution of a programming contest


class CodeCandidates(NamedTuple):
    """The texts that may be a completion's code, in the order in which to try them.

    `fenced` is False where there are fences but no block to take.
    """

    texts: list[str]
    fenced: bool


def extract_code(text: str) -> CodeCandidates | None:
    """Extracts the candidate code texts from a completion's answer. Returns None if it certainly contains no code.

    A text without fences is code as it stands. One with fences may still be, where they are part of a string: such
    a text compiles as a whole, which only the sandbox finds out; otherwise the last block of Python counts, and none
    does where the last fence is left open.
    """
    if len(text) > MAX_CHARACTERS or not text.strip():
        return None
    fences = list(_FENCE.finditer(text))
    if not fences:
        return CodeCandidates([text], fenced=True)
    block = _find_last_block(text, fences)
    return CodeCandidates([text], fenced=False) if block is None else CodeCandidates([text, block], fenced=True)


def _find_last_block(text: str, fences: list[re.Match[str]]) -> str | None:
    """Returns the content of the last closed Python code block of a text.

    Returns None if the last fence is left open.
    """
    block: str | None = None
    opening: re.Match[str] | None = None
    for fence in fences:
        _, ticks, info = fence.groups()
        if opening is None:
            opening = fence
        elif len(ticks) >= len(opening[2]) and not info.strip():
            if _read_fence_language(opening) in _PYTHON:
                block = _strip_indent(text[opening.end() + 1 : fence.start()], opening[1])
            opening = None
    return None if opening is not None else block


def _read_fence_language(fence: re.Match[str]) -> str:
    """Returns the language named by an opening code fence. Returns "" if it names none."""
    words = fence[3].strip().lower().split()
    return words[0].strip("{}.") if words else ""


def _strip_indent(block: str, indent: str) -> str:
    """Removes the indentation of a code fence inside a list item from all lines of its block."""
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True)) if indent else block
