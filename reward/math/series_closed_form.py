"""Computes long sums and products exactly where the partial results are a rational function of the last index."""

from collections.abc import Callable
from fractions import Fraction

_MAX_NODES = 16  # of the interpolation: numerator and denominator of degree up to 7
_N_CHECKS = 40  # more points than the recurrence has degrees, so agreement at all of them proves it


def find_closed_form(
    term: Callable[[int], Fraction],
    start: int,
    stop: int,
    check_size: Callable[[Fraction], Fraction],
    *,
    is_sum: bool,
) -> Fraction | None:
    """Returns the sum or product of `term(i)` for i from `start` to `stop`, by a closed form.

    Returns None if no small rational function gives it. `check_size` returns a number that is not too large and raises
    for others.

    The function is guessed from the first partial results by Thiele's continued fraction and proved by its recurrence:
    a step from n-1 to n adds, or multiplies by, the n-th term.
    """
    nodes: list[Fraction] = []
    coefficients: list[Fraction] = []
    result = Fraction(0 if is_sum else 1)
    try:
        for index in range(start, start + _MAX_NODES):
            result = check_size(result + term(index) if is_sum else result * term(index))
            if coefficients and _evaluate_continued_fraction(nodes, coefficients, Fraction(index)) == result:
                break
            coefficients.append(check_size(_compute_inverse_difference(nodes, coefficients, Fraction(index), result)))
            nodes.append(Fraction(index))
        else:
            return None
        for index in (*range(start + 1, start + _N_CHECKS), start + 1_000_003, stop):
            before, after = (
                _evaluate_continued_fraction(nodes, coefficients, Fraction(end)) for end in (index - 1, index)
            )
            if after != (before + term(index) if is_sum else before * term(index)):
                return None
        return _evaluate_continued_fraction(nodes, coefficients, Fraction(stop))
    except ZeroDivisionError:
        return None


def _compute_inverse_difference(
    nodes: list[Fraction], coefficients: list[Fraction], node: Fraction, value: Fraction
) -> Fraction:
    """Computes the next coefficient of Thiele's continued fraction from the value at a new node."""
    for earlier_node, coefficient in zip(nodes, coefficients, strict=True):
        value = (node - earlier_node) / (value - coefficient)
    return value


def _evaluate_continued_fraction(nodes: list[Fraction], coefficients: list[Fraction], node: Fraction) -> Fraction:
    """Evaluates Thiele's continued fraction, given by its nodes and coefficients, at a node."""
    value = coefficients[-1]
    for earlier_node, coefficient in zip(nodes[-2::-1], coefficients[-2::-1], strict=True):
        value = coefficient + (node - earlier_node) / value
    return value
