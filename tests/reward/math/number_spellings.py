r"""Exact numbers `a + b sqrt(c)` and the ways to write them, the ground of every generated pair.

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
    """`plain + factor * sqrt(root)`; `factor` is 0 exactly where `root` is 1."""

    plain: Fraction
    factor: Fraction = Fraction(0)
    root: int = 1

    def near(self) -> float:
        return float(self.plain) + float(self.factor) * math.sqrt(self.root)


def pick(draw: Draw[Drawn], ways: list[Drawn]) -> Drawn:
    return draw(st.sampled_from(ways))


integers = st.integers(-99, 999) | st.integers(-(10**9), 10**9)
small = st.integers(-12, 12)
fractions = st.builds(Fraction, st.integers(-60, 60), st.integers(2, 24))
rationals = small.map(Fraction) | fractions
nonzero = rationals.filter(bool)


@st.composite
def numbers(draw: Draw) -> Number:  # type: ignore[type-arg]
    if draw(st.integers(0, 3)):
        return Number(draw(rationals))
    return Number(draw(rationals), draw(nonzero), pick(draw, ROOTS))


def one_of_fraction(draw: Draw, value: Fraction) -> str:  # type: ignore[type-arg]
    """A way to write a rational number that may stand inside anything."""
    above, below = value.numerator, value.denominator
    k = draw(st.integers(2, 9))
    sign = "-" if above < 0 else ""
    ways = [rf"\frac{{{above * k}}}{{{below * k}}}"]
    if below == 1:
        ways += [str(above)] * 4 + [f"{above}.0", rf"\frac{{{above * k}}}{{{k}}}"]
        return pick(draw, ways)
    size = abs(above)
    ways += [
        rf"\frac{{{above}}}{{{below}}}",
        rf"{sign}\frac{{{size}}}{{{below}}}",
        rf"{sign}\dfrac{{{size}}}{{{below}}}",
    ]
    ways += [rf"{sign}\tfrac{{{size}}}{{{below}}}", f"{above}/{below}", rf"{sign}\frac {{{size}}} {{{below}}}"]
    ways += [rf"\frac{{{-above}}}{{{-below}}}"]
    if size < 10 and below < 10:
        ways += [rf"{sign}\frac{size}{below}", rf"{sign}\frac{size}{{{below}}}"]
    if size > below:
        ways.append(rf"{sign}{size // below}\frac{{{size % below}}}{{{below}}}")
    return pick(draw, ways + finite_decimals(value))


def finite_decimals(value: Fraction) -> list[str]:
    """The decimal writings of a number whose decimals end, two of them, else none."""
    for places in range(1, 9):
        if 10**places % value.denominator == 0:
            scaled = abs(value.numerator) * 10**places // value.denominator
            text = f"{'-' if value < 0 else ''}{scaled // 10**places}.{scaled % 10**places:0{places}d}"
            return [text, text + "0"]
    return []


def one_of_number(draw: Draw, number: Number) -> str:  # type: ignore[type-arg]
    """A way to write a number that may stand inside anything."""
    plain, factor, root = number
    if root == 1:
        return one_of_fraction(draw, plain)
    wide = math.lcm(plain.denominator, factor.denominator)
    above, times = int(plain * wide), int(factor * wide)
    surd = f"{'-' if times == -1 else '' if times == 1 else times}\\sqrt{{{root}}}"
    joined = f"{above}{'' if surd.startswith('-') else '+'}{surd}" if above else surd
    turned = f"{surd}{'-' if above < 0 else '+'}{abs(above)}" if above else surd
    under = f"{'-' if times < 0 else '+'}\\sqrt{{{times * times * root}}}"
    tail = f"{'-' if times < 0 else ''}\\frac{{{abs(times) * root}}}{{\\sqrt{{{root}}}}}"
    ways = [
        joined,
        turned,
        f"{above}{under}",
        f"{above}+\\left({tail}\\right)",
        f"{above} + {times} \\cdot \\sqrt{{{root}}}",
    ]
    if wide == 1:
        return pick(draw, ways)
    ways = [rf"\frac{{{way}}}{{{wide}}}" for way in ways]
    ways += [rf"\dfrac{{{turned}}}{{{wide}}}", rf"\frac{{1}}{{{wide}}}\left({joined}\right)", f"({joined})/{wide}"]
    if plain:
        size, below = abs(factor.numerator), factor.denominator
        sign = "-" if factor < 0 else "+"
        ways.append(rf"{one_of_fraction(draw, plain)}{sign}\frac{{{size}\sqrt{{{root}}}}}{{{below}}}")
    return pick(draw, ways)


def dressed(draw: Draw, text: str) -> str:  # type: ignore[type-arg]
    """The same answer with what may stand around it."""
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
    return pick(draw, ways)


def one_of_integer(draw: Draw, value: int) -> str:  # type: ignore[type-arg]
    """A way to write an integer as a whole answer."""
    ways = [str(value), f"{value}.00", f"{value:,}", f"{value:,}".replace(",", "{,}"), f"{value:,}".replace(",", r"\,")]
    ways += [rf"\text{{{value}}}", str(value).translate(FULL_WIDTH), rf"\frac{{{3 * value}}}{{3}}"]
    ways += [f"{value:,}".replace(",", r",\!"), f"{value + 7}-7", f"({value})"]
    if value >= 0:
        ways += [f"+{value}", f"00{value}"]
    return pick(draw, ways)


def beside(draw: Draw, number: Number) -> Number:  # type: ignore[type-arg]
    """A near miss of a number: another sign, another digit, one part a little off, parts exchanged."""
    plain, factor, root = number
    above, below = plain.numerator, plain.denominator
    ways = [
        Number(-plain, factor, root),
        Number(plain + 1, factor, root),
        Number(plain - 1, factor, root),
        Number(Fraction(above + 1, below), factor, root),
        Number(Fraction(above, below + 1), factor, root),
        Number(plain * 10, factor, root),
        Number(plain + Fraction(1, 10**6), factor, root),
    ]
    if above:
        ways.append(Number(Fraction(below, above), factor, root))
    if root > 1:
        other = pick(draw, [r for r in ROOTS if r != root])
        ways += [Number(plain, -factor, root), Number(plain, factor, other), Number(plain, factor + 1, root)] * 2
    found = pick(draw, ways)
    if not found.factor:
        found = Number(found.plain)
    return found if found != number else Number(plain + 1, factor, root)
