"""Exact arithmetic on fractions, each step's size bounded before it is taken, and the ways in which it fails."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

MAX_BITS = 10_000  # of a numerator or denominator; larger values are compared by their form only


class UndefinedError(ArithmeticError):
    """The expression has no value: a division by zero, the logarithm of zero, an infinity."""


class NotRationalError(ArithmeticError):
    """The value is not plainly rational."""


class TooLargeError(ArithmeticError):
    """The value, or the work to get it, is above the bounds."""


class LongSeriesError(TooLargeError):
    """A sum or product has more terms than are added up; its value need not be large."""


class UnsupportedError(ArithmeticError):
    """The expression holds what has no numeric rule, such as an infinite sum."""


@lru_cache(maxsize=4_096)
def parse_decimal_literal(text: str) -> Fraction:
    """Parses digits as written: `0.25`, `0.1(6)` for a repeating decimal, `1.5e3`; raises TooLargeError."""
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
    """Returns the root of a fraction if it is rational; raises NotRationalError otherwise.

    A root of odd index of a negative number is the real one.
    """
    if value < 0:
        if index % 2 == 0:
            raise NotRationalError("an even root of a negative number")
        return -take_exact_root(-value, index)
    return Fraction(_take_integer_root(value.numerator, index), _take_integer_root(value.denominator, index))


def _take_integer_root(value: int, index: int) -> int:
    """Returns the whole root of a whole number; raises NotRationalError if there is none."""
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
    """Returns the root of a large number, rounded down, by Newton's method on integers."""
    root = 1 << -(-value.bit_length() // index)
    while True:
        next_root = ((index - 1) * root + value // root ** (index - 1)) // index
        if next_root >= root:
            return root
        root = next_root


def raise_to_power(base: Fraction, exponent: int) -> Fraction:
    """Raises a fraction to a whole power; raises TooLargeError before it takes one that is too large."""
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
    """Returns the values as integers; raises NotRationalError if one is not whole."""
    if any(value.denominator != 1 for value in values):
        raise NotRationalError("not whole")
    return [value.numerator for value in values]


def _compute_factorial(values: Sequence[Fraction]) -> Fraction:
    """Computes n! of a list of one number."""
    (n,) = _require_integers(values)
    if n < 0:
        raise UndefinedError("factorial of a negative number")
    if n > MAX_BITS // 8:  # log2(n!) is above 8 n from there
        raise TooLargeError("a factorial")
    return Fraction(math.factorial(n))


def _compute_binomial(values: Sequence[Fraction]) -> Fraction:
    """Computes the binomial coefficient of a list of n and k."""
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
    """Computes the remainder of the first number divided by the second."""
    if not values[1]:
        raise UndefinedError("modulo zero")
    return values[0] % values[1]


def _compute_logarithm(values: Sequence[Fraction]) -> Fraction:
    """Computes a logarithm from value and base if it is a whole number; raises NotRationalError otherwise."""
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
