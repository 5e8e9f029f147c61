r"""Parses set-builder notation such as `\{x \in \mathbb{Z} : 1 < x < 5\}` where the set is certain.

Only a set of all the numbers that fulfil a solved condition is the same as the condition; one whose elements are
another expression (`\{1/x : x > 2\}`) or come from another domain is kept as it is written.
"""

import math
import re
from fractions import Fraction

from qwen_align.reward.math.bracket_aware_split import split_list, split_relations, split_set_builder
from qwen_align.reward.math.number_parser import parse_plain_number

_VARIABLE = re.compile(r"[A-Za-z](?:_(?:[A-Za-z0-9]|\{[^{}]*\}))?|\\(?:alpha|beta|gamma|lambda|mu|theta|omega)")
_SUCH_THAT = re.compile(r"\s*(?:\\mid|\\vert|[|:])\s*")
_LETTER = re.compile(r"(?<!\\)[A-Za-z]|\\[a-z]+")
_REALS = re.compile(r"\\mathbb ?\{? ?R ?\}?|\\R")
_INTEGERS = re.compile(r"\\mathbb ?\{? ?Z ?\}?|\\Z")
_POSITIVE_INTEGERS = re.compile(r"\\mathbb ?\{? ?(?:N ?\}? ?[\^_] ?\{? ?(?:\+|\*)|Z ?\}? ?[\^_] ?\{? ?(?:\+|>0)) ?\}?")
_NATURAL_NUMBERS = re.compile(r"\\mathbb ?\{? ?N ?\}?|\\N")
_ABSOLUTE_VALUE = re.compile(r"\| ?(.+?) ?\|")
_LESS = ("<", r"\le")
_GREATER = (">", r"\ge")
_MAX_LISTED = 200  # whole numbers of a set that is written out


def split_element_and_condition(content: str) -> tuple[str, str] | None:
    """Splits the content of braces at the first sign for "such that". Returns None where there is none."""
    element = split_set_builder(content)[0]
    sign = _SUCH_THAT.match(content, content.index(element) + len(element)) if element else None
    if sign is None or not _LETTER.search(element):
        return None
    return element, content[sign.end() :].strip()


def reduce_to_condition(element: str, condition: str) -> str | None:
    r"""Returns the condition that says the same as a set, such as `x > 2` for `\{x \in \mathbb{R} : x > 2\}`.

    Returns None if the elements are no plain variable of real numbers, or if the condition is an unsolved equation.
    """
    variable, conditions = _move_domain(element, condition)
    if not _VARIABLE.fullmatch(variable):
        return None
    conditions = [item for item in conditions if not _is_domain(item, variable, _REALS)] or conditions
    for item in conditions:
        sides, relations = split_relations(item)
        if r"\in" in relations or not _mentions(variable, item):
            return None
        if set(relations) == {"="} and sides[0] != variable:
            return None
    return ", ".join(conditions) if len(conditions) != len(split_list(condition)) else condition


def list_whole_numbers(element: str, condition: str) -> list[int] | None:
    """Returns the whole numbers of a set such as `x \\in \\mathbb{Z}, 1 < x < 5`.

    Returns None if they are not known or too many.
    """
    variable, conditions = _move_domain(element, condition)
    is_whole = any(_is_domain(item, variable, _INTEGERS) for item in conditions)
    is_positive = any(_is_domain(item, variable, _POSITIVE_INTEGERS) for item in conditions)
    is_natural = any(_is_domain(item, variable, _NATURAL_NUMBERS) for item in conditions)
    if not is_whole and not is_positive and not is_natural:
        return None
    low, high = 1 if is_positive else -math.inf, math.inf
    for item in conditions:
        sides, relations = split_relations(item)
        if relations == [r"\in"]:
            continue
        bounds = _find_bounds(sides, relations, variable)
        if bounds is None:
            return None
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if math.isinf(low) or math.isinf(high) or high - low > _MAX_LISTED or (is_natural and low < 1):
        return None  # whether 0 is a natural number is not agreed upon
    return list(range(int(low), int(high) + 1))


def _move_domain(element: str, condition: str) -> tuple[str, list[str]]:
    r"""Returns the variable of `x \in A` and the conditions with that membership among them."""
    sides, relations = split_relations(element)
    conditions = split_list(condition)
    return (sides[0], [element, *conditions]) if relations == [r"\in"] else (element, conditions)


def _is_domain(item: str, variable: str, domain: re.Pattern[str]) -> bool:
    """Checks whether a condition says that the variable is of a domain."""
    sides, relations = split_relations(item)
    return relations == [r"\in"] and sides[0] == variable and domain.fullmatch(sides[1]) is not None


def _mentions(variable: str, text: str) -> bool:
    """Checks whether a variable occurs in a text."""
    return re.search(rf"(?<![A-Za-z\\]){re.escape(variable)}(?![A-Za-z])", text) is not None


def _find_bounds(sides: list[str], relations: list[str], variable: str) -> tuple[float, float] | None:
    """Returns the least and the greatest whole number of an inequality that is solved for the variable."""
    if relations and set(relations) <= set(_GREATER):
        sides, relations = sides[::-1], [_LESS[_GREATER.index(relation)] for relation in reversed(relations)]
    if not relations or not set(relations) <= set(_LESS):
        return None
    middle = next((index for index, side in enumerate(sides) if side == variable), None)
    low, high = -math.inf, math.inf
    if middle is None:
        absolute = _ABSOLUTE_VALUE.fullmatch(sides[0])
        if absolute is None or absolute[1] != variable or len(sides) != 2:
            return None
        end = parse_plain_number(sides[1])
        greatest = None if end is None else _round_down(end, is_open=relations[0] == "<")
        return None if greatest is None else (-greatest, greatest)
    if middle > 0:
        end = parse_plain_number(sides[middle - 1])
        if end is None or middle != 1:
            return None
        low = -_round_down(-end, is_open=relations[middle - 1] == "<")
    if middle < len(sides) - 1:
        end = parse_plain_number(sides[middle + 1])
        if end is None or middle + 2 != len(sides):
            return None
        high = _round_down(end, is_open=relations[middle] == "<")
    return low, high


def _round_down(end: Fraction, *, is_open: bool) -> int:
    """Returns the greatest whole number below a bound, or up to it if it is included."""
    return math.ceil(end) - 1 if is_open else math.floor(end)
