"""Compares two lists as sets, without regard to the order of their items."""

from fractions import Fraction

from qwen_align.reward.math.answer_values import AnswerComparer, AnswerValue, DeferredPairs, Scalar, UnorderedItems

MAX_COMPARISONS = 900  # comparisons of items without order: thirty against thirty


def has_same_items(
    golds: tuple[AnswerValue, ...],
    answers: tuple[AnswerValue, ...],
    deferred: DeferredPairs | None,
    is_same_answer: AnswerComparer,
) -> bool:
    """Checks whether two lists contain the same items in any order. An item given twice counts once."""
    if not golds or not answers:
        return not golds and not answers
    gold_numbers, answer_numbers = _collect_plain_numbers(golds), _collect_plain_numbers(answers)
    if gold_numbers is not None and answer_numbers is not None and gold_numbers == answer_numbers:
        return True
    golds, answers = tuple(dict.fromkeys(golds)), tuple(dict.fromkeys(answers))
    if len(golds) * len(answers) > MAX_COMPARISONS or len(answers) > 2 * len(golds) + 2:
        return set(golds) == set(answers)
    return _is_each_item_among(golds, answers, deferred, is_same_answer) and _is_each_item_among(
        answers, golds, deferred, lambda answer, gold, deferred: is_same_answer(gold, answer, deferred)
    )


def _collect_plain_numbers(items: tuple[AnswerValue, ...]) -> frozenset[Fraction] | None:
    """Returns the set of numbers in a list of plain numbers without units. Returns None for any other list."""
    numbers = [item.number for item in items if isinstance(item, Scalar) and item.unit is None]
    known_numbers = frozenset(number for number in numbers if number is not None)
    return known_numbers if len(numbers) == len(items) and None not in numbers else None


def _is_each_item_among(
    items: tuple[AnswerValue, ...],
    candidates: tuple[AnswerValue, ...],
    deferred: DeferredPairs | None,
    is_same_answer: AnswerComparer,
) -> bool:
    """Checks whether each item of one list equals an item of another list."""
    for item in items:
        same_kind = [
            candidate
            for candidate in candidates
            if isinstance(candidate, UnorderedItems) == isinstance(item, UnorderedItems)
        ]
        if any(is_same_answer(item, candidate, None) for candidate in same_kind):
            continue
        if deferred is None or not any(
            _is_same_or_undo_deferral(item, candidate, deferred, is_same_answer) for candidate in same_kind
        ):
            return False
    return True


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
