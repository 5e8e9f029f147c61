"""Generated pairs of numbers and golds, equal or not by the exact values they were made from.

Each maker draws a value, then the value again or a near miss of it, and writes both in ways drawn from those in use.
"""

import math
from fractions import Fraction
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import (
    ROOTS,
    Number,
    beside,
    dressed,
    fractions,
    integers,
    nonzero,
    numbers,
    one_of_fraction,
    one_of_integer,
    one_of_number,
    pick,
    rationals,
    small,
)
from tests.reward.math.pair_registry import kind


def other_digits(draw: Any, value: int) -> int:
    """An integer beside another: one off, two digits exchanged, one digit changed, one more or fewer."""
    text = str(abs(value))
    place = draw(st.integers(0, len(text) - 1))
    ways = [value + 1, value - 1, -value, value * 10, int(f"{text}{place}"), value + 10 ** (len(text) - 1)]
    if len(text) > 1:
        at = min(place, len(text) - 2)
        ways += [int(text[:at] + text[at + 1] + text[at] + text[at + 2 :]), int(text[:-1])]
    found = pick(draw, ways)
    return found if found != value else value + 1


@kind
def integer(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(integers)
    said = value if is_equal else other_digits(draw, value)
    return dressed(draw, one_of_integer(draw, said)), one_of_integer(draw, value)


@kind
def long_integer(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(st.integers(10**17, 10**40))
    said = value if is_equal else other_digits(draw, value)
    ways = [str(said), f"{said:,}", f"{said - 10**15} + 10^{{15}}", rf"\frac{{{2 * said}}}{{2}}", f"{said}.0"]
    return pick(draw, ways), pick(draw, [str(value), f"{value:,}"])


@kind
def fraction(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Number(draw(fractions))
    said = value if is_equal else beside(draw, value)
    return dressed(draw, one_of_fraction(draw, said.plain)), one_of_fraction(draw, value.plain)


@kind
def near_fractions(draw: Any, is_equal: bool) -> tuple[str, str]:
    below = draw(st.integers(10**9, 10**18))
    above = draw(st.integers(1, below))
    k = draw(st.integers(2, 99)) if is_equal else 1
    off = 0 if is_equal else 1
    return rf"\frac{{{above * k + off}}}{{{below * k}}}", rf"\frac{{{above}}}{{{below}}}"


@kind
def mixed_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    whole, below = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    above = draw(st.integers(1, below - 1))
    sign = draw(st.sampled_from(["", "-"]))
    value = (whole + Fraction(above, below)) * (-1 if sign else 1)
    part = pick(draw, [r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", r"\tfrac{%d}{%d}", " %d/%d", r" \frac{%d}{%d}"]) % (
        above,
        below,
    )
    said = f"{sign}{whole}{part}"
    if is_equal:
        return said, pick(draw, [f"{value}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}", *finite(value)])
    wrong = [Fraction(whole * above, below), Fraction(int(f"{whole}{above}"), below), -value, value + 1, 1 / value]
    other = pick(draw, wrong)
    assume(other != value)
    return said, one_of_fraction(draw, other)


def finite(value: Fraction) -> list[str]:
    return [str(float(value))] if value.denominator in (2, 4, 5, 8, 10) else []


@kind
def power(draw: Any, is_equal: bool) -> tuple[str, str]:
    base, exponent = draw(st.integers(2, 12)), draw(st.integers(2, 30))
    value = base**exponent
    if not is_equal:
        other_base, other_exponent = pick(
            draw, [(base + 1, exponent), (base, exponent + 1), (exponent, base), (-base, exponent)]
        )
        assume(other_base**other_exponent != value != base * exponent)
        return pick(
            draw,
            [f"{other_base}^{{{other_exponent}}}", rf"{base}\cdot {exponent}", f"{base}{exponent}", str(value + 1)],
        ), f"{base}^{{{exponent}}}"
    ways = [
        f"{base}^{{{exponent}}}",
        rf"{base}\cdot {base}^{{{exponent - 1}}}",
        f"{value}",
        rf"\frac{{{base}^{{{exponent + 1}}}}}{{{base}}}",
    ]
    ways += [
        f"({base}^{{{exponent}}})",
        rf"\left({base}\right)^{{{exponent}}}",
        rf"\frac{{1}}{{{base}^{{-{exponent}}}}}",
    ]
    return pick(draw, ways), pick(draw, [f"{base}^{{{exponent}}}", str(value)])


@kind
def scientific(draw: Any, is_equal: bool) -> tuple[str, str]:
    digits, exponent = draw(st.integers(11, 999)), draw(st.integers(-30, 30))
    value = digits * Fraction(10) ** exponent
    if not is_equal:
        digits, exponent = pick(
            draw, [(digits + 1, exponent), (digits, exponent + 1), (digits, -exponent), (-digits, exponent)]
        )
        assume(digits * Fraction(10) ** exponent != value)
        return rf"{digits} \times 10^{{{exponent}}}", one_of_scientific(draw, value)
    return rf"{digits} \times 10^{{{exponent}}}", one_of_scientific(draw, value)


def one_of_scientific(draw: Any, value: Fraction) -> str:
    exponent = draw(st.integers(-33, 33))
    factor = value / Fraction(10) ** exponent
    assume(abs(exponent) < 34 and 10**-4 < factor < 10**6)
    text = f"{float(factor):.10f}".rstrip("0").rstrip(".")
    assume(Fraction(text) == factor)
    return pick(draw, [rf"{text} \cdot 10^{{{exponent}}}", rf"{text}\times10^{{{exponent}}}", f"{text}e{exponent}"])


@kind
def counting(draw: Any, is_equal: bool) -> tuple[str, str]:
    n = draw(st.integers(4, 12))
    k = draw(st.integers(2, n - 2))
    value = math.comb(n, k)
    said = pick(
        draw,
        [
            rf"\binom{{{n}}}{{{k}}}",
            rf"\frac{{{n}!}}{{{k}!{n - k}!}}",
            rf"\binom{{{n}}}{{{n - k}}}",
            rf"\frac{{{n}!}}{{{k}! \cdot ({n}-{k})!}}",
            rf"{{{n} \choose {k}}}",
        ],
    )
    if is_equal:
        return said, str(value)
    return said, str(pick(draw, [value + 1, -value, math.perm(n, k), 10 * value, math.comb(n + 1, k)]))


@kind
def surd(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Number(draw(rationals), draw(nonzero), pick(draw, ROOTS))
    said = value if is_equal else beside(draw, value)
    return dressed(draw, one_of_number(draw, said)), one_of_number(draw, value)


@kind
def rationalised(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, root = draw(st.integers(1, 9)), draw(st.integers(1, 5)), pick(draw, ROOTS)
    norm = a * a - b * b * root
    assume(norm != 0)
    value = Number(Fraction(a, norm), Fraction(b, norm), root)
    said = value if is_equal else beside(draw, value)
    return rf"\frac{{1}}{{{a}-{b}\sqrt{{{root}}}}}", one_of_number(draw, said)


@kind
def with_pi(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(nonzero)
    said = value if is_equal else beside(draw, Number(value)).plain
    return one_of_pi(draw, said), one_of_pi(draw, value)


def one_of_pi(draw: Any, value: Fraction) -> str:
    above, below = value.numerator, value.denominator
    sign, size = ("-" if above < 0 else ""), abs(above)
    ways = [rf"{sign}\frac{{{size}\pi}}{{{below}}}", rf"{sign}\frac{{{size}}}{{{below}}}\pi", rf"{above}\pi/{below}"]
    ways += [rf"\pi \cdot \frac{{{above}}}{{{below}}}", f"{above}π/{below}"] + [rf"{above}\pi"] * (
        3 if below == 1 else 0
    )
    return pick(draw, ways)


SINES = {0: Number(Fraction(0)), 30: Number(Fraction(1, 2)), 90: Number(Fraction(1))}
SINES |= {45: Number(Fraction(0), Fraction(1, 2), 2), 60: Number(Fraction(0), Fraction(1, 2), 3)}


def sine(degrees: int) -> Number:
    degrees %= 360
    if degrees > 180:
        plain, factor, root = sine(degrees - 180)
        return Number(-plain, -factor, root)
    return SINES[min(degrees, 180 - degrees)]


@kind
def special_angle(draw: Any, is_equal: bool) -> tuple[str, str]:
    degrees = pick(draw, [d for d in range(0, 361, 15) if d % 30 == 0 or d % 45 == 0])
    turn = Fraction(degrees, 180)
    angle = pick(
        draw,
        [
            rf"{degrees}^\circ",
            rf"{degrees}^{{\circ}}",
            f"({degrees}°)",
            rf"\frac{{{turn.numerator}\pi}}{{{turn.denominator}}}",
        ],
    )
    name, value = pick(draw, [(r"\sin", sine(degrees)), (r"\cos", sine(90 + degrees))])
    said = value if is_equal else beside(draw, value)
    return f"{name} {angle}", one_of_number(draw, said)


@kind
def logarithm(draw: Any, is_equal: bool) -> tuple[str, str]:
    prime, m, k = pick(draw, [2, 3, 5, 7]), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    value = Fraction(k, m)
    base, of = prime**m, prime**k
    said = pick(
        draw,
        [
            rf"\log_{{{base}}} {of}",
            rf"\log_{{{base}}}{{{of}}}",
            rf"\frac{{\ln {of}}}{{\ln {base}}}",
            rf"\log_{{{base}}}({of})",
        ],
    )
    return said, one_of_fraction(draw, value if is_equal else beside(draw, Number(value)).plain)


@kind
def complex_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b = draw(small), draw(small.filter(bool))
    c, d = a, b
    if not is_equal:
        c, d = pick(draw, [(a, -b), (b, a), (-a, b), (a + 1, b), (a, b + 1), (a + b, 0)])
        assume((c, d) != (a, b))
    p, q = draw(small), draw(small.filter(bool))
    norm = p * p + q * q
    above = f"{c * p + d * q}{d * p - c * q:+d}i"
    ways = [
        f"{c}{d:+d}i",
        f"{d}i{c:+d}",
        rf"{c} {'-' if d < 0 else '+'} {abs(d)} \cdot i",
        rf"\frac{{{2 * c}{2 * d:+d}i}}{{2}}",
    ]
    ways += [f"{c}{'-' if d < 0 else '+'}\\sqrt{{-{d * d}}}", rf"({above})({p}{q:+d}i) \div {norm}"]
    return pick(draw, ways), f"{a}{b:+d}i"


@kind
def dressed_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(numbers())
    said = value if is_equal else beside(draw, value)
    return dressed(draw, one_of_number(draw, said)), one_of_number(draw, value)
