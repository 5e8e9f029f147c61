"""Whether an answer's value is the gold's; the gold's type decides what counts as the same."""

from fractions import Fraction

from qwen_align.reward.math.equations import same_zero_set
from qwen_align.reward.math.names import base_of, name_of
from qwen_align.reward.math.read import value_of
from qwen_align.reward.math.regions import INEQUALITIES, Interval, Region, merged, region
from qwen_align.reward.math.scalars import same_scalars, same_words
from qwen_align.reward.math.units import agree as units_agree
from qwen_align.reward.math.values import Chain, Choice, Doubts, Group, Matrix, Ratio, Row, Scalar, Union, Value, Words

MAX_PAIRS = 900  # comparisons of items without order: thirty against thirty
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
    if isinstance(gold, Union) or isinstance(said, Union):
        return _same_region(gold, said, doubts)
    if isinstance(gold, Group) or isinstance(said, Group):
        return _groups(_items(gold), _items(said), doubts)
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


def _items(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Group) else (value,)


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


def _groups(golds: tuple[Value, ...], saids: tuple[Value, ...], doubts: Doubts | None) -> bool:
    """Whether each is one of the others, both ways; said twice is said once."""
    if not golds or not saids:
        return not golds and not saids
    ones, others = _numbers(golds), _numbers(saids)
    if ones is not None and others is not None and ones == others:
        return True
    golds, saids = tuple(dict.fromkeys(golds)), tuple(dict.fromkeys(saids))
    if len(golds) * len(saids) > MAX_PAIRS or len(saids) > 2 * len(golds) + 2:
        return set(golds) == set(saids)
    return _each_is_among(golds, saids, doubts, swapped=False) and _each_is_among(saids, golds, doubts, swapped=True)


def _numbers(items: tuple[Value, ...]) -> frozenset[Fraction] | None:
    numbers = [item.number for item in items if isinstance(item, Scalar) and item.unit is None]
    known = frozenset(number for number in numbers if number is not None)
    return known if len(numbers) == len(items) and None not in numbers else None


def _each_is_among(
    items: tuple[Value, ...], others: tuple[Value, ...], doubts: Doubts | None, *, swapped: bool
) -> bool:
    for item in items:
        alike = [other for other in others if isinstance(other, Group) == isinstance(item, Group)]
        pairs = [(other, item) if swapped else (item, other) for other in alike]
        if any(agree(gold, said, None) for gold, said in pairs):
            continue
        if doubts is None or not any(_with_doubts(gold, said, doubts) for gold, said in pairs):
            return False
    return True


def _with_doubts(gold: Value, said: Value, doubts: Doubts) -> bool:
    n_before = len(doubts)
    if agree(gold, said, doubts):
        return True
    del doubts[n_before:]
    return False


def _ratios(gold: Ratio, said: Ratio) -> bool:
    if len(gold.parts) != len(said.parts):
        return False
    if gold.unit is not None and said.unit is not None and units_agree(gold.unit, said.unit) != 1:
        return False
    if _is_time(gold):
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
    return all(len(part.text) == 2 and part.text < "60" for part in ratio.parts[1:])


def _has_chain(value: Value) -> bool:
    return isinstance(value, Chain) or (isinstance(value, Group) and any(isinstance(one, Chain) for one in value.items))


def _related(gold: Value, said: Value, doubts: Doubts | None) -> bool:
    golds, saids = named_values(gold, of_a_gold=True), named_values(said, of_a_gold=False)
    if golds is not None and saids is not None and len(golds) != len(saids):
        golds, saids = _by_coordinate(golds), _by_coordinate(saids)
    if golds is not None and saids is not None and _named(golds, saids, doubts):
        return True
    if _is_inequality(gold) or _is_inequality(said):
        wanted, found = region(gold, of_a_gold=True), region(said, of_a_gold=False)
        if wanted is not None and found is not None:
            return _regions(wanted, found, doubts)
    if isinstance(gold, Chain) and isinstance(said, Chain):
        return _chains(gold, said)
    if isinstance(gold, Group) and isinstance(said, Group) and (golds is None or saids is None):
        return _groups(gold.items, said.items, None)
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
        isinstance(one, Chain) and set(one.relations) & (INEQUALITIES | {r"\in"}) for one in _items(value)
    ) or isinstance(value, Union)


def named_values(value: Value, *, of_a_gold: bool) -> list[tuple[str, Value]] | None:
    """Each value with the name it is given ("" for none), None if there is a relation that gives no name."""
    entries: list[tuple[str, Value]] = []
    for item in _items(value):
        if not isinstance(item, Chain):
            entries.append((entries[-1][0] if entries else "", item))
            continue
        named = _name_and_value(item, of_a_gold)
        if named is None:
            return None
        entries += [(named[0], inner) for inner in (_items(named[1]) or (named[1],))]
    return entries


def _name_and_value(chain: Chain, of_a_gold: bool) -> tuple[str, Value] | None:
    sides, relations = chain
    if set(relations) != {"="} and relations != (r"\in",):
        return None
    values = [value_of(side) for side in sides[1:]]
    name = name_of(sides[0], of_a_gold=of_a_gold or isinstance(values[-1], Ratio))
    if name is None and len(sides) == 2 and relations == ("=",):  # `5 = x`
        left = value_of(sides[0])
        if isinstance(left, Scalar) and left.number is not None:
            name, values = name_of(sides[1], of_a_gold=of_a_gold), [left]
    last = values[-1]
    if name is None or last is None or any(one is None or not agree(last, one, None) for one in values[:-1]):
        return None
    return name, last


def _by_coordinate(entries: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
    """`(x, y) = (1, 2)` as `x = 1, y = 2`."""
    name, value = entries[0]
    names = name.strip("()").split(",")
    if len(entries) == 1 and name.startswith("(") and isinstance(value, Row) and len(names) == len(value.items):
        return list(zip(names, value.items, strict=True))
    return entries


def _named(golds: list[tuple[str, Value]], saids: list[tuple[str, Value]], doubts: Doubts | None) -> bool:
    gold_names, said_names = {name for name, _ in golds}, {name for name, _ in saids}
    gold_values, said_values = tuple(value for _, value in golds), tuple(value for _, value in saids)
    if "" not in gold_names and "" not in said_names:
        if len(golds) == len(saids) == 1:
            return _one_name(*gold_names, *said_names) and agree(gold_values[0], said_values[0], doubts)
        return _pairs_match(golds, saids) and _pairs_match(saids, golds)
    if len({base_of(name) for name in gold_names}) == len({base_of(name) for name in said_names}) == 1:
        return _groups(gold_values, said_values, doubts)
    if len(golds) == len(saids):
        return _in_order(list(gold_values), list(said_values), doubts)
    # `x = 1, y = 2` says the point (1, 2)
    point, others, names = (
        (gold_values[0], said_values, [name for name, _ in saids])
        if len(golds) == 1
        else (said_values[0], gold_values, [name for name, _ in golds])
    )
    if isinstance(point, Row) and min(len(golds), len(saids)) == 1 and names == sorted(set(names)):
        row = Row("(", tuple(others), ")")
        return agree(point, row, doubts) if len(golds) == 1 else agree(row, point, doubts)
    return False


def _one_name(one: str, other: str) -> bool:
    """Whether two names are one; a function's value may be called `y` or `f(x)`."""
    return one == other or {one, other} in ({"y", "f(x)"}, {"y", "y(x)"}, {"y", "g(x)"})


def _pairs_match(some: list[tuple[str, Value]], others: list[tuple[str, Value]]) -> bool:
    return len(some) * len(others) <= MAX_PAIRS and all(
        any(name == other_name and agree(value, other, None) for other_name, other in others) for name, value in some
    )


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
        return _groups(gold.parts, said.parts, None) and _groups(gold.without, said.without, None)
    return False


def _regions(gold: Region, said: Region, doubts: Doubts | None) -> bool:
    if gold.name and said.name and gold.name != said.name:
        return False
    return _groups(_as_rows(merged(gold.intervals)), _as_rows(merged(said.intervals)), doubts)


def _as_rows(intervals: tuple[Interval, ...]) -> tuple[Value, ...]:
    return tuple(
        Row("[" if one.has_low else "(", (one.low, one.high), "]" if one.has_high else ")") for one in intervals
    )
