"""What an answer can be: a small closed set of typed values, as read from text. Nothing here is evaluated."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from qwen_align.reward.math.unit_table import Unit


class Scalar(NamedTuple):
    """One expression; `number` is its exact value where it is written plainly, `unit` what it is measured in."""

    text: str
    number: Fraction | None = None
    unit: Unit | None = None


class Words(NamedTuple):
    """A text, folded where case says nothing, and as it was written."""

    text: str
    original_text: str = ""


class Choice(NamedTuple):
    """The letter of an option; `rest` is what stands beside it."""

    letter: str
    rest: str = ""


class BracketedTuple(NamedTuple):
    """Items in order between brackets: a point, a vector, and with two items perhaps an interval."""

    opening: str
    items: tuple["AnswerValue", ...]
    closing: str


class UnorderedItems(NamedTuple):
    """Items without order: a set, or answers joined by commas and "or"; `all_hold` if they are inequalities that
    "and" joins.
    """

    items: tuple["AnswerValue", ...]
    all_hold: bool = False


class SetUnion(NamedTuple):
    r"""Sets joined by \\cup; `without` is what is taken away from them."""

    parts: tuple["AnswerValue", ...]
    removed: tuple["AnswerValue", ...] = ()


class Matrix(NamedTuple):
    """`kind` is "matrix", "determinant" or "norm"."""

    kind: str
    rows: tuple[tuple["AnswerValue", ...], ...]


class RelationChain(NamedTuple):
    """Sides joined by relations: `sides[0] relations[0] sides[1] ...`."""

    sides: tuple[str, ...]
    relations: tuple[str, ...]


class BaseNumeral(NamedTuple):
    """Digits in a named base, in lower case, without leading zeros."""

    digits: str
    base: int


class Ratio(NamedTuple):
    """Parts between colons, a ratio or the time of a day; `unit` tells the half of the day."""

    parts: tuple["Scalar", ...]
    unit: Unit | None = None


DeferredPairs = list[tuple[str, str]]
"""Pairs of expressions, a gold's and an answer's, that are left to the fallback."""

AnswerValue = (
    Scalar | Words | Choice | BracketedTuple | UnorderedItems | SetUnion | Matrix | RelationChain | BaseNumeral | Ratio
)

AnswerComparer = Callable[[AnswerValue, AnswerValue, DeferredPairs | None], bool]
"""`compare.agree`, which the modules below it call for the parts of a value."""


def get_items(value: AnswerValue) -> tuple[AnswerValue, ...]:
    """The items of a list, a single value as a list of one."""
    return value.items if isinstance(value, UnorderedItems) else (value,)
