"""Exact values of long sums and products whose partial results are a rational function of the last index."""

from collections.abc import Callable
from fractions import Fraction

_MAX_NODES = 16  # of the interpolation: numerator and denominator of degree up to 7
_N_CHECKS = 40  # more points than the recurrence has degrees, so agreement at all of them proves it


def closed_form(
    term: Callable[[int], Fraction],
    start: int,
    stop: int,
    bounded: Callable[[Fraction], Fraction],
    *,
    is_sum: bool,
) -> Fraction | None:
    """The sum or product of `term` from `start` to `stop`, None if no small rational function gives it.

    `bounded` returns a number that is not too large and raises for others.

    The function is guessed from the first partial results by Thiele's continued fraction and proved by its recurrence:
    a step from n-1 to n adds, or multiplies by, the n-th term.
    """
    places: list[Fraction] = []
    parts: list[Fraction] = []
    result = Fraction(0 if is_sum else 1)
    try:
        for index in range(start, start + _MAX_NODES):
            result = bounded(result + term(index) if is_sum else result * term(index))
            if parts and _at(places, parts, Fraction(index)) == result:
                break
            parts.append(bounded(_inverse_difference(places, parts, Fraction(index), result)))
            places.append(Fraction(index))
        else:
            return None
        for index in (*range(start + 1, start + _N_CHECKS), start + 1_000_003, stop):
            before, after = (_at(places, parts, Fraction(end)) for end in (index - 1, index))
            if after != (before + term(index) if is_sum else before * term(index)):
                return None
        return _at(places, parts, Fraction(stop))
    except ZeroDivisionError:
        return None


def _inverse_difference(places: list[Fraction], parts: list[Fraction], place: Fraction, value: Fraction) -> Fraction:
    for known, part in zip(places, parts, strict=True):
        value = (place - known) / (value - part)
    return value


def _at(places: list[Fraction], parts: list[Fraction], place: Fraction) -> Fraction:
    value = parts[-1]
    for known, part in zip(places[-2::-1], parts[-2::-1], strict=True):
        value = part + (place - known) / value
    return value
