"""Exact numbers `a + b sqrt(c)` and the ways to write them, on which every generated pair is built.

Equality is of the exact parts, so it is no verifier that says which pairs are equal.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeVar

from hypothesis import strategies as st

Drawn = TypeVar("Drawn")
Draw = Callable[[st.SearchStrategy[Drawn]], Drawn]
ROOTS = [2, 3, 5, 6, 7, 10, 11, 13]  # square-free, so that the parts of a number are unique
FULL_WIDTH = str.maketrans("0123456789.+-()=", "０１２３４５６７８９．＋－（）＝")


class Number(NamedTuple):
    """An exact number `plain + factor * sqrt(root)`; `factor` is 0 exactly where `root` is 1."""

    plain: Fraction
    factor: Fraction = Fraction(0)
    root: int = 1


def pick_one(draw: Draw[Drawn], ways: list[Drawn]) -> Drawn:
    """Draws one of the given ways."""
    return draw(st.sampled_from(ways))


integers = st.integers(-99, 999) | st.integers(-(10**9), 10**9)
small = st.integers(-12, 12)
fractions = st.builds(Fraction, st.integers(-60, 60), st.integers(2, 24))
rationals = small.map(Fraction) | fractions
nonzero = rationals.filter(bool)


@st.composite
def numbers(draw: Draw) -> Number:  # type: ignore[type-arg]
    """Draws an exact number, one in four with a square root."""
    if draw(st.integers(0, 3)):
        return Number(draw(rationals))
    return Number(draw(rationals), draw(nonzero), pick_one(draw, ROOTS))


def spell_fraction(draw: Draw, value: Fraction) -> str:  # type: ignore[type-arg]
    """Writes a rational number in a way that may stand inside anything."""
    numerator, denominator = value.numerator, value.denominator
    k = draw(st.integers(2, 9))
    sign = "-" if numerator < 0 else ""
    ways = [rf"\frac{{{numerator * k}}}{{{denominator * k}}}"]
    if denominator == 1:
        ways += [str(numerator)] * 4 + [f"{numerator}.0", rf"\frac{{{numerator * k}}}{{{k}}}"]
        return pick_one(draw, ways)
    size = abs(numerator)
    ways += [
        rf"\frac{{{numerator}}}{{{denominator}}}",
        rf"{sign}\frac{{{size}}}{{{denominator}}}",
        rf"{sign}\dfrac{{{size}}}{{{denominator}}}",
    ]
    ways += [
        rf"{sign}\tfrac{{{size}}}{{{denominator}}}",
        f"{numerator}/{denominator}",
        rf"{sign}\frac {{{size}}} {{{denominator}}}",
    ]
    ways += [rf"\frac{{{-numerator}}}{{{-denominator}}}"]
    if size < 10 and denominator < 10:
        ways += [rf"{sign}\frac{size}{denominator}", rf"{sign}\frac{size}{{{denominator}}}"]
    if size > denominator:
        ways.append(rf"{sign}{size // denominator}\frac{{{size % denominator}}}{{{denominator}}}")
    return pick_one(draw, ways + list_finite_decimals(value))


def list_finite_decimals(value: Fraction) -> list[str]:
    """Returns two decimal spellings of a number whose decimals end, else none."""
    for places in range(1, 9):
        if 10**places % value.denominator == 0:
            scaled = abs(value.numerator) * 10**places // value.denominator
            text = f"{'-' if value < 0 else ''}{scaled // 10**places}.{scaled % 10**places:0{places}d}"
            return [text, text + "0"]
    return []


def spell_number(draw: Draw, number: Number) -> str:  # type: ignore[type-arg]
    """Writes a number in a way that may stand inside anything."""
    plain, factor, root = number
    if root == 1:
        return spell_fraction(draw, plain)
    wide = math.lcm(plain.denominator, factor.denominator)
    numerator, times = int(plain * wide), int(factor * wide)
    surd = f"{'-' if times == -1 else '' if times == 1 else times}\\sqrt{{{root}}}"
    joined = f"{numerator}{'' if surd.startswith('-') else '+'}{surd}" if numerator else surd
    turned = f"{surd}{'-' if numerator < 0 else '+'}{abs(numerator)}" if numerator else surd
    under = f"{'-' if times < 0 else '+'}\\sqrt{{{times * times * root}}}"
    tail = f"{'-' if times < 0 else ''}\\frac{{{abs(times) * root}}}{{\\sqrt{{{root}}}}}"
    ways = [
        joined,
        turned,
        f"{numerator}{under}",
        f"{numerator}+\\left({tail}\\right)",
        f"{numerator} + {times} \\cdot \\sqrt{{{root}}}",
    ]
    if wide == 1:
        return pick_one(draw, ways)
    ways = [rf"\frac{{{way}}}{{{wide}}}" for way in ways]
    ways += [rf"\dfrac{{{turned}}}{{{wide}}}", rf"\frac{{1}}{{{wide}}}\left({joined}\right)", f"({joined})/{wide}"]
    if plain:
        size, denominator = abs(factor.numerator), factor.denominator
        sign = "-" if factor < 0 else "+"
        ways.append(rf"{spell_fraction(draw, plain)}{sign}\frac{{{size}\sqrt{{{root}}}}}{{{denominator}}}")
    return pick_one(draw, ways)


def wrap_answer(draw: Draw, text: str) -> str:  # type: ignore[type-arg]
    """Returns the same answer with something around it that changes nothing."""
    ways = [
        text,
        text,
        text,
        f" {text} ",
        f"${text}$",
        rf"\({text}\)",
        rf"\displaystyle {text}",
        rf"{text}\,",
        f"{text}.",
    ]
    ways += [rf"\mathbf{{{text}}}", f"{{{text}}}", f"x = {text}", f"k={text}"]
    return pick_one(draw, ways)


def spell_integer(draw: Draw, value: int) -> str:  # type: ignore[type-arg]
    """Writes an integer as a whole answer."""
    ways = [str(value), f"{value}.00", f"{value:,}", f"{value:,}".replace(",", "{,}"), f"{value:,}".replace(",", r"\,")]
    ways += [rf"\text{{{value}}}", str(value).translate(FULL_WIDTH), rf"\frac{{{3 * value}}}{{3}}"]
    ways += [f"{value:,}".replace(",", r",\!"), f"{value + 7}-7", f"({value})"]
    if value >= 0:
        ways += [f"+{value}", f"00{value}"]
    return pick_one(draw, ways)


def make_near_miss(draw: Draw, number: Number) -> Number:  # type: ignore[type-arg]
    """Returns a near miss of a number: another sign, another digit, one part a little off, parts exchanged."""
    plain, factor, root = number
    numerator, denominator = plain.numerator, plain.denominator
    ways = [
        Number(-plain, factor, root),
        Number(plain + 1, factor, root),
        Number(plain - 1, factor, root),
        Number(Fraction(numerator + 1, denominator), factor, root),
        Number(Fraction(numerator, denominator + 1), factor, root),
        Number(plain * 10, factor, root),
        Number(plain + Fraction(1, 10**6), factor, root),
    ]
    if numerator:
        ways.append(Number(Fraction(denominator, numerator), factor, root))
    if root > 1:
        other_root = pick_one(draw, [r for r in ROOTS if r != root])
        ways += [Number(plain, -factor, root), Number(plain, factor, other_root), Number(plain, factor + 1, root)] * 2
    near_miss = pick_one(draw, ways)
    if not near_miss.factor:
        near_miss = Number(near_miss.plain)
    return near_miss if near_miss != number else Number(plain + 1, factor, root)
