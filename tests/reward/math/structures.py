"""Generated pairs of answers that are no single number: sets, intervals, matrices, equations, units, words, bases."""

from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.kinds import kind
from tests.reward.math.numbers import (
    FULL_WIDTH,
    ROOTS,
    Number,
    beside,
    dressed,
    fractions,
    nonzero,
    numbers,
    one_of_fraction,
    one_of_number,
    pick,
    rationals,
    small,
)
from tests.reward.math.strategies import dressed_by_spaces, polynomial


def some_numbers(draw: Any, least: int, most: int) -> list[Number]:
    return list(draw(st.lists(numbers(), min_size=least, max_size=most, unique=True)))


def changed(draw: Any, values: list[Number]) -> list[Number]:
    """Another sequence beside the given one: one value off, one dropped, one more, two exchanged."""
    place = draw(st.integers(0, len(values) - 1))
    off = [*values[:place], beside(draw, values[place]), *values[place + 1 :]]
    ways = [off, off, values[:place] + values[place + 1 :], [*values, draw(numbers())]]
    return pick(draw, [way for way in ways if way])


@kind
def ordered(draw: Any, is_equal: bool) -> tuple[str, str]:
    values = some_numbers(draw, 2, 4)
    said = values if is_equal else pick(draw, [changed(draw, values), values[::-1]])
    assume(is_equal or said != values)
    brackets = [("(", ")"), (r"\left(", r"\right)"), ("( ", " )"), (r"\langle ", r"\rangle")]
    left, right = pick(draw, brackets)
    inside = pick(draw, [",", ", ", r",\,", r", \ "]).join(one_of_number(draw, value) for value in said)
    return left + inside + right, f"({','.join(one_of_number(draw, value) for value in values)})"


@kind
def unordered(draw: Any, is_equal: bool) -> tuple[str, str]:
    values = some_numbers(draw, 2, 5)
    said = list(draw(st.permutations(values))) if is_equal else changed(draw, values)
    assume(is_equal or set(said) != set(values))
    return one_of_set(draw, said), one_of_set(draw, values)


def one_of_set(draw: Any, values: list[Number]) -> str:
    texts = [one_of_number(draw, value) for value in values]
    last = pick(draw, [", ", ",", r" \text{ and } ", r"\text{ or }"])
    plain = ", ".join(texts[:-1]) + (last if len(texts) > 1 else "") + texts[-1]
    braced = pick(draw, [", ", ","]).join(texts)
    return pick(
        draw, [plain, rf"\{{{braced}\}}", rf"\left\{{{braced}\right\}}", f"x={plain}" if len(texts) > 1 else plain]
    )


@kind
def set_of_points(draw: Any, is_equal: bool) -> tuple[str, str]:
    values = draw(st.lists(st.tuples(small, small), min_size=2, max_size=5, unique=True))
    said = list(draw(st.permutations(values)))
    if not is_equal:
        a, b = said[0]
        said[0] = pick(draw, [(b, a), (a + 1, b), (a, -b)])
        assume(set(said) != set(values))
    braces = draw(st.booleans())
    texts = [", ".join(f"({a},{b})" for a, b in said), ",".join(f"({a}, {b})" for a, b in values)]
    return (rf"\{{{texts[0]}\}}" if braces else texts[0]), texts[1]


@kind
def plus_minus(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, root = draw(rationals), draw(nonzero.map(abs)), pick(draw, ROOTS)
    both = [Number(a, b, root), Number(a, -b, root)]
    times = str(b) if b.denominator == 1 else rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    said = rf"{one_of_fraction(draw, a)} \pm {times}\sqrt{{{root}}}"
    if is_equal:
        return said, one_of_set(draw, list(draw(st.permutations(both))))
    wrong = pick(draw, [both[:1], both[1:], [both[0], beside(draw, both[1])], [both[0], both[0], Number(a)]])
    assume(set(wrong) != set(both))
    texts = [said, ", ".join(one_of_number(draw, value) for value in wrong)]
    return (texts[0], texts[1]) if draw(st.booleans()) else (texts[1], texts[0])


class Part(NamedTuple):
    """An interval; an end that is None is infinite."""

    low: Fraction | None
    is_low_in: bool
    high: Fraction | None
    is_high_in: bool


def some_parts(draw: Any) -> list[Part]:
    """One to three intervals that do not touch, rising."""
    n_parts = draw(st.integers(1, 3))
    steps = draw(st.lists(fractions.map(abs).filter(bool), min_size=2 * n_parts, max_size=2 * n_parts))
    at, ends = draw(rationals), []
    for step in steps:
        at += step
        ends.append(at)
    parts = [
        Part(low, draw(st.booleans()), high, draw(st.booleans()))
        for low, high in zip(ends[::2], ends[1::2], strict=True)
    ]
    if draw(st.booleans()):
        parts[0] = parts[0]._replace(low=None, is_low_in=False)
    if draw(st.booleans()):
        parts[-1] = parts[-1]._replace(high=None, is_high_in=False)
    assume(parts != [Part(None, False, None, False)])
    return parts


def as_interval(draw: Any, part: Part) -> str:
    low = r"-\infty" if part.low is None else one_of_fraction(draw, part.low)
    high = pick(draw, [r"\infty", r"+\infty"]) if part.high is None else one_of_fraction(draw, part.high)
    left, right = "[" if part.is_low_in else "(", "]" if part.is_high_in else ")"
    return pick(draw, [f"{left}{low}, {high}{right}", rf"\left{left}{low},{high}\right{right}"])


def as_inequality(draw: Any, part: Part) -> str:
    below, under = (r"\le", "<") if draw(st.booleans()) else (r"\leq", " < ")
    if part.low is None or part.high is None:
        end = one_of_fraction(draw, part.high if part.high is not None else part.low)
        is_in = part.is_high_in or part.is_low_in
        signs = (r"\le", "<", r"\ge", ">") if part.low is None else (r"\ge", ">", r"\le", "<")
        if draw(st.booleans()):
            return f"x {signs[0] if is_in else signs[1]} {end}"
        return f"{end} {signs[2] if is_in else signs[3]} x"
    low, high = one_of_fraction(draw, part.low), one_of_fraction(draw, part.high)
    return f"{low} {below if part.is_low_in else under} x {below if part.is_high_in else under} {high}"


def as_any(draw: Any, parts: list[Part]) -> str:
    if len(parts) == 1 and draw(st.integers(0, 2)) == 0:
        return as_inequality(draw, parts[0])
    text = pick(draw, [r" \cup ", r"\cup", " ∪ "]).join(
        as_interval(draw, part) for part in draw(st.permutations(parts))
    )
    return pick(draw, [text, text, rf"x \in {text}"])


@kind
def interval(draw: Any, is_equal: bool) -> tuple[str, str]:
    parts = some_parts(draw)
    said = parts.copy()
    if not is_equal:
        place = draw(st.integers(0, len(parts) - 1))
        low, is_low_in, high, is_high_in = parts[place]
        ways: list[Part | None] = [None] if len(parts) > 1 else []
        if low is not None:
            ways += [
                Part(low, not is_low_in, high, is_high_in),
                Part(low - 1, is_low_in, high, is_high_in),
                Part(None, False, high, is_high_in),
            ]
        if high is not None:
            ways += [Part(low, is_low_in, high, not is_high_in), Part(low, is_low_in, None, False)]
        other = pick(draw, ways)
        said[place : place + 1] = [] if other is None else [other]
        assume(all(None not in (one.high, after.low) and one.high < after.low for one, after in pairwise(said)))
        assume(said != parts and said != [Part(None, False, None, False)])
    return as_any(draw, said), as_any(draw, parts)


@kind
def matrix(draw: Any, is_equal: bool) -> tuple[str, str]:
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    assume(height * width > 1)
    rows = [[Number(draw(rationals)) for _ in range(width)] for _ in range(height)]
    said = [list(row) for row in rows]
    if not is_equal:
        i, j = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        off = [list(row) for row in rows]
        off[i][j] = beside(draw, off[i][j])
        said = pick(
            draw, [off, off, [list(column) for column in zip(*rows, strict=True)], rows[::-1], rows[:-1] or off]
        )
        assume(said != rows)
    return one_of_matrix(draw, said), one_of_matrix(draw, rows)


def one_of_matrix(draw: Any, rows: list[list[Number]]) -> str:
    column = pick(draw, ["&", " & "])
    inside = pick(draw, [r"\\", r" \\ ", "\\\\\n"]).join(
        column.join(one_of_number(draw, v) for v in row) for row in rows
    )
    name = pick(draw, ["pmatrix", "bmatrix"])
    array = rf"\left(\begin{{array}}{{{'c' * len(rows[0])}}}{inside}\end{{array}}\right)"
    return pick(
        draw, [rf"\begin{{{name}}}{inside}\end{{{name}}}", rf"\begin{{{name}}} {inside} \\ \end{{{name}}}", array]
    )


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
def percent(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Fraction(draw(st.integers(1, 2000)), pick(draw, [1, 1, 2, 4, 10]))
    said = value
    if not is_equal:
        said = pick(draw, [value * 10, value + 1, value * 100, -value, value / 10])
    text = str(said) if said.denominator == 1 else str(float(said))
    whole = str(value) if value.denominator == 1 else str(float(value))
    signs = [rf"{text}\%", f"{text}%", rf"{text} \%", f"{text} percent", rf"{text}\text{{ percent}}"]
    return pick(draw, [*signs, text]), pick(draw, [rf"{whole}\%", f"{whole}%"])


UNITS = {"length": ["km", "m", "cm", "mm"], "mass": ["kg", "g"], "time": ["hours", "minutes", "seconds"]}
NAMES = {"km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "g": "grams"}


@kind
def unit(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Number(draw(rationals.map(abs).filter(bool)))
    units = UNITS[pick(draw, list(UNITS))]
    name = pick(draw, units)
    said, other = value, name
    if not is_equal:
        if draw(st.booleans()):
            said = beside(draw, value)
        else:
            other = pick(draw, [u for u in units if u != name])
    long = NAMES.get(other, other)
    written = pick(draw, [rf"\text{{ {other}}}", rf"\,\mathrm{{{other}}}", rf"\text{{ {long}}}", f" {long}"])
    gold = one_of_fraction(draw, value.plain)
    gold += "" if other == name and draw(st.booleans()) else rf"\text{{ {name}}}"
    return one_of_fraction(draw, said.plain) + written, gold


@kind
def money(draw: Any, is_equal: bool) -> tuple[str, str]:
    cents = draw(st.integers(1, 10**8))
    said = cents if is_equal else pick(draw, [cents + 1, cents * 10, cents * 100, -cents, cents + 100])
    text = f"{said / 100:,.2f}"
    plain = f"{cents / 100:.2f}"
    return pick(draw, [rf"\${text}", f"${text}", rf"{text}\text{{ dollars}}", text]), pick(draw, [rf"\${plain}", plain])


@kind
def trailing_letter(draw: Any, is_equal: bool) -> tuple[str, str]:
    one, other = draw(st.permutations(list("othclsgmdknx")))[:2]
    body = pick(draw, ["2", "17", r"\frac{a}{2}", "y^2 ", "ab", r"3\sqrt{2}"])
    said = one if is_equal else other
    assume(said not in "ab")
    return f"{body}{said}", f"{body} {one}"


@kind
def to_base(draw: Any, is_equal: bool) -> tuple[str, str]:
    base = draw(st.integers(2, 9))
    digits = "".join(map(str, draw(st.lists(st.integers(0, base - 1), min_size=2, max_size=6)))).lstrip("0")
    assume(len(digits) > 1)
    if is_equal:
        ways = [f"{digits}_{base}", f"{digits}_{{{base}}}", rf"{digits}_{{ {base} }}", f"({digits})_{base}"]
        return pick(draw, ways), f"{digits}_{{{base}}}"
    turned = digits[1] + digits[0] + digits[2:]
    ways = [f"{digits}_{base + 1}", digits, f"{digits}0_{base}"] + [f"{turned}_{base}"] * (turned != digits)
    return pick(draw, ways), f"{digits}_{{{base}}}"


@kind
def ratio(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, k = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(2, 5))
    if is_equal:
        ways = [f"{a} : {b}", f"{a}:{b}", f"{a}：{b}", rf"\text{{{a}:{b}}}"]
        if b < 10 or k * a > 24:  # else both may be times of day
            ways.append(f"{k * a}:{k * b}")
        return pick(draw, ways), f"{a}:{b}"
    c, d = pick(draw, [(b, a), (a + 1, b), (a, b + 1), (a, 10 * b)])
    assume(a * d != b * c)
    return f"{c}:{d}", f"{a}:{b}"


@kind
def clock(draw: Any, is_equal: bool) -> tuple[str, str]:
    hour, minute = draw(st.integers(1, 12)), draw(st.integers(0, 59))
    text = f"{hour}:{minute:02d}"
    if is_equal:
        return pick(draw, [text, rf"\text{{{text}}}", text.replace(":", "："), f" {text} "]), text
    shifted = (hour % 12 + 1, minute), (hour, (minute + 1) % 60), (hour, (minute + 30) % 60)
    return pick(draw, [f"{h}:{m:02d}" for h, m in shifted]), text


WORDS = "listen orange Monday triangle parabola seven increasing Alice Brazil silver north ellipse square green".split()


@kind
def word(draw: Any, is_equal: bool) -> tuple[str, str]:
    gold = pick(draw, WORDS)
    if is_equal:
        ways = [
            gold,
            gold.lower(),
            gold.upper(),
            rf"\text{{{gold}}}",
            rf"\textbf{{{gold}}}",
            rf"\mathrm{{{gold}}}",
            f"{gold}.",
        ]
        return pick(draw, ways), pick(draw, [gold, rf"\text{{{gold}}}"])
    anagram = "".join(draw(st.permutations(gold.lower())))
    said = pick(draw, [anagram, anagram, pick(draw, WORDS), f"not {gold}", f"{gold} or {pick(draw, WORDS)}", gold[:-1]])
    assume(said.lower() != gold.lower() and said != f"{gold} or {gold}")
    return pick(draw, [said, rf"\text{{{said}}}"]), pick(draw, [gold, rf"\text{{{gold}}}"])


@kind
def choice(draw: Any, is_equal: bool) -> tuple[str, str]:
    gold, other = draw(st.permutations(list("ABCDE")))[:2]
    right = pick(draw, [gold, f"({gold})", rf"\text{{({gold})}}"])
    if is_equal:
        return pick(
            draw, [gold, f"({gold})", rf"\textbf{{({gold})}}", rf"\text{{{gold}}}", rf"\mathrm{{{gold}}}", f"{gold}."]
        ), right
    wrong = [
        other,
        f"({other})",
        f"{gold} or {other}",
        f"{gold},{other}",
        rf"\text{{not {gold}}}",
        f"{other}{gold}",
        f"{gold}{other}",
    ]
    return pick(draw, wrong), right


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


DIGITS = "零一二三四五六七八九"


def chinese(number: int) -> str:
    """The numeral of 1 to 9,999 as it is read."""
    text, has_gap = "", False
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // size % 10
        if not digit:
            has_gap = bool(text)
            continue
        text += ("零" if has_gap else "") + ("" if not text and size == 10 and digit == 1 else DIGITS[digit]) + name
        has_gap = False
    return text


@kind
def chinese_form(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(st.integers(1, 9999))
    said = (
        value
        if is_equal
        else pick(draw, [value + 1, value * 10 if value < 1000 else value - 1, max(1, value - 1) if value > 1 else 2])
    )
    full = str(said).translate(FULL_WIDTH)
    ways = [full, f"{said}个", f"{said}元", f"{full}。", f"{said}人", f"答案是{said}", f"ｘ＝{full}", f"{said}千米"]
    if said < 10000:
        ways += [chinese(said)] * 2
    return pick(draw, ways), str(value)


@kind
def function(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b = draw(small.filter(bool)), draw(small)
    value = [Fraction(b), Fraction(a)]
    said = value if is_equal else pick(draw, [[value[0] + 1, value[1]], [value[1], value[0]], [value[0], -value[1]]])
    assume(is_equal or said != value)
    text = polynomial(said, "x", draw(st.booleans()))
    return pick(draw, [f"f(x)={text}", text, f"y={text}", rf"f(x) = {text}"]), polynomial(value, "x", False)


@kind
def dressed_number(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(numbers())
    said = value if is_equal else beside(draw, value)
    return dressed(draw, one_of_number(draw, said)), one_of_number(draw, value)
