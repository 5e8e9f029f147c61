"""Draws reproducible values for the variables of expressions, in domains where unequal expressions differ."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

from qwen_align.reward.math.expression_tree import Node

# Least and largest size, and the sign: small, large and negative values, and signs that differ between letters.
_DOMAINS = (
    (Fraction(11, 10), Fraction(4), "+"),
    (Fraction(1, 10), Fraction(9, 10), "+"),
    (Fraction(1, 10), Fraction(9, 10), "-"),
    (Fraction(11, 10), Fraction(6), "?"),
    (Fraction(2), Fraction(13), "+"),
    (Fraction(1, 10), Fraction(3, 2), "?"),
    (Fraction(6, 5), Fraction(5), "-"),
    (Fraction(1, 10), Fraction(3), "+"),
)
_DENOMINATORS = (97, 89, 83, 79, 73, 71, 67, 61)  # denominators without a common factor: no period suits two points
# Signs by a letter's index among the letters: with these, up to three letters have every mixture of signs.
_SIGN_PATTERNS = {3: "0101", 5: "1010", 8: "1100", 9: "0011", 10: "1001", 11: "0110"}
_JUMP_DIVISORS = (1, 2, 1, 3, 1, 4, 2, 6)  # what whole numbers are divided by at points where rounding functions jump
N_REAL_POINTS = len(_DOMAINS)
N_SIGNED_POINTS = 12  # real points for two and more letters
N_INTEGER_POINTS = 8


class SamplePoint:
    """A sample point that gives values to variables and to calls of unknown functions.

    A call has the value of the variable that `get_call_name` names.
    """

    def __init__(self, get_letter_value: Callable[[str], Fraction], get_call_name: Callable[[Node], str]) -> None:
        self.get_letter_value = get_letter_value
        self.get_call_name = get_call_name


@lru_cache(maxsize=1_024)
def draw_real_value(name: str, point_index: int) -> Fraction:
    """Draws a fraction of absolute value at most 13 for a variable at one of N_REAL_POINTS sample points."""
    low, high, sign = _DOMAINS[point_index]
    hash_value = _draw_hash(name, point_index)
    step = hash_value % 10_007
    value = low + (high - low) * Fraction(step, 10_007)
    value = Fraction(round(value * _DENOMINATORS[point_index]), _DENOMINATORS[point_index])
    return -value if sign == "-" or (sign == "?" and hash_value // 10_007 % 2) else value


def draw_signed_value(name: str, point_index: int, letter_index: int) -> Fraction:
    """Draws a real value for one of several variables, at one of N_SIGNED_POINTS sample points with mixed signs."""
    value = draw_real_value(name, point_index % N_REAL_POINTS if point_index < N_REAL_POINTS else point_index - 5)
    signs = _SIGN_PATTERNS.get(point_index)
    return value if signs is None else abs(value) * (-1 if signs[letter_index % 4] == "1" else 1)


def draw_jump_value(name: str, point_index: int) -> Fraction:
    """Draws an integer or simple fraction for a variable, at which floor and ceil functions jump."""
    return draw_integer_value(name, point_index) / _JUMP_DIVISORS[point_index % len(_JUMP_DIVISORS)]


@lru_cache(maxsize=1_024)
def draw_integer_value(name: str, point_index: int) -> Fraction:
    """Draws an integer from 1 to 12 for a variable at one of N_INTEGER_POINTS sample points."""
    return Fraction(1 + (_draw_hash(name, 0) + 5 * point_index) % 12)


def _draw_hash(name: str, point_index: int) -> int:
    """Returns a 64-bit hash of a variable name and the index of a sample point."""
    return int.from_bytes(blake2b(f"{point_index} {name}".encode(), digest_size=8).digest())
