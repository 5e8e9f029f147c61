"""Exact arithmetic on fractions with a size bound checked before each step, and the errors that it raises."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

MAX_BITS = 10_000  # of a numerator or denominator; larger values are compared by their form only


class UndefinedError(ArithmeticError):
    """An error raised for an expression without a value, such as a division by zero or the logarithm of zero."""


class NotRationalError(ArithmeticError):
    """An error raised for a value that is not recognized as rational."""


class TooLargeError(ArithmeticError):
    """An error raised for a value, or for the work of computing it, above the size limits."""


class LongSeriesError(TooLargeError):
    r"""An error raised for a `\sum` or `\prod` with too many terms to add up. Its value need not be large."""


class UnsupportedError(ArithmeticError):
    """An error raised for an expression without a numeric rule, such as an infinite sum."""


@lru_cache(maxsize=4_096)
def parse_decimal_literal(text: str) -> Fraction:
    """Parses a decimal such as `0.25`, `0.1(6)` (repeating) or `1.5e3` to its exact value.

    Raises TooLargeError if it is too large.
    """
    mantissa, _, exponent_digits = text.lower().partition("e")
    if len(exponent_digits) > 5 or abs(int(exponent_digits or 0)) > MAX_BITS // 4:
        raise TooLargeError(text)
    mantissa, _, repeating_digits = mantissa.partition("(")
    integer_digits, _, decimal_digits = mantissa.partition(".")
    value = Fraction(int(integer_digits + decimal_digits or "0"), 10 ** len(decimal_digits))
    if repeating_digits:
        period_digits = repeating_digits.rstrip(")")
        value += Fraction(int(period_digits), (10 ** len(period_digits) - 1) * 10 ** len(decimal_digits))
    return value * Fraction(10) ** int(exponent_digits or 0)


def take_exact_root(value: Fraction, index: int) -> Fraction:
    """Returns the root of a fraction if the root is rational.

    Raises NotRationalError otherwise. A root of odd index of a negative number is the real one.
    """
    if value < 0:
        if index % 2 == 0:
            raise NotRationalError("an even root of a negative number")
        return -take_exact_root(-value, index)
    return Fraction(_take_integer_root(value.numerator, index), _take_integer_root(value.denominator, index))


def _take_integer_root(value: int, index: int) -> int:
    """Returns the root of an integer if the root is an integer. Raises NotRationalError otherwise."""
    if index == 1 or value < 2:
        return value
    if index == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > 1_000:
            raise NotRationalError("a root of a large number")
        root = (
            round(math.exp(math.log(value) / index))
            if value.bit_length() <= index * 40
            else _floor_root_by_newton(value, index)
        )
    if root**index != value:
        raise NotRationalError("an irrational root")
    return root


def _floor_root_by_newton(value: int, index: int) -> int:
    """Returns the root of a large integer, rounded down, by Newton's method on integers."""
    root = 1 << -(-value.bit_length() // index)
    while True:
        next_root = ((index - 1) * root + value // root ** (index - 1)) // index
        if next_root >= root:
            return root
        root = next_root


def raise_to_power(base: Fraction, exponent: int) -> Fraction:
    """Computes an integer power of a fraction. Raises TooLargeError before computing a power that is too large."""
    if base == 0:
        if exponent <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return base
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * (bits - 1) > MAX_BITS:
        raise TooLargeError("a power")
    return base**exponent


def _require_integers(values: Sequence[Fraction]) -> list[int]:
    """Returns numbers as integers. Raises NotRationalError if one is not an integer."""
    if any(value.denominator != 1 for value in values):
        raise NotRationalError("not whole")
    return [value.numerator for value in values]


def _compute_factorial(values: Sequence[Fraction]) -> Fraction:
    """Computes the factorial n! of the only number in a list."""
    (n,) = _require_integers(values)
    if n < 0:
        raise UndefinedError("factorial of a negative number")
    if n > MAX_BITS // 8:  # log2(n!) is above 8 n from there
        raise TooLargeError("a factorial")
    return Fraction(math.factorial(n))


def _compute_binomial(values: Sequence[Fraction]) -> Fraction:
    """Computes the binomial coefficient of the two numbers n and k in a list."""
    n, k = _require_integers(values)
    if n < 0:
        raise NotRationalError("a binomial of a negative number")
    if k < 0 or k > n:
        return Fraction(0)
    k = min(k, n - k)
    if k * n.bit_length() > MAX_BITS and n > MAX_BITS:
        raise TooLargeError("a binomial")
    return Fraction(math.comb(n, k))


def _compute_modulo(values: Sequence[Fraction]) -> Fraction:
    """Computes the remainder of dividing the first number of a list by the second."""
    if not values[1]:
        raise UndefinedError("modulo zero")
    return values[0] % values[1]


def _compute_logarithm(values: Sequence[Fraction]) -> Fraction:
    """Computes the logarithm of a list's first number to the base of its second.

    Raises NotRationalError if the logarithm is not an integer.
    """
    value, base = values
    if value <= 0 or base <= 0 or base == 1:
        raise UndefinedError("logarithm") if value == 0 or base in {0, 1} else NotRationalError("logarithm")
    if base < 1:
        value, base = 1 / value, 1 / base
    sign = 1
    if value < 1:
        value, sign = 1 / value, -1
    log_of_base = _approximate_log(base)
    exponent = round(_approximate_log(value) / log_of_base) if log_of_base else 0
    if raise_to_power(base, exponent) != value:
        raise NotRationalError("logarithm")
    return Fraction(sign * exponent)


def _approximate_log(value: Fraction) -> float:
    """Approximates the natural logarithm of a fraction of any size as a float."""
    return math.log(value.numerator) - math.log(value.denominator)


EXACT_FUNCTIONS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "gcd": lambda values: Fraction(math.gcd(*_require_integers(values))),
    "lcm": lambda values: Fraction(math.lcm(*_require_integers(values))),
    "max": max,
    "min": min,
    "mod": _compute_modulo,
    "factorial": _compute_factorial,
    "binomial": _compute_binomial,
    "log": _compute_logarithm,
}
