"""Decides whether two expressions or two answers in words are equal, by exact numbers first."""

import re

from qwen_align.reward.math.answer_values import AnswerValue, DeferredPairs, Scalar, Words
from qwen_align.reward.math.expression_equality import decide_equality
from qwen_align.reward.math.expression_parser import parse_expression
from qwen_align.reward.math.expression_tree import Node, make_symbol
from qwen_align.reward.math.joined_numbers import parse_joined_numbers
from qwen_align.reward.math.letter_readings import parse_alike
from qwen_align.reward.math.units import get_conversion_factor

_MIN_DECIMAL_DIGITS = 10  # as rounded_decimals.MIN_DIGITS: only a longer decimal may stand for an exact value
_MAX_DEFERRED_CHARS = 300  # longer expressions are not worth a second of a worker
_CALCULUS = re.compile(r"\\(?:int|iint|iiint|oint|lim|sum|prod|partial|Gamma|zeta|Re|Im|arg|frac ?\{ ?d)(?![A-Za-z])")
# Functions that the expression parser takes for letters.
_SPECIAL_FUNCTION = re.compile(r"\\(?:Gamma|zeta|Re|Im|arg) ?[({]")
_CAPITAL_RUN = re.compile(r"(?<![A-Za-z\\])[A-Z]{2,}(?![A-Za-z])")
_LETTER_BEFORE_BRACKET = re.compile(  # sympy reads `f(x)` as a function's value
    r"((?<![A-Za-z\\])[A-Za-eijk-z]|\\(?:[Pp]hi|varphi|[Pp]si|chi|rho|sigma|tau|omega|theta|mu))'* ?[(\[]([^()\[\]]*)"
)
_TEXT_COMMAND = re.compile(r"\\text\{([^{}]*)\}")
_SHORT_LETTER_RUN = re.compile(r"[A-Za-z]{2,3}")
_TYPESETTING = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])|\\text(?=\{)")
_MATRIX_ALGEBRA = re.compile(  # `A^{-1}B`, `AB^T`: matrices, whose order counts
    r"[A-Z] ?\^ ?(?:\{ ?(?:-1|T|-T) ?\}|T)[ *]*(?:\\cdot ?)?[A-Z]"
    r"|[A-Z](?: |\*|\\cdot ?)*[A-Z] ?\^ ?(?:\{ ?(?:-1|T|-T) ?\}|T)"
    r"|[A-Z](?: |\*|\\cdot ?)*[A-Z] ?\) ?\^ ?(?:\{ ?(?:T|-T|\\top) ?\}|T|\\top)"
)
_MATRIX_POWER = re.compile(r"\^ ?\{ ?(-1|T|-T) ?\}")
# `co-prime`, `Mon.`.
_WORD_PUNCTUATION = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})|\.\Z|(?<![0-9])\s+|\s+(?![0-9])")
_SINGLE_CHARACTER_GROUP = re.compile(r"\{([A-Za-z0-9])\}")
_INTEGRATION_CONSTANTS = frozenset(("C", "c", "C_0", "C_1", "c_0", "c_1"))
_INTEGRATION_VARIABLES = frozenset((*"rstuvxyz", r"\theta"))  # beside which such a letter is no parameter
_LETTER_PAIRS = (frozenset("xyzabckmnpqrtuvw"), frozenset("ABCDEFGHKLMNOPQRSTUVXYZ"))
_LETTER_TRIPLES = tuple(
    map(frozenset, ("xyz", "abc", "pqr", "uvw", "rst", "kmn", "mnp", "abx", "axy", "ABC", "PQR", "XYZ"))
)
_TWO_LETTER_WORDS = frozenset("am an at by my up us we pa ma NE SE NW SW EN ES NO ON SO OS US UN TO UP".split())


def is_same_words(gold: AnswerValue, answer: AnswerValue) -> bool:
    r"""Checks whether two answers are equal, at least one of which is in words.

    Words such as `xy` also equal the product `y \cdot x`.
    """
    if isinstance(gold, Words) and isinstance(answer, Words):
        if _strip_word_punctuation(gold.text) == _strip_word_punctuation(answer.text):
            return True
        is_possible_product = (
            _is_letter_product(gold) and _is_letter_product(answer) and not _is_possible_word(gold.original_text)
        )
        return is_possible_product and (
            sorted(gold.original_text) == sorted(answer.original_text)  # the segment `BA` is `AB`
            or _is_same_expression(gold.original_text, answer.original_text)
        )
    words, other_value = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    if not isinstance(words, Words) or not isinstance(other_value, Scalar) or other_value.number is not None:
        return False
    if _SHORT_LETTER_RUN.fullmatch(words.original_text) and _is_same_expression(words.original_text, other_value.text):
        return True
    return _strip_word_punctuation(words.text) == _strip_word_punctuation(
        _TEXT_COMMAND.sub(r" \1 ", other_value.text).lower()
    )


def is_same_scalar(gold: Scalar, answer: Scalar, deferred: DeferredPairs | None) -> bool:
    """Checks whether two numbers or expressions are equal, including their units.

    A unit counts only where both have one, converted exactly.
    """
    factor = None
    if gold.unit is not None and answer.unit is not None:
        factor = get_conversion_factor(answer.unit, gold.unit)
        if factor is None:
            return False
    gold_joined = parse_joined_numbers(gold.text) if gold.number is None else None
    answer_joined = parse_joined_numbers(answer.text) if answer.number is None else None
    if (gold_joined is not None and (answer_joined is not None or gold_joined.sign == "-" or gold_joined.is_date)) or (
        answer_joined is not None and answer_joined.is_date
    ):
        return gold_joined == answer_joined and factor in (None, 1)  # dates and scores, which are no calculations
    if gold.number is not None and answer.number is not None:
        if gold.number == (answer.number if factor is None else answer.number * factor):
            return True
        if not _has_ten_digit_decimal(gold.text) and not _has_ten_digit_decimal(answer.text):
            return False
    text = _strip_thousands_commas(answer)
    if factor is not None and factor != 1:
        text = rf"({text})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    return _is_same_expression(_strip_thousands_commas(gold), text, deferred)


def is_defined(value: AnswerValue) -> bool:
    r"""Checks whether a parsed value is defined. `5/0` and `\infty-\infty` are not."""
    if not isinstance(value, Scalar) or value.number is not None:
        return True
    node = parse_expression(value.text)
    return node is None or decide_equality(node, node) is not False


def _is_same_expression(gold: str, answer: str, deferred: DeferredPairs | None = None) -> bool:
    """Checks whether two texts are equal as expressions, or as text where they cannot be parsed.

    A pair with calculus in it is added to `deferred` and held for equal.
    """
    if _MATRIX_ALGEBRA.search(gold) or _MATRIX_ALGEBRA.search(answer):
        return _strip_product_signs(gold) == _strip_product_signs(answer)
    gold_node, answer_node = parse_alike(gold, answer)
    is_calculus = _CALCULUS.search(gold) or _CALCULUS.search(answer)
    if gold_node is None or answer_node is None:
        if _strip_typesetting(gold) == _strip_typesetting(answer):
            return True
        is_equal = None if is_calculus else False
    else:
        is_special = _SPECIAL_FUNCTION.search(gold) or _SPECIAL_FUNCTION.search(answer)
        gold_node, answer_node = _rename_integration_constant(gold_node), _rename_integration_constant(answer_node)
        is_equal = None if is_special and gold_node != answer_node else decide_equality(gold_node, answer_node)
        is_calculus = is_calculus or is_special
    is_deferrable = is_calculus and "°" not in gold + answer and len(gold) + len(answer) <= _MAX_DEFERRED_CHARS
    is_deferrable = is_deferrable and not _has_ambiguous_letters(gold) and not _has_ambiguous_letters(answer)
    if is_equal is None and is_deferrable and deferred is not None:
        deferred.append((gold, answer))
        return True
    return is_equal is True


def _has_ambiguous_letters(text: str) -> bool:
    """Checks whether a text has function values or runs of capitals, which sympy would read as products."""
    return _CAPITAL_RUN.search(text) is not None or any(
        letter not in content for letter, content in _LETTER_BEFORE_BRACKET.findall(text)
    )


def _rename_integration_constant(node: Node) -> Node:
    """Renames the integration constant of an antiderivative to `C`. Returns any other expression unchanged."""
    constants = [arg for arg in node.args if arg.head == "symbol" and arg.value in _INTEGRATION_CONSTANTS]
    if node.head != "sum" or len(constants) != 1 or node.unknown_functions:
        return node
    rest = tuple(arg for arg in node.args if arg is not constants[0])
    letters = frozenset[str]().union(*(arg.letters for arg in rest))
    return Node("sum", (*rest, make_symbol("C"))) if letters and letters <= _INTEGRATION_VARIABLES else node


def _strip_thousands_commas(scalar: Scalar) -> str:
    """Returns the text of a number without its commas. Returns the text of any other expression unchanged."""
    return scalar.text.replace(",", "") if scalar.number is not None else scalar.text


def _has_ten_digit_decimal(text: str) -> bool:
    """Checks whether a text contains a decimal with at least ten digits, which may be a rounded exact value."""
    return "." in text and sum(map(str.isdigit, text)) >= _MIN_DECIMAL_DIGITS


def _strip_product_signs(text: str) -> str:
    """Returns the text of a matrix product without multiplication signs and typesetting."""
    return _strip_typesetting(_MATRIX_POWER.sub(r"^\1", text.replace(r"\cdot", "").replace("*", "")))


def _strip_typesetting(text: str) -> str:
    r"""Returns a text without spaces, `\text` commands and braces around single characters."""
    return _TYPESETTING.sub("", _SINGLE_CHARACTER_GROUP.sub(r"\1", text))


def _strip_word_punctuation(text: str) -> str:
    """Returns an answer in words without hyphens, spaces and its final full stop."""
    return _WORD_PUNCTUATION.sub("", text)


def _is_possible_word(letter_run: str) -> bool:
    """Checks whether a run of letters may be a word and not a product of variables."""
    return len(letter_run) > 2 and not _is_consecutive_letters(letter_run)


def _is_consecutive_letters(letter_run: str) -> bool:
    """Checks whether letters are distinct and consecutive in the alphabet, in any order, such as abc, zyx or prq."""
    code_points = sorted(map(ord, letter_run))
    return letter_run.islower() and code_points == list(range(code_points[0], code_points[0] + len(code_points)))


def _is_letter_product(words: Words) -> bool:
    """Checks whether a run of two or three letters reads as a product of variables and not as a word."""
    letter_run = words.original_text
    if len(letter_run) == 2:
        return letter_run not in _TWO_LETTER_WORDS and any(set(letter_run) <= letters for letters in _LETTER_PAIRS)
    if len(letter_run) != 3 or _is_consecutive_letters(letter_run):
        return len(letter_run) == 3
    return any(set(letter_run) <= letters for letters in _LETTER_TRIPLES) or not set(letter_run.lower()) & set("aeiou")
