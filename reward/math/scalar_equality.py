"""Whether two expressions or two words are the same: exact numbers first, then the expression layer."""

import re

from qwen_align.reward.math.answer_values import Doubts, Scalar, Value, Words
from qwen_align.reward.math.expression_equality import same
from qwen_align.reward.math.expression_parser import parse
from qwen_align.reward.math.expression_tree import Node, symbol
from qwen_align.reward.math.units import agree as units_agree

_MIN_DECIMAL_DIGITS = 10  # as in same.py: only a longer decimal may stand for an exact value
_MAX_DOUBT_CHARS = 300  # longer expressions are not worth a second of a worker
_CALCULUS = re.compile(r"\\(?:int|iint|iiint|oint|lim|sum|prod|partial|Gamma|zeta|Re|Im|arg|frac ?\{ ?d)(?![A-Za-z])")
_SPECIAL = re.compile(r"\\(?:Gamma|zeta|Re|Im|arg) ?[({]")  # functions that the expression layer takes for letters
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LETTERS = re.compile(r"[A-Za-z]{2,3}")
_LOOKS = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])|\\text(?=\{)")
_MATRIX_ALGEBRA = re.compile(  # `A^{-1}B`, `AB^T`: matrices, whose order counts
    r"[A-Z] ?\^ ?(?:\{ ?(?:-1|T|-T) ?\}|T)[ *]*(?:\\cdot ?)?[A-Z]"
    r"|[A-Z](?: |\*|\\cdot ?)*[A-Z] ?\^ ?(?:\{ ?(?:-1|T|-T) ?\}|T)"
)
_MATRIX_POWER = re.compile(r"\^ ?\{ ?(-1|T|-T) ?\}")
_WORD_LOOKS = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})|\.\Z|(?<![0-9])\s+|\s+(?![0-9])")  # `co-prime`, `Mon.`
_ONE_SIGN = re.compile(r"\{([A-Za-z0-9])\}")
_INTEGRATION = frozenset(("C", "c", "C_0", "C_1", "c_0", "c_1"))
_VARIABLES = frozenset((*"rstuvxyz", r"\theta"))  # beside which such a letter is no parameter
_PAIRS = (frozenset("xyzabckmnpqrtuvw"), frozenset("ABCDEFGHKLMNOPQRSTUVXYZ"))
_TRIPLES = tuple(map(frozenset, ("xyz", "abc", "pqr", "uvw", "rst", "kmn", "mnp", "abx", "axy", "ABC", "PQR", "XYZ")))
_PAIRS_THAT_ARE_WORDS = frozenset("am an at by my up us we pa ma NE SE NW SW EN ES NO ON SO OS US UN TO UP".split())


def same_words(gold: Value, said: Value) -> bool:
    """Whether two texts read alike, one of which is words; `xy` is also the product that `y \\cdot x` is."""
    if isinstance(gold, Words) and isinstance(said, Words):
        if _squeezed(gold.text) == _squeezed(said.text):
            return True
        may_be = _is_product(gold) and _is_product(said) and not _might_spell(gold.written)
        return may_be and _same_texts(gold.written, said.written)
    words, other = (gold, said) if isinstance(gold, Words) else (said, gold)
    if not isinstance(words, Words) or not isinstance(other, Scalar) or other.number is not None:
        return False
    if _LETTERS.fullmatch(words.written) and _same_texts(words.written, other.text):
        return True
    return _squeezed(words.text) == _squeezed(_TEXT.sub(r" \1 ", other.text).lower())


def same_scalars(gold: Scalar, said: Scalar, doubts: Doubts | None) -> bool:
    """Whether the numbers or expressions are equal; a unit counts only where both have one, converted exactly."""
    factor = None
    if gold.unit is not None and said.unit is not None:
        factor = units_agree(said.unit, gold.unit)
        if factor is None:
            return False
    if gold.number is not None and said.number is not None:
        if gold.number == (said.number if factor is None else said.number * factor):
            return True
        if not _is_long_decimal(gold.text) and not _is_long_decimal(said.text):
            return False
    text = _plain(said)
    if factor is not None and factor != 1:
        text = rf"({text})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    return _same_texts(_plain(gold), text, doubts)


def is_defined(value: Value) -> bool:
    """False for what equals not even itself: `5/0`, `\\infty-\\infty`."""
    if not isinstance(value, Scalar) or value.number is not None:
        return True
    node = parse(value.text)
    return node is None or same(node, node) is not False


def _same_texts(gold: str, said: str, doubts: Doubts | None = None) -> bool:
    if _MATRIX_ALGEBRA.search(gold) or _MATRIX_ALGEBRA.search(said):
        return _without_dots(gold) == _without_dots(said)
    one, other = parse(gold), parse(said)
    is_calculus = _CALCULUS.search(gold) or _CALCULUS.search(said)
    if one is None or other is None:
        if _bare(gold) == _bare(said):
            return True
        is_equal = None if is_calculus else False
    else:
        is_special = _SPECIAL.search(gold) or _SPECIAL.search(said)
        one, other = _with_constant(one), _with_constant(other)
        is_equal = None if is_special and one != other else same(one, other)
        is_calculus = is_calculus or is_special
    may_ask = is_calculus and "°" not in gold + said and len(gold) + len(said) <= _MAX_DOUBT_CHARS
    if is_equal is None and may_ask and doubts is not None:
        doubts.append((gold, said))
        return True
    return is_equal is True


def _with_constant(node: Node) -> Node:
    """An antiderivative with `C` as the letter of its constant of integration; other trees as they are."""
    constants = [arg for arg in node.args if arg.head == "symbol" and arg.value in _INTEGRATION]
    if node.head != "sum" or len(constants) != 1 or node.applied:
        return node
    rest = tuple(arg for arg in node.args if arg is not constants[0])
    letters = frozenset[str]().union(*(arg.letters for arg in rest))
    return Node("sum", (*rest, symbol("C"))) if letters and letters <= _VARIABLES else node


def _plain(scalar: Scalar) -> str:
    return scalar.text.replace(",", "") if scalar.number is not None else scalar.text


def _is_long_decimal(text: str) -> bool:
    return "." in text and sum(map(str.isdigit, text)) >= _MIN_DECIMAL_DIGITS


def _without_dots(text: str) -> str:
    return _bare(_MATRIX_POWER.sub(r"^\1", text.replace(r"\cdot", "").replace("*", "")))


def _bare(text: str) -> str:
    return _LOOKS.sub("", _ONE_SIGN.sub(r"\1", text))


def _squeezed(text: str) -> str:
    return _WORD_LOOKS.sub("", text)


def _might_spell(run: str) -> bool:
    """Whether a run might be a word's letters: then only an expression on the other side makes it a product."""
    return len(run) > 2 and not _are_neighbours(run)


def _are_neighbours(run: str) -> bool:
    """Whether the letters are neighbours of the alphabet, each once: abc, zyx, prq."""
    places = sorted(map(ord, run))
    return run.islower() and places == list(range(places[0], places[0] + len(places)))


def _is_product(words: Words) -> bool:
    """Whether a run of two or three letters reads as a product of variables and not as a word."""
    run = words.written
    if len(run) == 2:
        return run not in _PAIRS_THAT_ARE_WORDS and any(set(run) <= letters for letters in _PAIRS)
    if len(run) != 3 or _are_neighbours(run):
        return len(run) == 3
    return any(set(run) <= letters for letters in _TRIPLES) or not set(run.lower()) & set("aeiou")
