"""Compares a parsed answer with the parsed gold by the rules of the gold's type."""

import re

from qwen_align.reward.math.answer_parser import parse_normalized
from qwen_align.reward.math.answer_values import (
    AnswerValue,
    BracketedTuple,
    Choice,
    Congruence,
    DeferredPairs,
    Matrix,
    Ratio,
    RelationChain,
    Scalar,
    SetBuilder,
    SetUnion,
    UnorderedItems,
    Words,
    get_items,
)
from qwen_align.reward.math.built_set_equality import is_same_built_set
from qwen_align.reward.math.choice_letters import collect_choice_letters
from qwen_align.reward.math.congruences import is_same_congruence
from qwen_align.reward.math.equation_equality import has_same_zero_set
from qwen_align.reward.math.named_value_equality import collect_named_values, has_same_named_values, split_by_coordinate
from qwen_align.reward.math.number_line_regions import INEQUALITIES, Interval, Region, merge_intervals, to_region
from qwen_align.reward.math.ratio_equality import is_same_range, is_same_ratio
from qwen_align.reward.math.scalar_equality import is_same_scalar, is_same_words
from qwen_align.reward.math.unordered_equality import has_same_items
from qwen_align.reward.math.word_and_choice_parser import refers_to_options

_DISTRIBUTIONS = "NU"  # normal and uniform: no names of points
_FUNCTIONS_OF_TWO = {"A": "count", "C": "count", "P": "count", "B": "binomial", "F": "count"}
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+")
_REVERSED_RELATIONS = {">": "<", r"\ge": r"\le"}


def is_same_answer(gold: AnswerValue, answer: AnswerValue, deferred: DeferredPairs | None) -> bool:
    """Checks whether a parsed answer equals the gold.

    Pairs of expressions that only the sympy fallback can compare are added to `deferred` and taken as equal. With None
    for `deferred`, such pairs count as different.
    """
    if type(gold) is type(answer) and gold == answer:
        return True
    if _has_relation(gold) or _has_relation(answer):
        return _is_same_relation(gold, answer, deferred)
    if isinstance(answer, Choice) and answer.rest and not isinstance(gold, Choice):
        answer_rest = parse_normalized(answer.rest)
        return answer_rest is not None and is_same_answer(gold, answer_rest, deferred)
    if isinstance(gold, Choice) and gold.rest and isinstance(answer, Scalar | BracketedTuple):
        gold_rest = parse_normalized(gold.rest)
        return isinstance(gold_rest, Scalar | BracketedTuple) and is_same_answer(gold_rest, answer, deferred)
    if isinstance(gold, SetUnion) or isinstance(answer, SetUnion):
        return _is_same_union(gold, answer, deferred)
    if isinstance(gold, SetBuilder) or isinstance(answer, SetBuilder):
        return is_same_built_set(gold, answer, is_same_answer)
    if (choices := collect_choice_letters(gold, answer)) is not None:
        return choices[0] == choices[1]
    if isinstance(gold, UnorderedItems) or isinstance(answer, UnorderedItems):
        return has_same_items(get_items(gold), get_items(answer), deferred, is_same_answer)
    return _is_same_typed_value(gold, answer, deferred)


def _is_same_typed_value(gold: AnswerValue, answer: AnswerValue, deferred: DeferredPairs | None) -> bool:
    """Checks whether two parsed values are equal, where neither is a list, a union of sets or a relation."""
    if isinstance(gold, Words) or isinstance(answer, Words):
        return is_same_words(gold, answer)
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return is_same_scalar(gold, answer, deferred)
    if isinstance(gold, Choice) and isinstance(answer, Choice):
        return gold.letter == answer.letter and _is_single_choice(gold, answer)
    if isinstance(gold, BracketedTuple) and isinstance(answer, BracketedTuple):
        return _is_same_tuple(gold, answer, deferred)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return gold.kind == answer.kind and _is_same_sequence(
            [BracketedTuple("(", row, ")") for row in gold.rows],
            [BracketedTuple("(", row, ")") for row in answer.rows],
            deferred,
        )
    if isinstance(gold, Scalar) and isinstance(answer, Matrix):
        value = _expand_determinant(answer)
        return value is not None and is_same_scalar(gold, value, None)
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        return is_same_ratio(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return is_same_range(gold, answer)
    if isinstance(gold, Congruence) and isinstance(answer, Congruence):
        return is_same_congruence(gold, answer)
    return False


def _expand_determinant(matrix: Matrix) -> Scalar | None:
    """Expands a 2x2 or 3x3 determinant to an expression. Returns None for any other matrix."""
    cells = [[f"({cell.text})" if isinstance(cell, Scalar) else "" for cell in row] for row in matrix.rows]
    size = len(cells)
    if matrix.kind != "determinant" or size not in (2, 3) or any(len(row) != size or not all(row) for row in cells):
        return None
    if size == 2:
        return Scalar(_expand_two_by_two(*cells[0], *cells[1]))
    (a, b, c), (d, e, f), (g, h, i) = cells
    return Scalar(
        rf"{a}({_expand_two_by_two(e, f, h, i)})-{b}({_expand_two_by_two(d, f, g, i)})"
        rf"+{c}({_expand_two_by_two(d, e, g, h)})"
    )


def _expand_two_by_two(a: str, b: str, c: str, d: str) -> str:
    """Returns the text `a d - b c`, the determinant of a 2x2 matrix."""
    return rf"{a}\cdot{d}-{b}\cdot{c}"


def _is_single_choice(gold: Choice, answer: Choice) -> bool:
    """Checks whether the text beside an answer's option letter names no other option and fits the gold's text."""
    if not answer.rest or answer.rest == gold.rest or (not gold.rest and refers_to_options(answer.rest)):
        return True
    answer_rest = parse_normalized(answer.rest)
    if not gold.rest:
        return not any(isinstance(item, Choice) and item.letter < "I" for item in get_items(answer_rest or Words("")))
    gold_rest = parse_normalized(gold.rest) if gold.rest else None
    return gold_rest is None or (answer_rest is not None and is_same_answer(gold_rest, answer_rest, None))


def _is_same_tuple(gold: BracketedTuple, answer: BracketedTuple, deferred: DeferredPairs | None) -> bool:
    """Checks whether two tuples have equal items in the same order. Two intervals must also have the same brackets."""
    if gold.name != answer.name and ((gold.name and answer.name) or not _may_be_named_point(gold, answer)):
        return False
    is_interval = len(gold.items) == 2
    if is_interval and (gold.opening, gold.closing) != (answer.opening, answer.closing):
        return False
    return _is_same_sequence(list(gold.items), list(answer.items), deferred)


def _may_be_named_point(*values: BracketedTuple) -> bool:
    """Checks whether the letter before one of two points is only its name, as in `P(1,2)`.

    It is not in `N(0,1)`, a distribution, nor in `C(5,2)`, a number of combinations.
    """
    named = next(value for value in values if value.name)
    letters = re.findall("[A-Z]", named.name)
    letter = letters[-1] if letters else ""
    if any(isinstance(item, Choice) or (isinstance(item, Scalar) and item.text.isupper()) for item in named.items):
        return False  # of random variables
    numbers = [item.number if isinstance(item, Scalar) else None for item in named.items]
    if letter in _DISTRIBUTIONS:
        return False
    if len(numbers) != 2 or letter not in _FUNCTIONS_OF_TWO:
        return True
    first, second = numbers
    if first is None or second is None:
        return True
    if _FUNCTIONS_OF_TWO[letter] == "binomial":
        return not (first.denominator == 1 and first > 0 and 0 <= second <= 1)
    return not (first.denominator == second.denominator == 1 and first >= second >= 0)


def _is_same_sequence(
    golds: list[AnswerValue] | list[BracketedTuple],
    answers: list[AnswerValue] | list[BracketedTuple],
    deferred: DeferredPairs | None,
) -> bool:
    """Checks whether two sequences have the same length and equal items in the same order."""
    return len(golds) == len(answers) and all(
        is_same_answer(gold_item, answer_item, deferred) for gold_item, answer_item in zip(golds, answers, strict=True)
    )


def _has_relation(value: AnswerValue) -> bool:
    """Checks whether a parsed value is an equation or inequality, or a list that contains one."""
    return isinstance(value, RelationChain) or (
        isinstance(value, UnorderedItems) and any(isinstance(item, RelationChain) for item in value.items)
    )


def _is_same_relation(gold: AnswerValue, answer: AnswerValue, deferred: DeferredPairs | None) -> bool:
    """Checks whether two parsed values are equal, where at least one of them is an equation or inequality."""
    golds, answers = (
        collect_named_values(gold, is_same_answer, is_gold=True),
        collect_named_values(answer, is_same_answer, is_gold=False),
    )
    if golds and answers and len(golds) != len(answers):
        golds, answers = split_by_coordinate(golds), split_by_coordinate(answers)
    if golds and answers and has_same_named_values(golds, answers, deferred, is_same_answer):
        return True
    if _has_inequality(gold) or _has_inequality(answer):
        gold_region, answer_region = to_region(gold, is_gold=True), to_region(answer, is_gold=False)
        if gold_region is not None and answer_region is not None:
            return _is_same_region(gold_region, answer_region, deferred)
    if isinstance(gold, RelationChain) and isinstance(answer, RelationChain):
        return _is_same_chain(gold, answer)
    if isinstance(gold, UnorderedItems) and isinstance(answer, UnorderedItems) and (golds is None or answers is None):
        return has_same_items(gold.items, answer.items, None, is_same_answer)
    if isinstance(answer, RelationChain):
        return not isinstance(gold, RelationChain) and _is_worked_calculation(gold, answer)
    return isinstance(gold, RelationChain) and _is_one_of_stated_numbers(gold, answer)


def _is_one_of_stated_numbers(gold: RelationChain, answer: AnswerValue) -> bool:
    r"""Checks whether an answer equals one side of a gold such as `0.56 = 56\%` or `\approx 8.24`."""
    if not set(gold.relations) <= {"=", r"\approx"}:
        return False
    sides = [parse_normalized(side) for side in gold.sides if side]
    numbers = [side for side in sides if isinstance(side, Scalar) and side.number is not None]
    return len(numbers) == len(sides) and any(is_same_answer(number, answer, None) for number in numbers)


def _has_inequality(value: AnswerValue) -> bool:
    r"""Checks whether a parsed value is, or contains, an inequality, a membership `x \in A` or a union of sets."""
    return any(
        isinstance(item, RelationChain) and set(item.relations) & (INEQUALITIES | {r"\in"}) for item in get_items(value)
    ) or isinstance(value, SetUnion)


def _is_same_chain(gold: RelationChain, answer: RelationChain) -> bool:
    """Checks whether two equations or inequalities have equal sides or the same zero set."""
    gold, answer = _put_smaller_side_first(gold), _put_smaller_side_first(answer)
    if gold.relations == answer.relations and _are_sides_equal(gold.sides, answer.sides):
        return True
    relation = gold.relations[0]
    if len(gold.sides) != 2 or len(answer.sides) != 2 or relation != answer.relations[0]:
        return False
    (left, right), (answer_left, answer_right) = gold.sides, answer.sides
    if relation in ("=", r"\ne"):
        return has_same_zero_set((left, right), (answer_left, answer_right))
    if relation in ("<", r"\le"):
        return has_same_zero_set((left, right), (answer_left, answer_right), needs_positive_factor=True)
    return relation in (r"\parallel", r"\perp", r"\sim", r"\cong") and _are_sides_equal(gold.sides, answer.sides[::-1])


def _are_sides_equal(golds: tuple[str, ...], answers: tuple[str, ...]) -> bool:
    """Checks whether two relations have equal sides in the same order."""
    return len(golds) == len(answers) and all(
        gold_side == answer_side or _is_same_text_value(gold_side, answer_side)
        for gold_side, answer_side in zip(golds, answers, strict=True)
    )


def _is_same_text_value(gold_text: str, answer_text: str) -> bool:
    """Checks whether two texts parse to the same value."""
    gold_value, answer_value = parse_normalized(gold_text), parse_normalized(answer_text)
    return gold_value is not None and answer_value is not None and is_same_answer(gold_value, answer_value, None)


def _put_smaller_side_first(chain: RelationChain) -> RelationChain:
    r"""Returns an inequality with its smaller side first, so `5 \ge x` becomes `x \le 5`."""
    if not set(chain.relations) <= set(_REVERSED_RELATIONS):
        return chain
    return RelationChain(
        chain.sides[::-1], tuple(_REVERSED_RELATIONS[relation] for relation in reversed(chain.relations))
    )


def _is_worked_calculation(gold: AnswerValue, answer: RelationChain) -> bool:
    r"""Checks whether all sides of an answer's chain of equations equal the gold.

    It holds for `2+3=5`, `m+n=2+3=5` and `S=\pi r^2=9\pi`, but not for `5 = x+1`.
    """
    sides = answer.sides
    if len(sides) > 2 and isinstance(gold, Scalar) and not _LETTER.search(gold.text) and _LETTER.search(sides[0]):
        n_formulas = next((n for n, side in enumerate(sides) if not _LETTER.search(side)), len(sides))
        sides = sides[n_formulas:] or sides[1:]  # what was asked for, and by which formula
    return set(answer.relations) == {"="} and all(
        (value := parse_normalized(side)) is not None and is_same_answer(gold, value, None) for side in sides
    )


def _is_same_union(gold: AnswerValue, answer: AnswerValue, deferred: DeferredPairs | None) -> bool:
    """Checks whether two unions of sets are the same region of the number line, or have equal parts."""
    gold_region, answer_region = to_region(gold, is_gold=True), to_region(answer, is_gold=False)
    if gold_region is not None and answer_region is not None:
        return _is_same_region(gold_region, answer_region, deferred)
    if isinstance(gold, SetUnion) and isinstance(answer, SetUnion):
        return has_same_items(gold.parts, answer.parts, None, is_same_answer) and has_same_items(
            gold.removed, answer.removed, None, is_same_answer
        )
    return False


def _is_same_region(gold: Region, answer: Region, deferred: DeferredPairs | None) -> bool:
    """Checks whether two number-line regions are equal. Their variables must be the same too, where both name one."""
    if gold.name and answer.name and gold.name != answer.name:
        return False
    return has_same_items(
        _to_interval_tuples(merge_intervals(gold.intervals)),
        _to_interval_tuples(merge_intervals(answer.intervals)),
        deferred,
        is_same_answer,
    )


def _to_interval_tuples(intervals: tuple[Interval, ...]) -> tuple[AnswerValue, ...]:
    """Converts intervals to tuples of two ends with the brackets of the interval."""
    return tuple(
        BracketedTuple(
            "[" if interval.includes_low else "(", (interval.low, interval.high), "]" if interval.includes_high else ")"
        )
        for interval in intervals
    )
