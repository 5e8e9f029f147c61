"""Parses the text of an answer to a typed value (number, tuple, set, equation ...)."""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.answer_values import (
    AnswerValue,
    BaseNumeral,
    BracketedTuple,
    Matrix,
    Ratio,
    RelationChain,
    Scalar,
    SetBuilder,
    SetUnion,
    UnorderedItems,
    Words,
)
from qwen_align.reward.math.answer_wrappers import strip_wrappers
from qwen_align.reward.math.bracket_aware_split import (
    extract_bracket_content,
    split_bracket_items,
    split_list,
    split_list_with_connectives,
    split_ratio,
    split_relations,
    split_set_difference,
    split_set_union,
)
from qwen_align.reward.math.compound_quantities import sum_compound_quantity
from qwen_align.reward.math.congruences import parse_congruence
from qwen_align.reward.math.joined_numbers import parse_joined_numbers
from qwen_align.reward.math.latex_normalization import MAX_CHARS, normalize_latex
from qwen_align.reward.math.list_connectives import (
    AND_PATTERN,
    OR_PATTERN,
    drop_counter_domains,
    has_only_inequalities,
    has_several_variables,
    state_integer_domains,
)
from qwen_align.reward.math.matrix_parser import parse_matrix_cells
from qwen_align.reward.math.number_parser import MAX_DIGITS, parse_plain_number, parse_spelled_number
from qwen_align.reward.math.set_builder import list_whole_numbers, reduce_to_condition, split_element_and_condition
from qwen_align.reward.math.units import split_off_unit
from qwen_align.reward.math.word_and_choice_parser import STOP_WORDS, normalize_words, parse_choice_or_words

MAX_ITEMS = 1_000  # of a list; longer ones are compared as text
_MAX_DEPTH = 12  # nested brackets parsed as sets and points; deeper ones are an expression
_MAX_PLUS_MINUS_SIGNS = 3  # plus-minus signs that are expanded, to eight values

_BASE_NUMERAL = re.compile(
    r"(-?)(?:([0-9A-Za-z]*[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)|\(([0-9A-Za-z]+)\))"
    r" ?_ ?(?:([0-9])|\{ ?(?:\\text\{)? ?([0-9]{1,2}|[a-z]+) ?\}{1,2})"
)
_WORDED_BASE = re.compile(
    r"(-?[0-9A-Za-z]+) ?(?:\\text ?\{)? ?\(? ?(?:in )?base[ -]\}?\{?([0-9]{1,2}|[a-z]+)\}? ?\)? ?\}?"
)
_NAMED_BASE = re.compile(
    r"(-?[0-9A-Fa-f]+) ?(?:\\text ?\{)? ?\(? ?(?:in )?(binary|octal|hexadecimal)(?: notation)? ?\)? ?\}?"
)
_BASES = {"binary": 2, "octal": 8, "hexadecimal": 16}
_TRANSPOSED = re.compile(r"([(\[].+[)\]]) ?\^ ?(?:T|\\top|\{ ?(?:T|\\top|\\(?:text|mathrm) ?\{ ?T ?\}) ?\})")
_SPACED_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
_NAMED_POINT = re.compile(
    r"((?:[A-Z]|\\text ?\{ ?[A-Z] ?\}|\\mathcal ?\{? ?[A-Z] ?\}?)(?:_(?:[0-9]|\{[0-9]+\}))?'?) ?(\([^()]*[,;][^()]*\))"
)
_NAME_TYPESETTING = re.compile(r"\\(?:text|mathcal)|[{} ]")
_SINGLE_THOUSANDS_NUMBER = re.compile(r"[^,;]*(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])[^,;]*")
_UPRIGHT_WORD = re.compile(r"[$ ]*\\text *\{ *([A-Za-z]{2,}) *\}[$ .]*")
_TEXT_COMMAND = re.compile(r"\\text\{([^{}]*)\}")
# `9\text{ chickens and }10\text{ rabbits}`
_CONNECTIVE_IN_TEXT = re.compile(r"\\text\{([^{}]*[A-Za-z])\s*,?\s(and|or)\s*\}(?=\s*[0-9\\])")
_BRACKETED_DOMAIN = re.compile(r"(?<=\S) ?\(([klmnrt] ?\\in ?(?:\\mathbb ?\{ ?Z ?\}|\\mathbb Z|\\Z))\)$")
_OPERATOR = re.compile(r"[-+*/^=]|\\(?:cdot|frac|times)(?![A-Za-z])")  # beside which `BE` is a segment
_LETTER_RUN = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTION_WORDS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min mod sqrt pi frac asin "
    "acos atan abs floor ceil det oo inf theta alpha beta gamma infty".split()
)
_REAL_LINE = re.compile(
    r"\\mathbb ?\{ ?R ?\}|\\mathbb R|\\mathbf ?\{ ?R ?\}|\\R|\\Re|(?:the set of )?all (?:the )?real(?:s| numbers)?"
    r"|(?:全体|所有)?实数集?|任意实数"
)
_EMPTY_SET = re.compile(
    r"\\emptyset|\\\{ *\\\}|(?:the )?empty ?set|空集|no (?:real )?solutions?|无解|无实数解"
    r"|there (?:is|are) no (?:real )?solutions?",
    re.IGNORECASE,
)
_INFINITY = re.compile(r"([+-]?) ?(?:\\infty|infinity|inf|oo|无穷大?|正无穷大?)", re.IGNORECASE)
_NO_ANSWER = re.compile(r"(?:\?+|nan|none|null|unknown|n/a|\\text\{\}|-|\.)?", re.IGNORECASE)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def parse_answer(answer: str, unit_letters: frozenset[str] = frozenset()) -> AnswerValue | None:
    """Parses the text of an answer, as a model or a data set wrote it, to a typed value.

    Returns None if the text is empty or holds no answer. `unit_letters` as in `units.split_off_unit`. An answer above
    MAX_CHARS is kept as words.
    """
    if len(answer) > MAX_CHARS:
        return Words(" ".join(answer.split()))
    text = state_integer_domains(normalize_latex(answer))
    return parse_normalized(text[1:] if text[:1] in (":", "=") else text, unit_letters)


@lru_cache(maxsize=4_096)
def parse_normalized(text: str, unit_letters: frozenset[str] = frozenset(), depth: int = 0) -> AnswerValue | None:
    """Parses an answer in normalized LaTeX to a typed value. Returns None if the text is empty or holds no answer."""
    if (upright_word := _UPRIGHT_WORD.fullmatch(text)) is not None:
        value = parse_normalized(upright_word[1], unit_letters, depth + 1)
        return value._replace(original_text="") if isinstance(value, Words) else value  # a word, no product of letters
    text = strip_wrappers(text)
    if _NO_ANSWER.fullmatch(text):
        return None
    if text[-1:].isdigit() and " " in text and _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    number = parse_plain_number(text)
    if number is not None:
        return Scalar(text, number)
    if depth > _MAX_DEPTH:
        return Scalar(text)
    for parse_kind in (
        _parse_named_set,
        _parse_choice_or_words,
        _parse_compound_quantity,
        _parse_congruence,
        _parse_list,
        _parse_relations,
        _parse_set_union,
        _parse_matrix,
        _parse_transposed_row,
        _parse_brackets,
        _parse_plus_minus,
        _parse_base_numeral,
        _parse_ratio,
    ):
        parsed = parse_kind(text, unit_letters, depth)
        if parsed is not None:
            return parsed
    return _parse_scalar(text, unit_letters, depth)


def _parse_named_set(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    r"""Parses the name of a set or an infinity, such as "all real numbers", "the empty set" or `-\infty`."""
    if _REAL_LINE.fullmatch(text):
        return BracketedTuple("(", (Scalar(r"-\infty"), Scalar(r"\infty")), ")")
    if _EMPTY_SET.fullmatch(text):
        return UnorderedItems(())
    if match := _INFINITY.fullmatch(text):
        return Scalar(r"-\infty" if match[1] == "-" else r"\infty")
    return None


def _parse_choice_or_words(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a multiple-choice option or an answer in words."""
    return parse_choice_or_words(text)


def _parse_compound_quantity(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a quantity in several units of one kind, such as `2 hours 30 minutes`."""
    quantity = sum_compound_quantity(text)
    return None if quantity is None else Scalar(str(quantity[0]), *quantity)


def _parse_congruence(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a residue class."""
    return parse_congruence(text)


def _parse_list(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a list of answers separated by commas, semicolons or words such as "and" and "or"."""
    text = _CONNECTIVE_IN_TEXT.sub(r"\\text{\1}\\text{ \2 }", text) if r"\text" in text else text
    text = _BRACKETED_DOMAIN.sub(r", \1", text) if r"\in" in text else text
    items, connectives = split_list_with_connectives(text)
    if len(items) == 1 and items[0] == text:
        return None
    if not items:
        return None
    if len(items) > MAX_ITEMS:
        return Words(text)
    if len(items) > 1:
        items = drop_counter_domains(items)
    if len(items) > 1 and _SINGLE_THOUSANDS_NUMBER.fullmatch(text):  # `$1,000.99`, `12,500 cm`
        return parse_normalized(text.replace(",", ""), unit_letters, depth + 1)
    parsed = parse_items(items, unit_letters, depth)
    if (
        isinstance(parsed, UnorderedItems)
        and all(AND_PATTERN.fullmatch(joint) for joint in connectives)
        and has_only_inequalities(parsed)
    ):
        return parsed._replace(all_hold=True)
    if (
        isinstance(parsed, UnorderedItems)
        and all(map(OR_PATTERN.fullmatch, connectives))
        and has_several_variables(parsed)
    ):
        return UnorderedItems((Words("or"), *parsed.items))
    return parsed


def parse_items(items: list[str], unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses the items of a list to one unordered value. A list of one item becomes the value of that item."""
    values = tuple(parse_normalized(item, unit_letters, depth + 1) for item in items)
    if len(values) == 1:
        return values[0]
    return UnorderedItems(tuple(_expand_plus_minus_items(items, values)))


def _expand_plus_minus_items(items: list[str], values: tuple[AnswerValue | None, ...]) -> Iterator[AnswerValue]:
    """Yields the values of a list's items, where an item with a plus-minus sign gives both of its values."""
    for item, value in zip(items, values, strict=True):
        if (
            isinstance(value, UnorderedItems)
            and (r"\pm" in item or r"\mp" in item)
            and not item.startswith((r"\{", "{"))
        ):
            yield from value.items
        else:
            yield Words("?") if value is None else value


def _parse_relations(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses an equation, an inequality or a chain of several such as `1 < x < 2`."""
    sides, relations = split_relations(text)
    return RelationChain(tuple(sides), tuple(relations)) if relations else None


def _parse_set_union(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    r"""Parses a union or difference of sets, such as `(0,1)\cup(2,3)` or `\mathbb{R}\setminus\{0\}`."""
    set_and_removed = split_set_difference(text)
    joined_parts = split_set_union(set_and_removed[0])
    if len(joined_parts) == 1 and len(set_and_removed) == 1:
        return None
    values = [parse_normalized(part, unit_letters, depth + 1) for part in (*joined_parts, *set_and_removed[1:])]
    parsed_values = tuple(value for value in values if value is not None)
    return (
        SetUnion(parsed_values[: len(joined_parts)], parsed_values[len(joined_parts) :])
        if len(parsed_values) == len(values)
        else None
    )


def _parse_matrix(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a LaTeX matrix or determinant and each of its cells."""
    kind_and_cells = parse_matrix_cells(text) if r"\begin" in text else None
    if kind_and_cells is None:
        return None
    kind, cells = kind_and_cells
    return Matrix(
        kind,
        tuple(tuple(parse_normalized(cell, unit_letters, depth + 1) or Words("?") for cell in row) for row in cells),
    )


def _parse_transposed_row(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a row such as `(1,2)^T` to the column that it is."""
    transposed = _TRANSPOSED.fullmatch(text) if text[-1:] in "Tp}" else None
    row = _parse_brackets(transposed[1], unit_letters, depth) if transposed else None
    return Matrix("matrix", tuple((item,) for item in row.items)) if isinstance(row, BracketedTuple) else None


def _parse_brackets(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a point, interval, vector or set in brackets, and the content of brackets that only group."""
    if named_point := _NAMED_POINT.fullmatch(text):
        point = _parse_brackets(named_point[2], unit_letters, depth)
        return (
            point._replace(name=_NAME_TYPESETTING.sub("", named_point[1]))
            if isinstance(point, BracketedTuple)
            else None
        )
    for opening, closing in (("(", (")", "]")), ("[", (")", "]")), (r"\langle", (r"\rangle",))):
        if content_and_closing := extract_bracket_content(text, opening, closing):
            items = split_bracket_items(content_and_closing[0])
            if len(items) == 1 and opening == "(" and content_and_closing[1] == ")":
                return (
                    None
                    if depth + 1 > _MAX_DEPTH
                    else parse_normalized(content_and_closing[0], unit_letters, depth + 1)
                )
            if len(items) == 1 and opening == "[" and ".." not in text:
                return parse_normalized(content_and_closing[0], unit_letters, depth + 1)
            values = tuple(parse_normalized(item, unit_letters, depth + 1) or Words("?") for item in items)
            if opening + content_and_closing[1] == "[]" and (rows := _to_matrix_rows(values)):
                return Matrix("matrix", rows)
            return BracketedTuple(
                "(" if opening == r"\langle" else opening,
                values,
                ")" if opening == r"\langle" else content_and_closing[1],
            )
    if text[:1] == "]" or (text[:1] == "[" and text[-1:] == "["):  # ]0,1[ is the French open interval
        items = split_bracket_items(text[1:-1])
        values = tuple(parse_normalized(item, unit_letters, depth + 1) or Words("?") for item in items)
        if len(items) == 2 and text[-1:] in "[]":
            return BracketedTuple("(" if text[0] == "]" else "[", values, ")" if text[-1] == "[" else "]")
    for opening, partner in ((r"\{", r"\}"), ("{", "}")):
        if content_and_closing := extract_bracket_content(text, opening, (partner,)):
            if opening == r"\{" and (parts := split_element_and_condition(content_and_closing[0])) is not None:
                return _parse_set_builder(*parts, unit_letters, depth)
            items = [item for item in split_list(content_and_closing[0]) if item]
            return UnorderedItems(
                tuple(
                    _expand_plus_minus_items(
                        items, tuple(parse_normalized(item, unit_letters, depth + 1) for item in items)
                    )
                )
            )
    return None


def _parse_set_builder(element: str, condition: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses set-builder notation to its condition or its whole numbers. A set that is neither is kept as written."""
    whole_numbers = list_whole_numbers(element, condition)
    if whole_numbers is not None:
        return UnorderedItems(tuple(Scalar(str(number), Fraction(number)) for number in whole_numbers))
    reduced = reduce_to_condition(element, condition)
    return SetBuilder(element, condition) if reduced is None else parse_normalized(reduced, unit_letters, depth + 1)


def _to_matrix_rows(values: tuple[AnswerValue, ...]) -> tuple[tuple[AnswerValue, ...], ...]:
    """Returns the rows of a nested list such as `[[1,2],[3,4]]`.

    The result is empty if the values are not rows of equal length.
    """
    rows = [
        value.items
        for value in values
        if isinstance(value, BracketedTuple) and (value.opening, value.closing) == ("[", "]")
    ]
    return tuple(rows) if len(rows) == len(values) and len(set(map(len, rows))) == 1 else ()


def _parse_plus_minus(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    r"""Parses a text with plus-minus signs to the list of its values.

    If it also contains `\mp`, all its signs change together.
    """
    n_signs = text.count(r"\pm") + text.count(r"\mp")
    if not n_signs or n_signs > _MAX_PLUS_MINUS_SIGNS or split_list(text) != [text]:
        return None
    if r"\mp" in text or n_signs == 1:
        expanded = [text.replace(r"\pm", "+").replace(r"\mp", "-"), text.replace(r"\pm", "-").replace(r"\mp", "+")]
    else:
        expanded = [text]
        for _ in range(n_signs):
            expanded = [alternative.replace(r"\pm", sign, 1) for alternative in expanded for sign in "+-"]
    return parse_items(expanded, unit_letters, depth)


def _parse_base_numeral(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a numeral whose base is a subscript, such as `101_2` or `1a_{16}`."""
    if "base" in text and (worded := _WORDED_BASE.fullmatch(text)):
        text = f"{worded[1]}_{{{worded[2]}}}"
    elif text.rstrip(") }").endswith(("ary", "octal", "mal")) and (named := _NAMED_BASE.fullmatch(text)):
        text = f"{named[1]}_{{{_BASES[named[2]]}}}"
    match = _BASE_NUMERAL.fullmatch(text) if "_" in text and len(text) <= MAX_DIGITS else None
    if match is None:
        return None
    base_name = match[4] or match[5]
    base = int(base_name) if base_name.isdigit() else parse_spelled_number(base_name)
    digits = (match[2] or match[3]).lower()
    if base is None or not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits if digit != "."):
        return None
    if base == 10:
        return parse_normalized(match[1] + digits, unit_letters, depth + 1)
    return BaseNumeral(match[1] + (digits.lstrip("0") or "0"), int(base))


def _parse_ratio(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a ratio such as `3:2` or a time of the day such as `7:32`."""
    parts, is_range = split_ratio(text)
    if not 2 <= len(parts) <= 6 or not all(parts) or any(map(parse_joined_numbers, parts)):
        return None
    last_part = split_off_unit(parts[-1], unit_letters)
    values = [parse_normalized(part, unit_letters, depth + 1) for part in (*parts[:-1], last_part.text)]
    scalars = tuple(value for value in values if isinstance(value, Scalar))
    return Ratio(scalars, last_part.unit, is_range) if len(scalars) == len(parts) else None


def _parse_scalar(text: str, unit_letters: frozenset[str], depth: int) -> AnswerValue | None:
    """Parses a single expression and its unit."""
    measured = split_off_unit(text, unit_letters)
    if measured.unit is None and measured.scale == 1:
        return _parse_expression_or_words(text)
    body = parse_normalized(measured.text, unit_letters, depth + 1)
    if not isinstance(body, Scalar) or body.unit is not None:
        return body if isinstance(body, UnorderedItems | BracketedTuple) else _parse_expression_or_words(text)
    if measured.scale != 1:
        if body.number is None:
            return _parse_expression_or_words(text)
        number = body.number * measured.scale
        return Scalar(str(number), number, measured.unit)
    return body._replace(unit=measured.unit)


def _parse_expression_or_words(text: str) -> AnswerValue | None:
    """Returns a text as an expression, or as words if a run of its letters reads as a word."""
    plain_text = _TEXT_COMMAND.sub(r" \1 ", text) if r"\text" in text else text
    for letter_run in _LETTER_RUN.findall(plain_text):
        is_word = letter_run.lower() in STOP_WORDS and not (_OPERATOR.search(text) and f" {letter_run} " not in text)
        if is_word or (
            len(letter_run) > 3 and letter_run.lower() not in _FUNCTION_WORDS and list(letter_run) != sorted(letter_run)
        ):
            return Words(normalize_words(plain_text), plain_text)
    return Scalar(text)
