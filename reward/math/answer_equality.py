"""Whether an answer's value is the gold's; the gold's type decides what counts as the same."""

from qwen_align.reward.math.answer_parser import value_of
from qwen_align.reward.math.answer_values import (
    Chain,
    Choice,
    Doubts,
    Group,
    Matrix,
    Ratio,
    Row,
    Scalar,
    Union,
    Value,
    Words,
    items_in,
)
from qwen_align.reward.math.equation_equality import same_zero_set
from qwen_align.reward.math.named_value_equality import by_coordinate, named_values, same_named
from qwen_align.reward.math.number_line_regions import INEQUALITIES, Interval, Region, merged, region
from qwen_align.reward.math.scalar_equality import same_scalars, same_words
from qwen_align.reward.math.units import agree as units_agree
from qwen_align.reward.math.unordered_equality import same_items

_HOURS = 24
_DOWNWARD = {">": "<", r"\ge": r"\le"}


def agree(gold: Value, said: Value, doubts: Doubts | None) -> bool:
    """Whether `said` says `gold`, on condition that all `doubts` it adds turn out equal; None allows no doubts."""
    if type(gold) is type(said) and gold == said:
        return True
    if _has_chain(gold) or _has_chain(said):
        return _related(gold, said, doubts)
    if isinstance(said, Choice) and said.rest and not isinstance(gold, Choice):
        rest = value_of(said.rest)
        return rest is not None and agree(gold, rest, doubts)
    if isinstance(gold, Choice) and gold.rest and isinstance(said, Scalar | Row):
        wanted = value_of(gold.rest)
        return isinstance(wanted, Scalar | Row) and agree(wanted, said, doubts)
    if isinstance(gold, Union) or isinstance(said, Union):
        return _same_region(gold, said, doubts)
    if isinstance(gold, Group) or isinstance(said, Group):
        return same_items(items_in(gold), items_in(said), doubts, agree)
    return _same_kind(gold, said, doubts)


def _same_kind(gold: Value, said: Value, doubts: Doubts | None) -> bool:
    if isinstance(gold, Words) or isinstance(said, Words):
        return same_words(gold, said)
    if isinstance(gold, Scalar) and isinstance(said, Scalar):
        return same_scalars(gold, said, doubts)
    if isinstance(gold, Choice) and isinstance(said, Choice):
        return gold.letter == said.letter and _is_one_choice(gold, said)
    if isinstance(gold, Row) and isinstance(said, Row):
        return _rows(gold, said, doubts)
    if isinstance(gold, Matrix) and isinstance(said, Matrix):
        return gold.kind == said.kind and _in_order(
            [Row("(", row, ")") for row in gold.rows], [Row("(", row, ")") for row in said.rows], doubts
        )
    if isinstance(gold, Scalar) and isinstance(said, Matrix):
        value = _determinant(said)
        return value is not None and same_scalars(gold, value, None)
    if isinstance(gold, Ratio) and isinstance(said, Ratio):
        return _ratios(gold, said)
    return False


def _determinant(matrix: Matrix) -> Scalar | None:
    """What a determinant of two or three rows is worth, as an expression."""
    cells = [[f"({cell.text})" if isinstance(cell, Scalar) else "" for cell in row] for row in matrix.rows]
    size = len(cells)
    if matrix.kind != "determinant" or size not in (2, 3) or any(len(row) != size or not all(row) for row in cells):
        return None
    if size == 2:
        return Scalar(_cross(*cells[0], *cells[1]))
    (a, b, c), (d, e, f), (g, h, i) = cells
    return Scalar(rf"{a}({_cross(e, f, h, i)})-{b}({_cross(d, f, g, i)})+{c}({_cross(d, e, g, h)})")


def _cross(a: str, b: str, c: str, d: str) -> str:
    return rf"{a}\cdot{d}-{b}\cdot{c}"


def _is_one_choice(gold: Choice, said: Choice) -> bool:
    """Whether what stands beside the letter names no other option and is not another text than the gold's."""
    if not said.rest or said.rest == gold.rest:
        return True
    rest = value_of(said.rest)
    if isinstance(rest, Choice | Group | Chain) and not gold.rest:
        return isinstance(rest, Chain)
    wanted = value_of(gold.rest) if gold.rest else None
    return wanted is None or (rest is not None and agree(wanted, rest, None))


def _rows(gold: Row, said: Row, doubts: Doubts | None) -> bool:
    is_interval = len(gold.items) == 2
    if is_interval and (gold.opening, gold.closing) != (said.opening, said.closing):
        return False
    return _in_order(list(gold.items), list(said.items), doubts)


def _in_order(golds: list[Value] | list[Row], saids: list[Value] | list[Row], doubts: Doubts | None) -> bool:
    return len(golds) == len(saids) and all(agree(one, other, doubts) for one, other in zip(golds, saids, strict=True))


def _ratios(gold: Ratio, said: Ratio) -> bool:
    if len(gold.parts) != len(said.parts):
        return False
    if gold.unit is not None and said.unit is not None and units_agree(gold.unit, said.unit) != 1:
        return False
    has_zero = any(part.number == 0 for part in (*gold.parts, *said.parts))  # every multiple of 12:0 would be the same
    if has_zero or (_is_time(gold) and _is_time(said)):
        return [part.number for part in gold.parts] == [part.number for part in said.parts]
    first, other_first = gold.parts[0], said.parts[0]
    return all(
        same_scalars(_product(part, other_first), _product(other, first), None)
        for part, other in zip(gold.parts[1:], said.parts[1:], strict=True)
    )


def _product(one: Scalar, other: Scalar) -> Scalar:
    number = None if one.number is None or other.number is None else one.number * other.number
    return Scalar(rf"({one.text})\cdot({other.text})", number)


def _is_time(ratio: Ratio) -> bool:
    """Whether the parts are written as a time of the day: `12:00`, `7:32`."""
    numbers = [part.number for part in ratio.parts]
    if any(number is None or number.denominator != 1 for number in numbers):
        return False
    is_hour = numbers[0] is not None and 0 <= numbers[0] <= _HOURS
    return is_hour and all(len(part.text) == 2 and part.text < "60" for part in ratio.parts[1:])


def _has_chain(value: Value) -> bool:
    return isinstance(value, Chain) or (isinstance(value, Group) and any(isinstance(one, Chain) for one in value.items))


def _related(gold: Value, said: Value, doubts: Doubts | None) -> bool:
    golds, saids = named_values(gold, agree, of_a_gold=True), named_values(said, agree, of_a_gold=False)
    if golds and saids and len(golds) != len(saids):
        golds, saids = by_coordinate(golds), by_coordinate(saids)
    if golds and saids and same_named(golds, saids, doubts, agree):
        return True
    if _is_inequality(gold) or _is_inequality(said):
        wanted, found = region(gold, of_a_gold=True), region(said, of_a_gold=False)
        if wanted is not None and found is not None:
            return _regions(wanted, found, doubts)
    if isinstance(gold, Chain) and isinstance(said, Chain):
        return _chains(gold, said)
    if isinstance(gold, Group) and isinstance(said, Group) and (golds is None or saids is None):
        return same_items(gold.items, said.items, None, agree)
    if isinstance(said, Chain):
        return not isinstance(gold, Chain) and _is_worked_out(gold, said)
    return isinstance(gold, Chain) and _is_a_stated_number(gold, said)


def _is_a_stated_number(gold: Chain, said: Value) -> bool:
    """Whether `said` is a number of a gold that states one in several ways: `0.56 = 56\\%`, `\\approx 8.24`."""
    if not set(gold.relations) <= {"=", r"\approx"}:
        return False
    sides = [value_of(side) for side in gold.sides if side]
    numbers = [side for side in sides if isinstance(side, Scalar) and side.number is not None]
    return len(numbers) == len(sides) and any(agree(number, said, None) for number in numbers)


def _is_inequality(value: Value) -> bool:
    return any(
        isinstance(one, Chain) and set(one.relations) & (INEQUALITIES | {r"\in"}) for one in items_in(value)
    ) or isinstance(value, Union)


def _chains(gold: Chain, said: Chain) -> bool:
    gold, said = _upward(gold), _upward(said)
    if gold.relations == said.relations and _sides_agree(gold.sides, said.sides):
        return True
    relation = gold.relations[0]
    if len(gold.sides) != 2 or len(said.sides) != 2 or relation != said.relations[0]:
        return False
    (left, right), (other_left, other_right) = gold.sides, said.sides
    if relation in ("=", r"\ne"):
        return same_zero_set((left, right), (other_left, other_right))
    if relation in ("<", r"\le"):
        return same_zero_set((left, right), (other_left, other_right), positive=True)
    return relation in (r"\parallel", r"\perp", r"\sim", r"\cong") and _sides_agree(gold.sides, said.sides[::-1])


def _sides_agree(golds: tuple[str, ...], saids: tuple[str, ...]) -> bool:
    return len(golds) == len(saids) and all(
        one == other or _texts_agree(one, other) for one, other in zip(golds, saids, strict=True)
    )


def _texts_agree(one: str, other: str) -> bool:
    gold, said = value_of(one), value_of(other)
    return gold is not None and said is not None and agree(gold, said, None)


def _upward(chain: Chain) -> Chain:
    """The chain from less to more, `5 \\ge x` as `x \\le 5`."""
    if not set(chain.relations) <= set(_DOWNWARD):
        return chain
    return Chain(chain.sides[::-1], tuple(_DOWNWARD[relation] for relation in reversed(chain.relations)))


def _is_worked_out(gold: Value, said: Chain) -> bool:
    """Whether every side of a chain of equations is the gold: `2+3=5`, but not `5 = x+1`."""
    return set(said.relations) == {"="} and all(
        (value := value_of(side)) is not None and agree(gold, value, None) for side in said.sides
    )


def _same_region(gold: Value, said: Value, doubts: Doubts | None) -> bool:
    wanted, found = region(gold, of_a_gold=True), region(said, of_a_gold=False)
    if wanted is not None and found is not None:
        return _regions(wanted, found, doubts)
    if isinstance(gold, Union) and isinstance(said, Union):
        return same_items(gold.parts, said.parts, None, agree) and same_items(gold.without, said.without, None, agree)
    return False


def _regions(gold: Region, said: Region, doubts: Doubts | None) -> bool:
    if gold.name and said.name and gold.name != said.name:
        return False
    return same_items(_as_rows(merged(gold.intervals)), _as_rows(merged(said.intervals)), doubts, agree)


def _as_rows(intervals: tuple[Interval, ...]) -> tuple[Value, ...]:
    return tuple(
        Row("[" if one.has_low else "(", (one.low, one.high), "]" if one.has_high else ")") for one in intervals
    )
