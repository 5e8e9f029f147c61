r"""Splits an answer at delimiters outside all brackets: at commas, relations, `\cup` or colons."""

import re

_OPENING = frozenset({"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"})
_CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"})
_BRACKETS = r"\\[A-Za-z]+|\\.|[()\[\]{}]"
_CONJUNCTION = r"(?:and|or|及|和|或者|或|与|以及)"
_LIST_DELIMITER = re.compile(
    rf"(\\text\{{\s*[,;]?\s*{_CONJUNCTION}?\s*[,;]?\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|land)(?![A-Za-z])|[,;]|或者|以及|[和或与及且])|{_BRACKETS}"
)
_RELATION = re.compile(
    r"((?:\\(?:le|ge|ne|in|notin|approx|equiv|sim|cong|simeq|parallel|perp|subset|subseteq|mid|propto|ll|gg)(?![A-Za-z]))"
    rf"|<=|>=|==|:=|[=<>])|{_BRACKETS}"
)
_UNION_SIGN = re.compile(rf"(\\cup(?![A-Za-z])|(?<=[)\]])\s*[Uu]\s*(?=[(\[]))|{_BRACKETS}")
_SET_MINUS_SIGN = re.compile(rf"(\\setminus(?![A-Za-z])|(?<=[R\])}}])\s*-\s*(?=\\\{{))|{_BRACKETS}")
_RATIO_SIGN = re.compile(rf"(:|\\text\{{\s*(?:to|:)\s*\}}|(?<=[0-9a-z}}])\s+to\s+(?=[0-9a-z\\]))|{_BRACKETS}")
_SUCH_THAT_SIGN = re.compile(rf"(\||:|\\mid(?![A-Za-z])|\\vert(?![A-Za-z]))|{_BRACKETS}")
_COMMA_OR_SEMICOLON = re.compile(rf"([,;])|{_BRACKETS}")
_LOGICAL_SIGNS = frozenset((r"\lor", r"\land"))
_RELATION_ALIASES = {"<=": r"\le", ">=": r"\ge", ":=": "="}


def split_list(text: str) -> list[str]:
    """Splits a list at commas, semicolons and the words "and" and "or"."""
    return split_list_with_connectives(text)[0]


def split_list_with_connectives(text: str) -> tuple[list[str], list[str]]:
    """Splits a list as `split_list` does and returns its items and the connectives between them."""
    pieces, marks = _split_outside_brackets(text, _LIST_DELIMITER)
    if not _LOGICAL_SIGNS.isdisjoint(marks) and not all(
        _split_outside_brackets(piece, _RELATION)[1] for piece in pieces
    ):
        return [text], []  # `p \\land q` is one proposition, `x > 1 \\land x < 2` two relations
    return (_drop_empty_pieces(pieces) if marks else pieces), marks


def split_bracket_items(text: str) -> list[str]:
    """Splits the content of brackets into items, at semicolons if it has both semicolons and commas, else at either."""
    pieces, marks = _split_outside_brackets(text, _COMMA_OR_SEMICOLON)
    if ";" in marks and "," in marks:
        return _split_outside_brackets(text, re.compile(rf"(;)|{_BRACKETS}"))[0]
    return pieces


def split_relations(text: str) -> tuple[list[str], list[str]]:
    """Splits an equation or inequality into its sides and its relation signs.

    A text without a relation sign is one side.
    """
    sides, relations = _split_outside_brackets(text, _RELATION)
    return sides, [_RELATION_ALIASES.get(relation, relation) for relation in relations]


def split_set_union(text: str) -> list[str]:
    r"""Splits a text at union signs, which may be written `\cup` or `U` as in `(0,1) U (2,3)`."""
    return _split_outside_brackets(text, _UNION_SIGN)[0]


def split_set_difference(text: str) -> list[str]:
    r"""Splits a text at the set difference sign `\setminus`."""
    return _split_outside_brackets(text, _SET_MINUS_SIGN)[0]


def split_ratio(text: str) -> tuple[list[str], bool]:
    """Splits a ratio at colons and at the word "to" between numbers, and returns whether there was such a word."""
    parts, marks = _split_outside_brackets(text, _RATIO_SIGN)
    return parts, any("to" in mark for mark in marks)


def split_set_builder(text: str) -> list[str]:
    """Splits the set-builder notation `x | x > 0` or `x : x > 0` at its bar or colon."""
    return _split_outside_brackets(text, _SUCH_THAT_SIGN)[0]


def extract_bracket_content(text: str, opening: str, closing: tuple[str, ...]) -> tuple[str, str] | None:
    """Returns the text inside the bracket pair that encloses a whole text, and the closing bracket.

    None if the text does not start with `opening`, or if the partner stands earlier or is none of `closing`.
    """
    if not text.startswith(opening):
        return None
    closing_mark = next((mark for mark in closing if text.endswith(mark)), None)
    if closing_mark is None or len(text) < len(opening) + len(closing_mark):
        return None
    depth = 0
    for match in re.finditer(_BRACKETS, text):
        mark = match[0]
        if mark in _OPENING:
            depth += 1
        elif mark in _CLOSING:
            depth -= 1
            if depth <= 0:
                is_at_end = depth == 0 and match.end() == len(text) and mark == closing_mark
                return (text[len(opening) : -len(closing_mark)].strip(), closing_mark) if is_at_end else None
    return None


def _split_outside_brackets(text: str, delimiter: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Splits a text at the delimiters outside all brackets and returns the pieces and the delimiters.

    A delimiter is what the pattern's first group matches; without it the pattern matches brackets.
    A text whose brackets do not match is not split.
    """
    pieces: list[str] = []
    marks: list[str] = []
    depth = start = 0
    for match in delimiter.finditer(text):
        if match[1] is None:
            depth += (match[0] in _OPENING) - (match[0] in _CLOSING)
            if depth < 0:
                return [text], []
        elif depth == 0:
            pieces.append(text[start : match.start()].strip())
            marks.append(match[1])
            start = match.end()
    if depth:
        return [text], []
    return [*pieces, text[start:].strip()], marks


def _drop_empty_pieces(pieces: list[str]) -> list[str]:
    """Drops empty strings from a list of pieces, such as the one in `1, 2, and 3` between its comma and "and"."""
    return [piece for piece in pieces if piece]
