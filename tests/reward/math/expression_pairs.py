"""Generates pairs of polynomials, functions and equations, and of golds equal to them or not."""

import math
from fractions import Fraction
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import pick_one, rationals, small, spell_fraction
from tests.reward.math.pair_registry import register_kind


def spell_polynomial(coefficients: list[Fraction], letter: str, is_rising: bool) -> str:
    """Writes the sum of terms, coefficient of the lowest power first in the list."""
    terms = [(c, p) for p, c in enumerate(coefficients) if c]
    text = ""
    for c, p in terms if is_rising else reversed(terms):
        size = abs(c)
        number = str(size) if size.denominator == 1 else rf"\frac{{{size.numerator}}}{{{size.denominator}}}"
        factor = "" if size == 1 and p else number
        body = "" if p == 0 else letter if p == 1 else f"{letter}^{p}" if p < 10 else f"{letter}^{{{p}}}"
        text += ("-" if c < 0 else "+" if text else "") + factor + body
    return text or "0"


def multiply_polynomials(left: list[Fraction], right: list[Fraction]) -> list[Fraction]:
    """Multiplies two polynomials given by their coefficients."""
    product = [Fraction(0)] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return product


@register_kind
def make_polynomials(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes an expanded polynomial for a factored, falling or rising gold."""
    letter = pick_one(draw, list("xyntakm"))
    roots, lead = draw(st.lists(small, min_size=1, max_size=4)), draw(small.filter(bool))
    value = [Fraction(lead)]
    for root in roots:
        value = multiply_polynomials(value, [Fraction(-root), Fraction(1)])
    answer = value.copy()
    if not is_equal:
        index = draw(st.integers(0, len(answer) - 1))
        answer[index] = pick_one(
            draw, [answer[index] + 1, answer[index] - 1, -answer[index], answer[index] + Fraction(1, 1000)]
        )
        assume(answer != value)
    factored = "".join(f"({letter}{-root:+d})" if root else letter for root in sorted(roots))
    front = {1: "", -1: "-"}.get(lead, str(lead))
    written = pick_one(
        draw, [f"{front}{factored}", spell_polynomial(value, letter, False), spell_polynomial(value, letter, True)]
    )
    return vary_spacing(draw, spell_polynomial(answer, letter, draw(st.booleans()))), written


def vary_spacing(draw: Any, text: str) -> str:
    r"""Writes an expression with or without spaces and `\left(`."""
    return pick_one(
        draw,
        [text, text.replace("+", " + ").replace("-", " - "), text.replace("(", r"\left(").replace(")", r"\right)")],
    )


@register_kind
def make_two_letters(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a quadratic form in two letters, expanded for a factored gold."""
    a, b, c, d = (draw(small.filter(bool)) for _ in range(4))
    first_letter, second_letter = pick_one(draw, [("x", "y"), ("a", "b"), ("m", "n"), (r"\alpha", r"\beta")])
    squares, mixed, others = a * c, a * d + b * c, b * d
    if not is_equal:
        changed = pick_one(
            draw,
            [
                (squares + 1, mixed, others),
                (others, mixed, squares),
                (squares, -mixed, others),
                (squares, mixed, others - 1),
            ],
        )
        assume(changed != (squares, mixed, others))
        squares, mixed, others = changed
    gap = " " if first_letter.startswith("\\") else ""
    expanded = f"{squares}{first_letter}^2{mixed:+d}{first_letter}{gap}{second_letter}{others:+d}{second_letter}^2"
    return expanded, f"({a}{first_letter}{b:+d}{second_letter})({c}{first_letter}{d:+d}{second_letter})"


@register_kind
def make_partial_fractions(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a sum of two fractions in x for a gold over their common denominator."""
    a, b = draw(small.filter(bool)), draw(small.filter(bool))
    p, q = draw(small), draw(small)
    assume(p != q)
    top = (a + b, -(a * q + b * p))
    if not is_equal:
        top = pick_one(draw, [(top[0] + 1, top[1]), (top[0], top[1] - 1), (top[0], -top[1]), (-top[0], top[1])])
        assume(top != (a + b, -(a * q + b * p)))
    answer = rf"\frac{{{a}}}{{x{-p:+d}}}+\frac{{{b}}}{{x{-q:+d}}}"
    return answer, rf"\frac{{{top[0]}x{top[1]:+d}}}{{(x{-p:+d})(x{-q:+d})}}"


@register_kind
def make_identity(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes the sides of a textbook identity with a parameter each: unequal where the parameters differ."""
    k, a = draw(st.integers(1, 7)), draw(st.integers(2, 9))
    sides = [
        (lambda k, a: rf"\sin {2 * k}x", lambda k, a: rf"2\sin {k}x\cos {k}x"),
        (lambda k, a: rf"\cos({2 * k}x)", lambda k, a: rf"1-2\sin^2({k}x)"),
        (lambda k, a: rf"{a}\tan {k}x", lambda k, a: rf"\frac{{{a}\sin {k}x}}{{\cos {k}x}}"),
        (lambda k, a: rf"{a}\sec^2 x", lambda k, a: rf"{a}+{a}\tan^2 x"),
        (lambda k, a: f"e^{{{k + a}x}}", lambda k, a: f"e^{{{k}x}}e^{{{a}x}}"),
        (lambda k, a: rf"\ln {a**k}", lambda k, a: rf"{k}\ln {a}"),
        (lambda k, a: rf"\ln {a * k + a}", lambda k, a: rf"\ln {a}+\ln {k + 1}"),
        (lambda k, a: f"{a}^{{{k}+n}}", lambda k, a: rf"{a**k}\cdot {a}^n"),
        (lambda k, a: rf"\sqrt{{{a * a * k}x}}", lambda k, a: rf"{a}\sqrt{{{k}}}\sqrt{{x}}"),
        (lambda k, a: rf"x^{{\frac{{{k}}}{{{a}}}}}", lambda k, a: rf"\sqrt[{a}]{{x^{{{k}}}}}"),
        (lambda k, a: rf"\sin({a}x+{k}y)", lambda k, a: rf"\sin({a}x)\cos({k}y)+\cos({a}x)\sin({k}y)"),
        (lambda k, a: rf"{a}^{{-{k}x}}", lambda k, a: rf"\left(\frac{{1}}{{{a**k}}}\right)^x"),
    ]
    index = draw(st.integers(0, len(sides) - 1))
    assume(index != 9 or math.gcd(k, a) == 1)  # the fourth root of x^4 is |x|
    spell_left, spell_right = sides[index]
    if is_equal:
        answer = pick_one(draw, [(spell_left, spell_right), (spell_right, spell_left)])
        return answer[0](k, a), answer[1](k, a)
    if index == 3 or (index > 1 and draw(st.booleans())):  # the first two know no a, the fourth no k
        return spell_left(k, a + 1), spell_right(k, a)
    return spell_left(k + 1, a), spell_right(k, a)


@register_kind
def make_product_of_letters(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a product of letters in another order, or letters joined otherwise."""
    letters = draw(st.permutations(list("abcmnpqxyz")))[: draw(st.integers(2, 3))]
    gold = "".join(letters)
    if is_equal:
        turned = draw(st.permutations(letters))
        ways = [
            r" \cdot ".join(turned),
            r"\times ".join(turned),
            "*".join(turned),
            f"({turned[0]})({''.join(turned[1:])})",
        ]
        return pick_one(draw, [*ways, gold, f"2{gold}-{gold}"]), gold
    ways = [
        "-".join(letters),
        "+".join(letters),
        f"-{gold}",
        "/".join(letters),
        "^".join(letters),
        f"{gold}^2",
        f"2{gold}",
    ]
    ways += [
        f"{gold[:-1]}-{gold[-1]}",
        f"{gold}d",
        f"d{gold[1:]}",
        gold[:-1],
        f"{gold}+1",
        f"{gold}!",
        ",".join(letters),
    ]
    ways += [" - ".join(letters), f"- {gold}", f"{gold[:-1]}_{gold[-1]}"]
    return pick_one(draw, ways), gold


@register_kind
def make_line(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes the equation of a line in two of its forms."""
    a, b, c = draw(small.filter(bool)), draw(small.filter(bool)), draw(small)
    answer_line = (a, b, c)
    if not is_equal:
        answer_line = pick_one(draw, [(a + 1, b, c), (a, -b, c), (b, a, c), (a, b, c + 1), (a, b, -c), (-a, b, -c)])
        assume(
            answer_line[0] * b != a * answer_line[1]
            or answer_line[0] * c != a * answer_line[2]
            or answer_line[1] * c != b * answer_line[2]
        )
        assume(answer_line[0] or answer_line[1])
    return spell_line(draw, *answer_line), spell_line(draw, a, b, c)


def spell_line(draw: Any, a: int, b: int, c: int) -> str:
    """Writes the equation `a x + b y = c` in one of its forms."""
    k = pick_one(draw, [1, 1, -1, 2, -3])
    left = spell_polynomial([Fraction(0), Fraction(k * a)], "x", False) if a else ""
    up = spell_polynomial([Fraction(0), Fraction(k * b)], "y", False) if b else ""
    sum_ = f"{left}{'+' if left and up and not up.startswith('-') else ''}{up}"
    ways = [f"{sum_}={k * c}", f"{sum_}{-k * c:+d}=0", f"{k * c}={sum_}", f"0={sum_}{-k * c:+d}"]
    if b:
        ways += [f"y={spell_polynomial([Fraction(c, b), Fraction(-a, b)], 'x', False)}"] * 2
    return vary_spacing(draw, pick_one(draw, ways))


@register_kind
def make_circle(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes the expanded equation of a circle for a gold with centre and radius."""
    h, k, r = draw(small), draw(small), draw(st.integers(1, 9))
    answer = (h, k, r)
    if not is_equal:
        answer = pick_one(draw, [(-h, k, r), (k, h, r), (h, k, r + 1), (h, k + 1, r)])
        assume(answer != (h, k, r))
    p, q, s = answer
    expanded = f"x^2+y^2{-2 * p:+d}x{-2 * q:+d}y{p * p + q * q - s * s:+d}=0"
    return expanded, f"(x{-h:+d})^2+(y{-k:+d})^2={r * r}"


@register_kind
def make_named_values(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes two named values in any order."""
    names = draw(st.permutations(list("abcmnpxy")))[:2]
    values = draw(st.lists(rationals, min_size=2, max_size=2, unique=True))
    answer = list(zip(names, values, strict=True))
    gold = ", ".join(f"{name}={spell_fraction(draw, value)}" for name, value in answer)
    if is_equal:
        answer = list(draw(st.permutations(answer)))
    else:
        answer = [(names[0], values[1]), (names[1], pick_one(draw, [values[0], values[1] + 1]))]
    return ",".join(f"{name} = {spell_fraction(draw, value)}" for name, value in answer), gold


@register_kind
def make_trailing_letter(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes an expression that ends with a letter that might be a unit."""
    gold_letter, other_letter = draw(st.permutations(list("othclsgmdknx")))[:2]
    body = pick_one(draw, ["2", "17", r"\frac{a}{2}", "y^2 ", "ab", r"3\sqrt{2}"])
    answer = gold_letter if is_equal else other_letter
    assume(answer not in "ab")
    return f"{body}{answer}", f"{body} {gold_letter}"


@register_kind
def make_function(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a linear function with or without its name."""
    a, b = draw(small.filter(bool)), draw(small)
    value = [Fraction(b), Fraction(a)]
    answer = (
        value if is_equal else pick_one(draw, [[value[0] + 1, value[1]], [value[1], value[0]], [value[0], -value[1]]])
    )
    assume(is_equal or answer != value)
    text = spell_polynomial(answer, "x", draw(st.booleans()))
    return pick_one(draw, [f"f(x)={text}", text, f"y={text}", rf"f(x) = {text}"]), spell_polynomial(value, "x", False)
