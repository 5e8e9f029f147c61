r"""From the text of an answer to its typed value; None where it says nothing."""

import re
from collections.abc import Iterator
from functools import lru_cache

from qwen_align.reward.math.answer_values import (
    Based,
    Chain,
    Group,
    Matrix,
    Ratio,
    Row,
    Scalar,
    Union,
    Value,
    Words,
)
from qwen_align.reward.math.answer_wrappers import unwrapped
from qwen_align.reward.math.bracket_aware_split import (
    bracket_items,
    inside,
    joined_sets,
    list_items,
    list_with_joints,
    ratio_parts,
    relation_sides,
    such_that,
    without_sets,
)
from qwen_align.reward.math.latex_normalization import MAX_CHARS, layout
from qwen_align.reward.math.list_connectives import AND, OR, are_half_lines, are_of_several, without_counters
from qwen_align.reward.math.matrix_parser import matrix_cells
from qwen_align.reward.math.number_parser import MAX_DIGITS, plain_number, spelled_number
from qwen_align.reward.math.units import measured
from qwen_align.reward.math.word_and_choice_parser import STOP_WORDS, choice_or_words, fold

MAX_ITEMS = 1_000  # of a list; longer ones are compared as they are written
_MAX_DEPTH = 12  # brackets in brackets that are read as sets and points; deeper is an expression
_MAX_SIGNS = 3  # plus-minus signs that are expanded, to eight values

_BASED = re.compile(
    r"(-?)(?:([0-9A-Za-z]*[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)|\(([0-9A-Za-z]+)\))"
    r" ?_ ?(?:([0-9])|\{ ?(?:\\text\{)? ?([0-9]{1,2}|[a-z]+) ?\}{1,2})"
)
_SPACED_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
_NAMED_POINT = re.compile(r"[A-Z]'? ?(\([^()]*[,;][^()]*\))")
_ONE_THOUSANDS = re.compile(r"[^,;]*(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])[^,;]*")
_UPRIGHT = re.compile(r"[$ ]*\\text *\{ *([A-Za-z]{2,}) *\}[$ .]*")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LONG_RUN = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTION_WORDS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min mod sqrt pi frac asin "
    "acos atan abs floor ceil det oo inf theta alpha beta gamma infty".split()
)
_REALS = re.compile(
    r"\\mathbb ?\{ ?R ?\}|\\mathbb R|\\mathbf ?\{ ?R ?\}|\\R|\\Re|(?:the set of )?all (?:the )?real(?:s| numbers)?"
    r"|(?:全体|所有)?实数集?|任意实数"
)
_NOTHING = re.compile(
    r"\\emptyset|\\\{ *\\\}|(?:the )?empty ?set|空集|no (?:real )?solutions?|无解|无实数解"
    r"|there (?:is|are) no (?:real )?solutions?",
    re.IGNORECASE,
)
_INFINITY = re.compile(r"([+-]?) ?(?:\\infty|infinity|inf|oo|无穷大?|正无穷大?)", re.IGNORECASE)
_SAYS_NOTHING = re.compile(r"(?:\?+|nan|none|null|unknown|n/a|\\text\{\}|-|\.)?", re.IGNORECASE)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def read(answer: str, letters: frozenset[str] = frozenset()) -> Value | None:
    """The value an answer states, None if it states nothing; `letters` as in `units.measured`."""
    if len(answer) > MAX_CHARS:
        return Words(" ".join(answer.split()))
    text = layout(answer)
    return value_of(text[1:] if text[:1] in (":", "=") else text, letters)


@lru_cache(maxsize=4_096)
def value_of(text: str, letters: frozenset[str] = frozenset(), depth: int = 0) -> Value | None:
    """The value of a text in layout form."""
    if (upright := _UPRIGHT.fullmatch(text)) is not None:
        value = value_of(upright[1], letters, depth + 1)
        return value._replace(written="") if isinstance(value, Words) else value  # a word, no product of letters
    text = unwrapped(text)
    if _SAYS_NOTHING.fullmatch(text):
        return None
    if text[-1:].isdigit() and " " in text and _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    number = plain_number(text)
    if number is not None:
        return Scalar(text, number)
    if depth > _MAX_DEPTH:
        return Scalar(text)
    for reader in (_named_set, _option_or_words, _list, _chain, _sets, _matrix, _bracketed, _signs, _digits, _ratio):
        found = reader(text, letters, depth)
        if found is not None:
            return found
    return _scalar(text, letters, depth)


def _named_set(text: str, letters: frozenset[str], depth: int) -> Value | None:
    if _REALS.fullmatch(text):
        return Row("(", (Scalar(r"-\infty"), Scalar(r"\infty")), ")")
    if _NOTHING.fullmatch(text):
        return Group(())
    if found := _INFINITY.fullmatch(text):
        return Scalar(r"-\infty" if found[1] == "-" else r"\infty")
    return None


def _option_or_words(text: str, letters: frozenset[str], depth: int) -> Value | None:
    return choice_or_words(text)


def _list(text: str, letters: frozenset[str], depth: int) -> Value | None:
    items, joints = list_with_joints(text)
    if len(items) == 1 and items[0] == text:
        return None
    if not items:
        return None
    if len(items) > MAX_ITEMS:
        return Words(text)
    if len(items) > 1:
        items = without_counters(items)
    if len(items) > 1 and _ONE_THOUSANDS.fullmatch(text):  # `$1,000.99`, `12,500 cm`
        return value_of(text.replace(",", ""), letters, depth + 1)
    found = items_of(items, letters, depth)
    if isinstance(found, Group) and all(AND.fullmatch(joint) for joint in joints) and are_half_lines(found):
        return found._replace(all_hold=True)
    if isinstance(found, Group) and all(map(OR.fullmatch, joints)) and are_of_several(found):
        return Group((Words("or"), *found.items))
    return found


def items_of(items: list[str], letters: frozenset[str], depth: int) -> Value | None:
    values = tuple(value_of(item, letters, depth + 1) for item in items)
    if len(values) == 1:
        return values[0]
    return Group(tuple(_flat(items, values)))


def _flat(items: list[str], values: tuple[Value | None, ...]) -> Iterator[Value]:
    """The values, where plus-minus stands for two of them both."""
    for item, value in zip(items, values, strict=True):
        if isinstance(value, Group) and (r"\pm" in item or r"\mp" in item) and not item.startswith((r"\{", "{")):
            yield from value.items
        else:
            yield Words("?") if value is None else value


def _chain(text: str, letters: frozenset[str], depth: int) -> Value | None:
    sides, relations = relation_sides(text)
    return Chain(tuple(sides), tuple(relations)) if relations else None


def _sets(text: str, letters: frozenset[str], depth: int) -> Value | None:
    whole = without_sets(text)
    parts = joined_sets(whole[0])
    if len(parts) == 1 and len(whole) == 1:
        return None
    values = [value_of(part, letters, depth + 1) for part in (*parts, *whole[1:])]
    known = tuple(value for value in values if value is not None)
    return Union(known[: len(parts)], known[len(parts) :]) if len(known) == len(values) else None


def _matrix(text: str, letters: frozenset[str], depth: int) -> Value | None:
    found = matrix_cells(text) if r"\begin" in text else None
    if found is None:
        return None
    kind, cells = found
    return Matrix(kind, tuple(tuple(value_of(cell, letters, depth + 1) or Words("?") for cell in row) for row in cells))


def _bracketed(text: str, letters: frozenset[str], depth: int) -> Value | None:
    if named := _NAMED_POINT.fullmatch(text):
        text = named[1]
    for opening, closing in (("(", (")", "]")), ("[", (")", "]")), (r"\langle", (r"\rangle",))):
        if found := inside(text, opening, closing):
            items = bracket_items(found[0])
            if len(items) == 1 and opening == "(" and found[1] == ")":
                return None if depth + 1 > _MAX_DEPTH else value_of(found[0], letters, depth + 1)
            if len(items) == 1 and opening == "[" and ".." not in text:
                return value_of(found[0], letters, depth + 1)
            values = tuple(value_of(item, letters, depth + 1) or Words("?") for item in items)
            if opening + found[1] == "[]" and (rows := _rows_of_a_matrix(values)):
                return Matrix("matrix", rows)
            return Row("(" if opening == r"\langle" else opening, values, ")" if opening == r"\langle" else found[1])
    if text[:1] == "]" or (text[:1] == "[" and text[-1:] == "["):  # ]0,1[ is the French open interval
        items = bracket_items(text[1:-1])
        values = tuple(value_of(item, letters, depth + 1) or Words("?") for item in items)
        if len(items) == 2 and text[-1:] in "[]":
            return Row("(" if text[0] == "]" else "[", values, ")" if text[-1] == "[" else "]")
    for opening, partner in ((r"\{", r"\}"), ("{", "}")):
        if found := inside(text, opening, (partner,)):
            said = such_that(found[0])
            if len(said) == 2 and opening == r"\{":
                return value_of(said[1], letters, depth + 1)
            items = [item for item in list_items(found[0]) if item]
            return Group(tuple(_flat(items, tuple(value_of(item, letters, depth + 1) for item in items))))
    return None


def _rows_of_a_matrix(values: tuple[Value, ...]) -> tuple[tuple[Value, ...], ...]:
    """The rows of `[[1,2],[3,4]]`, none if the values are not rows of one length."""
    rows = [value.items for value in values if isinstance(value, Row) and (value.opening, value.closing) == ("[", "]")]
    return tuple(rows) if len(rows) == len(values) and len(set(map(len, rows))) == 1 else ()


def _signs(text: str, letters: frozenset[str], depth: int) -> Value | None:
    """Plus-minus as the values it stands for; with \\mp in the same text all signs go together."""
    n_signs = text.count(r"\pm") + text.count(r"\mp")
    if not n_signs or n_signs > _MAX_SIGNS or list_items(text) != [text]:
        return None
    if r"\mp" in text or n_signs == 1:
        said = [text.replace(r"\pm", "+").replace(r"\mp", "-"), text.replace(r"\pm", "-").replace(r"\mp", "+")]
    else:
        said = [text]
        for _ in range(n_signs):
            said = [one.replace(r"\pm", sign, 1) for one in said for sign in "+-"]
    return items_of(said, letters, depth)


def _digits(text: str, letters: frozenset[str], depth: int) -> Value | None:
    found = _BASED.fullmatch(text) if "_" in text and len(text) <= MAX_DIGITS else None
    if found is None:
        return None
    name = found[4] or found[5]
    base = int(name) if name.isdigit() else spelled_number(name)
    digits = (found[2] or found[3]).lower()
    if base is None or not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits if digit != "."):
        return None
    if base == 10:
        return value_of(found[1] + digits, letters, depth + 1)
    return Based(found[1] + (digits.lstrip("0") or "0"), int(base))


def _ratio(text: str, letters: frozenset[str], depth: int) -> Value | None:
    parts = ratio_parts(text)
    if not 2 <= len(parts) <= 6 or not all(parts):
        return None
    last = measured(parts[-1], letters)
    values = [value_of(part, letters, depth + 1) for part in (*parts[:-1], last.text)]
    known = tuple(value for value in values if isinstance(value, Scalar))
    return Ratio(known, last.unit) if len(known) == len(parts) else None


def _scalar(text: str, letters: frozenset[str], depth: int) -> Value | None:
    found = measured(text, letters)
    if found.unit is None and found.scale == 1:
        return _expression(text)
    body = value_of(found.text, letters, depth + 1)
    if not isinstance(body, Scalar) or body.unit is not None:
        return body if isinstance(body, Group | Row) else _expression(text)
    if found.scale != 1:
        if body.number is None:
            return _expression(text)
        number = body.number * found.scale
        return Scalar(str(number), number, found.unit)
    return body._replace(unit=found.unit)


def _expression(text: str) -> Value | None:
    plain = _TEXT.sub(r" \1 ", text) if r"\text" in text else text
    for run in _LONG_RUN.findall(plain):
        if run.lower() in STOP_WORDS or (
            len(run) > 3 and run.lower() not in _FUNCTION_WORDS and list(run) != sorted(run)
        ):
            return Words(fold(plain), plain)
    return Scalar(text)
