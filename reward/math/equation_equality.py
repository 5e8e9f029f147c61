"""Decides whether two equations or inequalities are the same: left minus right must differ by a constant factor."""

from collections.abc import Iterator

from qwen_align.reward.math.exact_evaluator import evaluate_rational
from qwen_align.reward.math.expression_equality import decide_equality
from qwen_align.reward.math.expression_tree import Node, get_free_letters, make_number, substitute_letters
from qwen_align.reward.math.letter_readings import parse_alike

_POINTS = ((3, 5, 7, 11, 13, 17, 19, 23), (29, 2, 31, 37, 3, 41, 43, 5), (8, 27, 6, 15, 21, 10, 33, 14))
_ZERO = make_number(0)


def has_same_zero_set(
    gold_sides: tuple[str, str], answer_sides: tuple[str, str], *, needs_positive_factor: bool = False
) -> bool:
    """Checks whether two equations or inequalities, written as left minus right, differ only by a constant factor.

    The factor must be positive if `needs_positive_factor` is set; the result is False in doubt. The factor is read off
    at one point, so two equations without solutions are not equal because of that.
    """
    gold_left, gold_right, answer_left, answer_right = parse_alike(*gold_sides, *answer_sides)
    gold_difference = _subtract_sides(gold_left, gold_right)
    answer_difference = _subtract_sides(answer_left, answer_right)
    if (
        gold_difference is None
        or answer_difference is None
        or get_free_letters(gold_difference) != get_free_letters(answer_difference)
        or not get_free_letters(gold_difference)
    ):
        return False
    if not needs_positive_factor and decide_equality(gold_difference, answer_difference):
        return True
    for point in _iterate_points(sorted(get_free_letters(gold_difference))):
        gold_value, answer_value = (
            substitute_letters(gold_difference, point),
            substitute_letters(answer_difference, point),
        )
        if decide_equality(gold_value, _ZERO) is not False or decide_equality(answer_value, _ZERO) is not False:
            continue
        if needs_positive_factor:
            factor = evaluate_rational(Node("quotient", (gold_value, answer_value)))
            if factor is None or factor <= 0:
                return False
        return (
            decide_equality(
                Node("product", (gold_difference, answer_value)), Node("product", (answer_difference, gold_value))
            )
            is True
        )
    return False


def _subtract_sides(left: Node | None, right: Node | None) -> Node | None:
    """Returns the expression tree of left side minus right side. Returns None if a side is not an expression."""
    return None if left is None or right is None else Node("sum", (left, Node("negative", (right,))))


def _iterate_points(letters: list[str]) -> Iterator[dict[str, Node]]:
    """Yields sample points that assign an integer to each variable."""
    for numbers in _POINTS:
        yield {letter: make_number(numbers[index % 8] + index // 8) for index, letter in enumerate(letters)}
