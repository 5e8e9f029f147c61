"""When two equations or inequalities say the same: their differences are one another's multiple by a constant."""

from collections.abc import Iterator

from qwen_align.reward.math.exact_evaluator import rational
from qwen_align.reward.math.expression_equality import same
from qwen_align.reward.math.expression_parser import parse
from qwen_align.reward.math.expression_tree import Node, number, symbols, with_values

_POINTS = ((3, 5, 7, 11, 13, 17, 19, 23), (29, 2, 31, 37, 3, 41, 43, 5), (8, 27, 6, 15, 21, 10, 33, 14))
_ZERO = number(0)


def same_zero_set(one: tuple[str, str], other: tuple[str, str], *, positive: bool = False) -> bool:
    """Whether `left - right` of both differ by a constant factor, above 0 if `positive`; in doubt they do not.

    The factor is read off at one point, so two equations without solutions are not equal because of that.
    """
    first, second = _difference(*one), _difference(*other)
    if first is None or second is None or symbols(first) != symbols(second) or not symbols(first):
        return False
    if not positive and same(first, second):
        return True
    for point in _points(sorted(symbols(first))):
        above, below = with_values(first, point), with_values(second, point)
        if same(above, _ZERO) is not False or same(below, _ZERO) is not False:
            continue
        if positive:
            factor = rational(Node("quotient", (above, below)))
            if factor is None or factor <= 0:
                return False
        return same(Node("product", (first, below)), Node("product", (second, above))) is True
    return False


def _difference(left: str, right: str) -> Node | None:
    sides = parse(left), parse(right)
    if sides[0] is None or sides[1] is None:
        return None
    return Node("sum", (sides[0], Node("negative", (sides[1],))))


def _points(names: list[str]) -> Iterator[dict[str, Node]]:
    for numbers in _POINTS:
        yield {name: number(numbers[place % 8] + place // 8) for place, name in enumerate(names)}
