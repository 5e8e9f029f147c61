"""Generated pairs of polynomials, functions and equations, and of golds equal to them or not."""

import math
from fractions import Fraction
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import one_of_fraction, pick, rationals, small
from tests.reward.math.pair_registry import kind


def polynomial(coefficients: list[Fraction], letter: str, is_rising: bool) -> str:
    """The sum of terms, coefficient of the lowest power first in the list."""
    terms = [(c, p) for p, c in enumerate(coefficients) if c]
    text = ""
    for c, p in terms if is_rising else reversed(terms):
        size = abs(c)
        number = str(size) if size.denominator == 1 else rf"\frac{{{size.numerator}}}{{{size.denominator}}}"
        factor = "" if size == 1 and p else number
        body = "" if p == 0 else letter if p == 1 else f"{letter}^{p}" if p < 10 else f"{letter}^{{{p}}}"
        text += ("-" if c < 0 else "+" if text else "") + factor + body
    return text or "0"


def times(one: list[Fraction], other: list[Fraction]) -> list[Fraction]:
    product = [Fraction(0)] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            product[i + j] += a * b
    return product


@kind
def polynomials(draw: Any, is_equal: bool) -> tuple[str, str]:
    letter = pick(draw, list("xyntakm"))
    roots, lead = draw(st.lists(small, min_size=1, max_size=4)), draw(small.filter(bool))
    value = [Fraction(lead)]
    for root in roots:
        value = times(value, [Fraction(-root), Fraction(1)])
    said = value.copy()
    if not is_equal:
        place = draw(st.integers(0, len(said) - 1))
        said[place] = pick(draw, [said[place] + 1, said[place] - 1, -said[place], said[place] + Fraction(1, 1000)])
        assume(said != value)
    factored = "".join(f"({letter}{-root:+d})" if root else letter for root in sorted(roots))
    front = {1: "", -1: "-"}.get(lead, str(lead))
    written = pick(draw, [f"{front}{factored}", polynomial(value, letter, False), polynomial(value, letter, True)])
    return dressed_by_spaces(draw, polynomial(said, letter, draw(st.booleans()))), written


def dressed_by_spaces(draw: Any, text: str) -> str:
    return pick(
        draw,
        [text, text.replace("+", " + ").replace("-", " - "), text.replace("(", r"\left(").replace(")", r"\right)")],
    )


@kind
def two_letters(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, c, d = (draw(small.filter(bool)) for _ in range(4))
    one, other = pick(draw, [("x", "y"), ("a", "b"), ("m", "n"), (r"\alpha", r"\beta")])
    squares, mixed, others = a * c, a * d + b * c, b * d
    if not is_equal:
        changed = pick(
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
    gap = " " if one.startswith("\\") else ""
    expanded = f"{squares}{one}^2{mixed:+d}{one}{gap}{other}{others:+d}{other}^2"
    return expanded, f"({a}{one}{b:+d}{other})({c}{one}{d:+d}{other})"


@kind
def partial_fractions(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b = draw(small.filter(bool)), draw(small.filter(bool))
    p, q = draw(small), draw(small)
    assume(p != q)
    top = (a + b, -(a * q + b * p))
    if not is_equal:
        top = pick(draw, [(top[0] + 1, top[1]), (top[0], top[1] - 1), (top[0], -top[1]), (-top[0], top[1])])
        assume(top != (a + b, -(a * q + b * p)))
    said = rf"\frac{{{a}}}{{x{-p:+d}}}+\frac{{{b}}}{{x{-q:+d}}}"
    return said, rf"\frac{{{top[0]}x{top[1]:+d}}}{{(x{-p:+d})(x{-q:+d})}}"


@kind
def identity(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Sides of textbook identities with a parameter each: unequal where the parameters differ."""
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
    place = draw(st.integers(0, len(sides) - 1))
    assume(place != 9 or math.gcd(k, a) == 1)  # the fourth root of x^4 is |x|
    one, other = sides[place]
    if is_equal:
        said = pick(draw, [(one, other), (other, one)])
        return said[0](k, a), said[1](k, a)
    if place == 3 or (place > 1 and draw(st.booleans())):  # the first two know no a, the fourth no k
        return one(k, a + 1), other(k, a)
    return one(k + 1, a), other(k, a)


@kind
def product_of_letters(draw: Any, is_equal: bool) -> tuple[str, str]:
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
        return pick(draw, [*ways, gold, f"2{gold}-{gold}"]), gold
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
    return pick(draw, ways), gold


@kind
def line(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, c = draw(small.filter(bool)), draw(small.filter(bool)), draw(small)
    other = (a, b, c)
    if not is_equal:
        other = pick(draw, [(a + 1, b, c), (a, -b, c), (b, a, c), (a, b, c + 1), (a, b, -c), (-a, b, -c)])
        assume(other[0] * b != a * other[1] or other[0] * c != a * other[2] or other[1] * c != b * other[2])
        assume(other[0] or other[1])
    return one_of_line(draw, *other), one_of_line(draw, a, b, c)


def one_of_line(draw: Any, a: int, b: int, c: int) -> str:
    """`a x + b y = c`."""
    k = pick(draw, [1, 1, -1, 2, -3])
    left = polynomial([Fraction(0), Fraction(k * a)], "x", False) if a else ""
    up = polynomial([Fraction(0), Fraction(k * b)], "y", False) if b else ""
    sum_ = f"{left}{'+' if left and up and not up.startswith('-') else ''}{up}"
    ways = [f"{sum_}={k * c}", f"{sum_}{-k * c:+d}=0", f"{k * c}={sum_}", f"0={sum_}{-k * c:+d}"]
    if b:
        ways += [f"y={polynomial([Fraction(c, b), Fraction(-a, b)], 'x', False)}"] * 2
    return dressed_by_spaces(draw, pick(draw, ways))


@kind
def circle(draw: Any, is_equal: bool) -> tuple[str, str]:
    h, k, r = draw(small), draw(small), draw(st.integers(1, 9))
    said = (h, k, r)
    if not is_equal:
        said = pick(draw, [(-h, k, r), (k, h, r), (h, k, r + 1), (h, k + 1, r)])
        assume(said != (h, k, r))
    p, q, s = said
    expanded = f"x^2+y^2{-2 * p:+d}x{-2 * q:+d}y{p * p + q * q - s * s:+d}=0"
    return expanded, f"(x{-h:+d})^2+(y{-k:+d})^2={r * r}"


@kind
def named_values(draw: Any, is_equal: bool) -> tuple[str, str]:
    names = draw(st.permutations(list("abcmnpxy")))[:2]
    values = draw(st.lists(rationals, min_size=2, max_size=2, unique=True))
    said = list(zip(names, values, strict=True))
    gold = ", ".join(f"{name}={one_of_fraction(draw, value)}" for name, value in said)
    if is_equal:
        said = list(draw(st.permutations(said)))
    else:
        said = [(names[0], values[1]), (names[1], pick(draw, [values[0], values[1] + 1]))]
    return ",".join(f"{name} = {one_of_fraction(draw, value)}" for name, value in said), gold


@kind
def trailing_letter(draw: Any, is_equal: bool) -> tuple[str, str]:
    one, other = draw(st.permutations(list("othclsgmdknx")))[:2]
    body = pick(draw, ["2", "17", r"\frac{a}{2}", "y^2 ", "ab", r"3\sqrt{2}"])
    said = one if is_equal else other
    assume(said not in "ab")
    return f"{body}{said}", f"{body} {one}"


@kind
def function(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b = draw(small.filter(bool)), draw(small)
    value = [Fraction(b), Fraction(a)]
    said = value if is_equal else pick(draw, [[value[0] + 1, value[1]], [value[1], value[0]], [value[0], -value[1]]])
    assume(is_equal or said != value)
    text = polynomial(said, "x", draw(st.booleans()))
    return pick(draw, [f"f(x)={text}", text, f"y={text}", rf"f(x) = {text}"]), polynomial(value, "x", False)
