"""Generated pairs of points, sets, intervals and matrices, and of golds equal to them or not."""

from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import (
    ROOTS,
    Number,
    beside,
    fractions,
    nonzero,
    numbers,
    one_of_fraction,
    one_of_number,
    pick,
    rationals,
    small,
)
from tests.reward.math.pair_registry import kind


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
