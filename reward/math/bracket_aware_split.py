r"""Cutting an answer outside all its brackets: into list items, at relations, at `\cup`, at colons."""

import re

_OPENING = frozenset({"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"})
_CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"})
_BRACKETS = r"\\[A-Za-z]+|\\.|[()\[\]{}]"
_AND = r"(?:and|or|及|和|或者|或|与|以及)"
_LIST = re.compile(
    rf"(\\text\{{\s*[,;]?\s*{_AND}?\s*[,;]?\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|land)(?![A-Za-z])|[,;]|或者|以及|[和或与及且])|{_BRACKETS}"
)
_RELATION = re.compile(
    r"((?:\\(?:le|ge|ne|in|notin|approx|equiv|sim|cong|simeq|parallel|perp|subset|subseteq|mid|propto|ll|gg)(?![A-Za-z]))"
    rf"|<=|>=|==|:=|[=<>])|{_BRACKETS}"
)
_CUP = re.compile(rf"(\\cup(?![A-Za-z])|(?<=[)\]])\s*[Uu]\s*(?=[(\[]))|{_BRACKETS}")
_MINUS = re.compile(rf"(\\setminus(?![A-Za-z]))|{_BRACKETS}")
_COLON = re.compile(rf"(:|\\text\{{\s*(?:to|:)\s*\}}|(?<=[0-9a-z}}])\s+to\s+(?=[0-9a-z\\]))|{_BRACKETS}")
_SUCH_THAT = re.compile(rf"(\||:|\\mid(?![A-Za-z])|\\vert(?![A-Za-z]))|{_BRACKETS}")
_COMMA = re.compile(rf"([,;])|{_BRACKETS}")
_LOGICAL = frozenset((r"\lor", r"\land"))
_SAME = {"<=": r"\le", ">=": r"\ge", ":=": "="}


def list_items(text: str) -> list[str]:
    """The items of a list, which stand between commas, semicolons and words for "and" and "or"."""
    return list_with_joints(text)[0]


def list_with_joints(text: str) -> tuple[list[str], list[str]]:
    """The items of a list and what stands between them."""
    pieces, marks = _cut(text, _LIST)
    if not _LOGICAL.isdisjoint(marks) and not all(_cut(piece, _RELATION)[1] for piece in pieces):
        return [text], []  # `p \\land q` is one proposition, `x > 1 \\land x < 2` two relations
    return (_without_empty_ends(pieces) if marks else pieces), marks


def bracket_items(text: str) -> list[str]:
    """The items between a pair of brackets, separated by semicolons where there is one, else by commas."""
    pieces, marks = _cut(text, _COMMA)
    if ";" in marks and "," in marks:
        return _cut(text, re.compile(rf"(;)|{_BRACKETS}"))[0]
    return pieces


def relation_sides(text: str) -> tuple[list[str], list[str]]:
    """The sides and the relations between them, one side where there is none."""
    sides, relations = _cut(text, _RELATION)
    return sides, [_SAME.get(relation, relation) for relation in relations]


def joined_sets(text: str) -> list[str]:
    return _cut(text, _CUP)[0]


def without_sets(text: str) -> list[str]:
    return _cut(text, _MINUS)[0]


def ratio_parts(text: str) -> list[str]:
    return _cut(text, _COLON)[0]


def such_that(text: str) -> list[str]:
    return _cut(text, _SUCH_THAT)[0]


def inside(text: str, opening: str, closing: tuple[str, ...]) -> tuple[str, str] | None:
    """What stands between `opening` at the start and its own partner at the very end, and that partner."""
    if not text.startswith(opening):
        return None
    end = next((mark for mark in closing if text.endswith(mark)), None)
    if end is None or len(text) < len(opening) + len(end):
        return None
    depth = 0
    for found in re.finditer(_BRACKETS, text):
        mark = found[0]
        if mark in _OPENING:
            depth += 1
        elif mark in _CLOSING:
            depth -= 1
            if depth <= 0:
                at_end = depth == 0 and found.end() == len(text) and mark == end
                return (text[len(opening) : -len(end)].strip(), end) if at_end else None
    return None


def _cut(text: str, at: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The pieces between the marks of `at`'s first group that stand outside all brackets, and those marks."""
    pieces: list[str] = []
    marks: list[str] = []
    depth = start = 0
    for found in at.finditer(text):
        if found[1] is None:
            depth += (found[0] in _OPENING) - (found[0] in _CLOSING)
            if depth < 0:
                return [text], []
        elif depth == 0:
            pieces.append(text[start : found.start()].strip())
            marks.append(found[1])
            start = found.end()
    if depth:
        return [text], []
    return [*pieces, text[start:].strip()], marks


def _without_empty_ends(pieces: list[str]) -> list[str]:
    """`1, 2, and 3` has an empty piece between its comma and its "and"."""
    return [piece for piece in pieces if piece]
