"""Values for letters: the same for the same name, in domains that tell expressions apart."""

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
_GRAINS = (97, 89, 83, 79, 73, 71, 67, 61)  # denominators without a common factor: no period suits two points
# Signs by a letter's place among the letters: with these, up to three letters have every mixture of signs.
_NEGATIVE = {3: "0101", 5: "1010", 8: "1100", 9: "0011", 10: "1001", 11: "0110"}
_PARTS = (1, 2, 1, 3, 1, 4, 2, 6)  # what whole numbers are divided by at points where rounding functions jump
N_REAL = len(_DOMAINS)
N_SIGNED = 12  # real points for two and more letters
N_WHOLE = 8


class Point:
    """Values for the letters; the values of unknown functions are letters named by `name_of`."""

    def __init__(self, value_of: Callable[[str], Fraction], name_of: Callable[[Node], str | None]) -> None:
        self.value_of = value_of
        self.name_of = name_of


@lru_cache(maxsize=1_024)
def real_value(name: str, place: int) -> Fraction:
    """A fraction of size below 13 for the letter at the point number `place`, below N_REAL."""
    least, most, sign = _DOMAINS[place]
    drawn = _drawn(name, place)
    step = drawn % 10_007
    value = least + (most - least) * Fraction(step, 10_007)
    value = Fraction(round(value * _GRAINS[place]), _GRAINS[place])
    return -value if sign == "-" or (sign == "?" and drawn // 10_007 % 2) else value


def signed_value(name: str, place: int, rank: int) -> Fraction:
    """The same below N_SIGNED for a letter whose place among the letters is `rank`."""
    value = real_value(name, place % N_REAL if place < N_REAL else place - 5)
    signs = _NEGATIVE.get(place)
    return value if signs is None else abs(value) * (-1 if signs[rank % 4] == "1" else 1)


def jump_value(name: str, place: int) -> Fraction:
    """A whole number or a simple fraction, where floor and ceil have jumps."""
    return whole_value(name, place) / _PARTS[place % len(_PARTS)]


@lru_cache(maxsize=1_024)
def whole_value(name: str, place: int) -> Fraction:
    """A whole number from 1 to 12 for the letter at the point number `place`, below N_WHOLE."""
    return Fraction(1 + (_drawn(name, 0) + 5 * place) % 12)


def _drawn(name: str, place: int) -> int:
    return int.from_bytes(blake2b(f"{place} {name}".encode(), digest_size=8).digest())
