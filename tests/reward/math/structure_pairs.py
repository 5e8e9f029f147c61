"""Generates pairs of points, sets, intervals and matrices, and of golds equal to them or not."""

from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import (
    ROOTS,
    Number,
    fractions,
    make_near_miss,
    nonzero,
    numbers,
    pick_one,
    rationals,
    small,
    spell_fraction,
    spell_number,
)
from tests.reward.math.pair_registry import register_kind


def draw_numbers(draw: Any, least: int, most: int) -> list[Number]:
    """Draws a list of different numbers."""
    return list(draw(st.lists(numbers(), min_size=least, max_size=most, unique=True)))


def change_sequence(draw: Any, values: list[Number]) -> list[Number]:
    """Returns another sequence: one value off, one dropped, one more."""
    index = draw(st.integers(0, len(values) - 1))
    off = [*values[:index], make_near_miss(draw, values[index]), *values[index + 1 :]]
    ways = [off, off, values[:index] + values[index + 1 :], [*values, draw(numbers())]]
    return pick_one(draw, [way for way in ways if way])


@register_kind
def make_ordered(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a point or vector, whose order counts."""
    values = draw_numbers(draw, 2, 4)
    answer = values if is_equal else pick_one(draw, [change_sequence(draw, values), values[::-1]])
    assume(is_equal or answer != values)
    brackets = [("(", ")"), (r"\left(", r"\right)"), ("( ", " )"), (r"\langle ", r"\rangle")]
    left, right = pick_one(draw, brackets)
    inside = pick_one(draw, [",", ", ", r",\,", r", \ "]).join(spell_number(draw, value) for value in answer)
    return left + inside + right, f"({','.join(spell_number(draw, value) for value in values)})"


@register_kind
def make_unordered(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a list or set, whose order does not count."""
    values = draw_numbers(draw, 2, 5)
    answer = list(draw(st.permutations(values))) if is_equal else change_sequence(draw, values)
    assume(is_equal or set(answer) != set(values))
    return spell_set(draw, answer), spell_set(draw, values)


def spell_set(draw: Any, values: list[Number]) -> str:
    """Writes a list of numbers as a list or set."""
    texts = [spell_number(draw, value) for value in values]
    last = pick_one(draw, [", ", ",", r" \text{ and } ", r"\text{ or }"])
    plain = ", ".join(texts[:-1]) + (last if len(texts) > 1 else "") + texts[-1]
    braced = pick_one(draw, [", ", ","]).join(texts)
    return pick_one(
        draw, [plain, rf"\{{{braced}\}}", rf"\left\{{{braced}\right\}}", f"x={plain}" if len(texts) > 1 else plain]
    )


@register_kind
def make_set_of_points(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a set of points in any order."""
    values = draw(st.lists(st.tuples(small, small), min_size=2, max_size=5, unique=True))
    answer = list(draw(st.permutations(values)))
    if not is_equal:
        a, b = answer[0]
        answer[0] = pick_one(draw, [(b, a), (a + 1, b), (a, -b)])
        assume(set(answer) != set(values))
    braces = draw(st.booleans())
    texts = [", ".join(f"({a},{b})" for a, b in answer), ",".join(f"({a}, {b})" for a, b in values)]
    return (rf"\{{{texts[0]}\}}" if braces else texts[0]), texts[1]


@register_kind
def make_plus_minus(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes two values with a plus-minus sign for a gold that lists both."""
    a, b, root = draw(rationals), draw(nonzero.map(abs)), pick_one(draw, ROOTS)
    both = [Number(a, b, root), Number(a, -b, root)]
    times = str(b) if b.denominator == 1 else rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    answer = rf"{spell_fraction(draw, a)} \pm {times}\sqrt{{{root}}}"
    if is_equal:
        return answer, spell_set(draw, list(draw(st.permutations(both))))
    wrong = pick_one(
        draw, [both[:1], both[1:], [both[0], make_near_miss(draw, both[1])], [both[0], both[0], Number(a)]]
    )
    assume(set(wrong) != set(both))
    texts = [answer, ", ".join(spell_number(draw, value) for value in wrong)]
    return (texts[0], texts[1]) if draw(st.booleans()) else (texts[1], texts[0])


class IntervalPart(NamedTuple):
    """An interval; an end that is None is infinite."""

    low: Fraction | None
    is_low_in: bool
    high: Fraction | None
    is_high_in: bool


def draw_interval_parts(draw: Any) -> list[IntervalPart]:
    """Draws one to three intervals that do not touch, rising."""
    n_parts = draw(st.integers(1, 3))
    steps = draw(st.lists(fractions.map(abs).filter(bool), min_size=2 * n_parts, max_size=2 * n_parts))
    position, ends = draw(rationals), []
    for step in steps:
        position += step
        ends.append(position)
    parts = [
        IntervalPart(low, draw(st.booleans()), high, draw(st.booleans()))
        for low, high in zip(ends[::2], ends[1::2], strict=True)
    ]
    if draw(st.booleans()):
        parts[0] = parts[0]._replace(low=None, is_low_in=False)
    if draw(st.booleans()):
        parts[-1] = parts[-1]._replace(high=None, is_high_in=False)
    assume(parts != [IntervalPart(None, False, None, False)])
    return parts


def spell_interval(draw: Any, part: IntervalPart) -> str:
    """Writes an interval with brackets."""
    low = r"-\infty" if part.low is None else spell_fraction(draw, part.low)
    high = pick_one(draw, [r"\infty", r"+\infty"]) if part.high is None else spell_fraction(draw, part.high)
    left, right = "[" if part.is_low_in else "(", "]" if part.is_high_in else ")"
    return pick_one(draw, [f"{left}{low}, {high}{right}", rf"\left{left}{low},{high}\right{right}"])


def spell_inequality(draw: Any, part: IntervalPart) -> str:
    """Writes an interval as an inequality for x."""
    below, under = (r"\le", "<") if draw(st.booleans()) else (r"\leq", " < ")
    if part.low is None or part.high is None:
        end = spell_fraction(draw, part.high if part.high is not None else part.low)
        is_in = part.is_high_in or part.is_low_in
        signs = (r"\le", "<", r"\ge", ">") if part.low is None else (r"\ge", ">", r"\le", "<")
        if draw(st.booleans()):
            return f"x {signs[0] if is_in else signs[1]} {end}"
        return f"{end} {signs[2] if is_in else signs[3]} x"
    low, high = spell_fraction(draw, part.low), spell_fraction(draw, part.high)
    return f"{low} {below if part.is_low_in else under} x {below if part.is_high_in else under} {high}"


def spell_parts(draw: Any, parts: list[IntervalPart]) -> str:
    """Writes intervals as a union, or a single one as an inequality."""
    if len(parts) == 1 and draw(st.integers(0, 2)) == 0:
        return spell_inequality(draw, parts[0])
    text = pick_one(draw, [r" \cup ", r"\cup", " ∪ "]).join(
        spell_interval(draw, part) for part in draw(st.permutations(parts))
    )
    return pick_one(draw, [text, text, rf"x \in {text}"])


@register_kind
def make_interval(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a union of intervals or an inequality."""
    parts = draw_interval_parts(draw)
    answer = parts.copy()
    if not is_equal:
        index = draw(st.integers(0, len(parts) - 1))
        low, is_low_in, high, is_high_in = parts[index]
        ways: list[IntervalPart | None] = [None] if len(parts) > 1 else []
        if low is not None:
            ways += [
                IntervalPart(low, not is_low_in, high, is_high_in),
                IntervalPart(low - 1, is_low_in, high, is_high_in),
                IntervalPart(None, False, high, is_high_in),
            ]
        if high is not None:
            ways += [IntervalPart(low, is_low_in, high, not is_high_in), IntervalPart(low, is_low_in, None, False)]
        other_part = pick_one(draw, ways)
        answer[index : index + 1] = [] if other_part is None else [other_part]
        assume(
            all(
                None not in (part.high, next_part.low) and part.high < next_part.low
                for part, next_part in pairwise(answer)
            )
        )
        assume(answer != parts and answer != [IntervalPart(None, False, None, False)])
    return spell_parts(draw, answer), spell_parts(draw, parts)


@register_kind
def make_matrix(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a matrix of numbers."""
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    assume(height * width > 1)
    rows = [[Number(draw(rationals)) for _ in range(width)] for _ in range(height)]
    answer = [list(row) for row in rows]
    if not is_equal:
        i, j = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        off = [list(row) for row in rows]
        off[i][j] = make_near_miss(draw, off[i][j])
        answer = pick_one(
            draw, [off, off, [list(column) for column in zip(*rows, strict=True)], rows[::-1], rows[:-1] or off]
        )
        assume(answer != rows)
    return spell_matrix(draw, answer), spell_matrix(draw, rows)


def spell_matrix(draw: Any, rows: list[list[Number]]) -> str:
    """Writes a matrix in one of LaTeX's environments."""
    column = pick_one(draw, ["&", " & "])
    inside = pick_one(draw, [r"\\", r" \\ ", "\\\\\n"]).join(
        column.join(spell_number(draw, v) for v in row) for row in rows
    )
    name = pick_one(draw, ["pmatrix", "bmatrix"])
    array = rf"\left(\begin{{array}}{{{'c' * len(rows[0])}}}{inside}\end{{array}}\right)"
    return pick_one(
        draw, [rf"\begin{{{name}}}{inside}\end{{{name}}}", rf"\begin{{{name}}} {inside} \\ \end{{{name}}}", array]
    )
