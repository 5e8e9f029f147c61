"""Compares two lists without regard to the order of their items."""

from collections import Counter
from fractions import Fraction

from qwen_align.reward.math.answer_values import (
    AnswerComparer,
    AnswerValue,
    BracketedTuple,
    DeferredPairs,
    Scalar,
    UnorderedItems,
)

MAX_COMPARISONS = 900  # comparisons of items without order: thirty against thirty


def has_same_items(
    golds: tuple[AnswerValue, ...],
    answers: tuple[AnswerValue, ...],
    deferred: DeferredPairs | None,
    is_same_answer: AnswerComparer,
) -> bool:
    """Checks whether two lists contain the same items in any order, each as often: `2,2,3` is not `2,3,3`.

    A point that is listed twice counts once.
    """
    golds, answers = _drop_repeated_points(golds), _drop_repeated_points(answers)
    if len(golds) != len(answers):
        return False
    gold_numbers, answer_numbers = _collect_plain_numbers(golds), _collect_plain_numbers(answers)
    if gold_numbers is not None and answer_numbers is not None and gold_numbers == answer_numbers:
        return True
    if len(golds) * len(answers) > MAX_COMPARISONS:
        return Counter(golds) == Counter(answers)
    unmatched = list(answers)
    for gold in golds:
        index = _find_same_item(gold, unmatched, deferred, is_same_answer)
        if index is None:
            return False
        del unmatched[index]
    return True


def _drop_repeated_points(items: tuple[AnswerValue, ...]) -> tuple[AnswerValue, ...]:
    """Returns a list of points without those that are listed again. Returns any other list unchanged."""
    return tuple(dict.fromkeys(items)) if all(isinstance(item, BracketedTuple) for item in items) else items


def _collect_plain_numbers(items: tuple[AnswerValue, ...]) -> Counter[Fraction] | None:
    """Returns the numbers in a list of plain numbers without units, with their counts.

    Returns None for any other list.
    """
    numbers = [item.number for item in items if isinstance(item, Scalar) and item.unit is None]
    known_numbers = [number for number in numbers if number is not None]
    return Counter(known_numbers) if len(known_numbers) == len(items) else None


def _find_same_item(
    gold: AnswerValue, answers: list[AnswerValue], deferred: DeferredPairs | None, is_same_answer: AnswerComparer
) -> int | None:
    """Returns the index of the first answer that equals a gold's item. Returns None if there is none.

    One that only the sympy fallback could compare comes last.
    """
    same_kind = [
        index
        for index, answer in enumerate(answers)
        if isinstance(answer, UnorderedItems) == isinstance(gold, UnorderedItems)
    ]
    for index in same_kind:
        if is_same_answer(gold, answers[index], None):
            return index
    if deferred is not None:
        for index in same_kind:
            if _is_same_or_undo_deferral(gold, answers[index], deferred, is_same_answer):
                return index
    return None


def _is_same_or_undo_deferral(
    item: AnswerValue, candidate: AnswerValue, deferred: DeferredPairs, is_same_answer: AnswerComparer
) -> bool:
    """Checks whether two items are equal.

    If they are not, the pairs that the comparison added to `deferred` are removed again.
    """
    n_before = len(deferred)
    if is_same_answer(item, candidate, deferred):
        return True
    del deferred[n_before:]
    return False
