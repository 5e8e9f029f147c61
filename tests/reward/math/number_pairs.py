"""Generates pairs of numbers and golds, equal or not by the exact values they were made from.

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
    fractions,
    integers,
    make_near_miss,
    nonzero,
    numbers,
    pick_one,
    rationals,
    small,
    spell_fraction,
    spell_integer,
    spell_number,
    wrap_answer,
)
from tests.reward.math.pair_registry import register_kind


def change_digits(draw: Any, value: int) -> int:
    """Returns another integer: one off, two digits exchanged, one digit changed, one more or fewer."""
    text = str(abs(value))
    index = draw(st.integers(0, len(text) - 1))
    ways = [value + 1, value - 1, -value, value * 10, int(f"{text}{index}"), value + 10 ** (len(text) - 1)]
    if len(text) > 1:
        swap_index = min(index, len(text) - 2)
        ways += [
            int(text[:swap_index] + text[swap_index + 1] + text[swap_index] + text[swap_index + 2 :]),
            int(text[:-1]),
        ]
    changed = pick_one(draw, ways)
    return changed if changed != value else value + 1


@register_kind
def make_integer(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes an integer within what may enclose an answer."""
    value = draw(integers)
    answer = value if is_equal else change_digits(draw, value)
    return wrap_answer(draw, spell_integer(draw, answer)), spell_integer(draw, value)


@register_kind
def make_long_integer(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes an integer of 18 to 41 digits."""
    value = draw(st.integers(10**17, 10**40))
    answer = value if is_equal else change_digits(draw, value)
    ways = [str(answer), f"{answer:,}", f"{answer - 10**15} + 10^{{15}}", rf"\frac{{{2 * answer}}}{{2}}", f"{answer}.0"]
    return pick_one(draw, ways), pick_one(draw, [str(value), f"{value:,}"])


@register_kind
def make_fraction(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a fraction within what may enclose an answer."""
    value = Number(draw(fractions))
    answer = value if is_equal else make_near_miss(draw, value)
    return wrap_answer(draw, spell_fraction(draw, answer.plain)), spell_fraction(draw, value.plain)


@register_kind
def make_near_fractions(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes fractions that differ, if at all, by less than a float resolves."""
    denominator = draw(st.integers(10**9, 10**18))
    numerator = draw(st.integers(1, denominator))
    k = draw(st.integers(2, 99)) if is_equal else 1
    off = 0 if is_equal else 1
    return rf"\frac{{{numerator * k + off}}}{{{denominator * k}}}", rf"\frac{{{numerator}}}{{{denominator}}}"


@register_kind
def make_mixed_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a mixed number."""
    integer_part, denominator = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    numerator = draw(st.integers(1, denominator - 1))
    sign = draw(st.sampled_from(["", "-"]))
    value = (integer_part + Fraction(numerator, denominator)) * (-1 if sign else 1)
    part = pick_one(draw, [r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", r"\tfrac{%d}{%d}", " %d/%d", r" \frac{%d}{%d}"]) % (
        numerator,
        denominator,
    )
    answer = f"{sign}{integer_part}{part}"
    if is_equal:
        return answer, pick_one(
            draw, [f"{value}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}", *list_decimal(value)]
        )
    wrong = [
        Fraction(integer_part * numerator, denominator),
        Fraction(int(f"{integer_part}{numerator}"), denominator),
        -value,
        value + 1,
        1 / value,
    ]
    other_value = pick_one(draw, wrong)
    assume(other_value != value)
    return answer, spell_fraction(draw, other_value)


def list_decimal(value: Fraction) -> list[str]:
    """Returns a number's decimal if its denominator is small and the decimal ends, else nothing."""
    return [str(float(value))] if value.denominator in (2, 4, 5, 8, 10) else []


@register_kind
def make_power(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a power of whole numbers."""
    base, exponent = draw(st.integers(2, 12)), draw(st.integers(2, 30))
    value = base**exponent
    if not is_equal:
        other_base, other_exponent = pick_one(
            draw, [(base + 1, exponent), (base, exponent + 1), (exponent, base), (-base, exponent)]
        )
        assume(other_base**other_exponent != value != base * exponent)
        return pick_one(
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
    return pick_one(draw, ways), pick_one(draw, [f"{base}^{{{exponent}}}", str(value)])


@register_kind
def make_scientific(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a number in scientific notation."""
    digits, exponent = draw(st.integers(11, 999)), draw(st.integers(-30, 30))
    value = digits * Fraction(10) ** exponent
    if not is_equal:
        digits, exponent = pick_one(
            draw, [(digits + 1, exponent), (digits, exponent + 1), (digits, -exponent), (-digits, exponent)]
        )
        assume(digits * Fraction(10) ** exponent != value)
        return rf"{digits} \times 10^{{{exponent}}}", spell_scientific(draw, value)
    return rf"{digits} \times 10^{{{exponent}}}", spell_scientific(draw, value)


def spell_scientific(draw: Any, value: Fraction) -> str:
    """Writes a number in scientific notation."""
    exponent = draw(st.integers(-33, 33))
    factor = value / Fraction(10) ** exponent
    assume(abs(exponent) < 34 and 10**-4 < factor < 10**6)
    text = f"{float(factor):.10f}".rstrip("0").rstrip(".")
    assume(Fraction(text) == factor)
    return pick_one(draw, [rf"{text} \cdot 10^{{{exponent}}}", rf"{text}\times10^{{{exponent}}}", f"{text}e{exponent}"])


@register_kind
def make_counting(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a binomial coefficient for the number it is."""
    n = draw(st.integers(4, 12))
    k = draw(st.integers(2, n - 2))
    value = math.comb(n, k)
    answer = pick_one(
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
        return answer, str(value)
    return answer, str(pick_one(draw, [value + 1, -value, math.perm(n, k), 10 * value, math.comb(n + 1, k)]))


@register_kind
def make_surd(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a number with a square root."""
    value = Number(draw(rationals), draw(nonzero), pick_one(draw, ROOTS))
    answer = value if is_equal else make_near_miss(draw, value)
    return wrap_answer(draw, spell_number(draw, answer)), spell_number(draw, value)


@register_kind
def make_rationalised(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a fraction with a square root in its denominator for a gold without."""
    a, b, root = draw(st.integers(1, 9)), draw(st.integers(1, 5)), pick_one(draw, ROOTS)
    norm = a * a - b * b * root
    assume(norm != 0)
    value = Number(Fraction(a, norm), Fraction(b, norm), root)
    answer = value if is_equal else make_near_miss(draw, value)
    return rf"\frac{{1}}{{{a}-{b}\sqrt{{{root}}}}}", spell_number(draw, answer)


@register_kind
def make_with_pi(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a rational multiple of pi."""
    value = draw(nonzero)
    answer = value if is_equal else make_near_miss(draw, Number(value)).plain
    return spell_multiple_of_pi(draw, answer), spell_multiple_of_pi(draw, value)


def spell_multiple_of_pi(draw: Any, value: Fraction) -> str:
    """Writes a rational multiple of pi."""
    numerator, denominator = value.numerator, value.denominator
    sign, size = ("-" if numerator < 0 else ""), abs(numerator)
    ways = [
        rf"{sign}\frac{{{size}\pi}}{{{denominator}}}",
        rf"{sign}\frac{{{size}}}{{{denominator}}}\pi",
        rf"{numerator}\pi/{denominator}",
    ]
    ways += [rf"\pi \cdot \frac{{{numerator}}}{{{denominator}}}", f"{numerator}π/{denominator}"] + [
        rf"{numerator}\pi"
    ] * (3 if denominator == 1 else 0)
    return pick_one(draw, ways)


SINES = {0: Number(Fraction(0)), 30: Number(Fraction(1, 2)), 90: Number(Fraction(1))}
SINES |= {45: Number(Fraction(0), Fraction(1, 2), 2), 60: Number(Fraction(0), Fraction(1, 2), 3)}


def compute_sine(degrees: int) -> Number:
    """Computes the sine of a multiple of 30 or 45 degrees exactly."""
    degrees %= 360
    if degrees > 180:
        plain, factor, root = compute_sine(degrees - 180)
        return Number(-plain, -factor, root)
    return SINES[min(degrees, 180 - degrees)]


@register_kind
def make_special_angle(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes the sine or cosine of a special angle for its exact value."""
    degrees = pick_one(draw, [d for d in range(0, 361, 15) if d % 30 == 0 or d % 45 == 0])
    turn = Fraction(degrees, 180)
    angle = pick_one(
        draw,
        [
            rf"{degrees}^\circ",
            rf"{degrees}^{{\circ}}",
            f"({degrees}°)",
            rf"\frac{{{turn.numerator}\pi}}{{{turn.denominator}}}",
        ],
    )
    name, value = pick_one(draw, [(r"\sin", compute_sine(degrees)), (r"\cos", compute_sine(90 + degrees))])
    answer = value if is_equal else make_near_miss(draw, value)
    return f"{name} {angle}", spell_number(draw, answer)


@register_kind
def make_logarithm(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a logarithm whose value is rational."""
    prime, m, k = pick_one(draw, [2, 3, 5, 7]), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    value = Fraction(k, m)
    base, of = prime**m, prime**k
    answer = pick_one(
        draw,
        [
            rf"\log_{{{base}}} {of}",
            rf"\log_{{{base}}}{{{of}}}",
            rf"\frac{{\ln {of}}}{{\ln {base}}}",
            rf"\log_{{{base}}}({of})",
        ],
    )
    return answer, spell_fraction(draw, value if is_equal else make_near_miss(draw, Number(value)).plain)


@register_kind
def make_complex_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a complex number with whole parts."""
    a, b = draw(small), draw(small.filter(bool))
    c, d = a, b
    if not is_equal:
        c, d = pick_one(draw, [(a, -b), (b, a), (-a, b), (a + 1, b), (a, b + 1), (a + b, 0)])
        assume((c, d) != (a, b))
    p, q = draw(small), draw(small.filter(bool))
    norm = p * p + q * q
    numerator = f"{c * p + d * q}{d * p - c * q:+d}i"
    ways = [
        f"{c}{d:+d}i",
        f"{d}i{c:+d}",
        rf"{c} {'-' if d < 0 else '+'} {abs(d)} \cdot i",
        rf"\frac{{{2 * c}{2 * d:+d}i}}{{2}}",
    ]
    ways += [f"{c}{'-' if d < 0 else '+'}\\sqrt{{-{d * d}}}", rf"({numerator})({p}{q:+d}i) \div {norm}"]
    return pick_one(draw, ways), f"{a}{b:+d}i"


@register_kind
def make_dressed_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes any number within what may enclose an answer."""
    value = draw(numbers())
    answer = value if is_equal else make_near_miss(draw, value)
    return wrap_answer(draw, spell_number(draw, answer)), spell_number(draw, value)
