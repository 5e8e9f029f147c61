"""The closed set of types of parsed, not yet evaluated answers: scalar, words, choice, tuple, set, matrix ..."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from qwen_align.reward.math.unit_table import Unit


class Scalar(NamedTuple):
    """A single expression with its unit.

    `number` is its exact value where it is written as a plain number, `unit` the unit of measurement.
    """

    text: str
    number: Fraction | None = None
    unit: Unit | None = None


class Words(NamedTuple):
    """An answer in words. `text` is in lower case where case does not matter, `original_text` as it was written."""

    text: str
    original_text: str = ""


class Choice(NamedTuple):
    """A multiple-choice option, as its letter. `rest` is the text beside the letter."""

    letter: str
    rest: str = ""


class BracketedTuple(NamedTuple):
    """Ordered items between brackets: a point, a vector, or with two items possibly an interval.

    `name` is the capital before them: of a point as in `P(1,2)`, of a distribution as in `N(0,1)`.
    """

    opening: str
    items: tuple["AnswerValue", ...]
    closing: str
    name: str = ""


class UnorderedItems(NamedTuple):
    """Items whose order does not matter: a set, or answers joined by commas and "or".

    `all_hold` is true for inequalities that are joined by "and".
    """

    items: tuple["AnswerValue", ...]
    all_hold: bool = False


class SetUnion(NamedTuple):
    r"""Sets joined by `\cup`. `removed` holds the sets that `\setminus` subtracts from them."""

    parts: tuple["AnswerValue", ...]
    removed: tuple["AnswerValue", ...] = ()


class Matrix(NamedTuple):
    """A matrix, determinant or norm with its cells by row. `kind` is "matrix", "determinant" or "norm"."""

    kind: str
    rows: tuple[tuple["AnswerValue", ...], ...]


class RelationChain(NamedTuple):
    """An equation, inequality or chain of several, with its sides as texts.

    It reads `sides[0] relations[0] sides[1] ...`.
    """

    sides: tuple[str, ...]
    relations: tuple[str, ...]


class BaseNumeral(NamedTuple):
    """A numeral in a stated base, with digits in lower case and no leading zeros."""

    digits: str
    base: int


class Ratio(NamedTuple):
    """The parts between colons of a ratio or a time of the day. `unit` holds "am" or "pm".

    `is_range` says that "to" stood between them, which is a ratio or a range: no multiple of it is the same.
    """

    parts: tuple["Scalar", ...]
    unit: Unit | None = None
    is_range: bool = False


class SetBuilder(NamedTuple):
    r"""A set by the form of its elements and their condition, such as `\{2k : k \in \mathbb{Z}\}`, as texts."""

    element: str
    condition: str


class Congruence(NamedTuple):
    r"""A residue class such as `x \equiv 2 \pmod 7`, with `name` before the sign, or "" without one."""

    name: str
    residue: int
    modulus: int


DeferredPairs = list[tuple[str, str]]
"""Pairs of expressions, a gold's and an answer's, that are left to sympy_fallback."""

AnswerValue = (
    Scalar
    | Words
    | Choice
    | BracketedTuple
    | UnorderedItems
    | SetUnion
    | Matrix
    | RelationChain
    | BaseNumeral
    | Ratio
    | SetBuilder
    | Congruence
)

AnswerComparer = Callable[[AnswerValue, AnswerValue, DeferredPairs | None], bool]
"""The type of `answer_equality.is_same_answer`, handed to modules that compare the parts of a value with it."""


def get_items(value: AnswerValue) -> tuple[AnswerValue, ...]:
    """Returns the items of a list of answers, or a tuple of one for a single answer."""
    return value.items if isinstance(value, UnorderedItems) else (value,)
