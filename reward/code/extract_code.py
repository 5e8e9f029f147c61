"""Extracts the Python code from a completion, as its whole answer or its fenced code blocks."""

import re
from typing import NamedTuple

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_FENCE_AFTER_CODE = re.compile(r"(?<=[^\s`~])[ \t]*(`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_MAX_BLOCKS = 8  # tried from the last one; a right one stands far nearer to the end
_LANGUAGE = re.compile(r"[{.]*([a-z0-9+#-]+?)[0-9.]*(?=[}\s:,]|$)|\{?\S")  # `python3.11`, `{.python}`, `python:add.py`
_PYTHON = frozenset({"", "python", "py"})
_BYTE_ORDER_MARK = "\ufeff"
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
    a text compiles as a whole, which only the sandbox finds out; otherwise a block of Python counts, the last one that
    defines what is asked for, and none does where the last fence is left open. A fence that closes a block on its last
    line of code counts where nothing else gives code.
    """
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if len(text) > MAX_CHARACTERS or not text.strip():
        return None
    fences = list(_FENCE.finditer(text)) if "```" in text or "~~~" in text else []
    if not fences:
        return CodeCandidates([text], fenced=True)
    blocks = _find_blocks(text, fences)[: -_MAX_BLOCKS - 1 : -1]
    if _FENCE_AFTER_CODE.search(text):
        split_text = _FENCE_AFTER_CODE.sub(r"\n\1", text)
        more_blocks = _find_blocks(split_text, list(_FENCE.finditer(split_text)))[: -_MAX_BLOCKS - 1 : -1]
        blocks += [block for block in more_blocks if block not in blocks]
    return CodeCandidates([text, *blocks], fenced=bool(blocks))


def _find_blocks(text: str, fences: list[re.Match[str]]) -> list[str]:
    """Returns the contents of the closed Python code blocks of a text, or none if the last fence is left open."""
    blocks: list[str] = []
    opening: re.Match[str] | None = None
    for fence in fences:
        _, ticks, info = fence.groups()
        if opening is None:
            opening = fence
        elif ticks[0] == opening[2][0] and len(ticks) >= len(opening[2]) and not info.strip():
            if _read_fence_language(opening) in _PYTHON:
                blocks.append(_strip_indent(text[opening.end() + 1 : fence.start()], opening[1]))
            opening = None
    return blocks if opening is None else []


def _read_fence_language(fence: re.Match[str]) -> str:
    """Returns the language named by an opening code fence. Returns "" if it names none."""
    language = _LANGUAGE.match(fence[3].strip().lower())
    return "" if language is None else language[1] or "unknown"


def _strip_indent(block: str, indent: str) -> str:
    """Removes the indentation of a code fence inside a list item from all lines of its block."""
    block = block.removeprefix(_BYTE_ORDER_MARK)
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True)) if indent else block
