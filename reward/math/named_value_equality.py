"""Answers that name their values: `x = 1, y = 2`, `(x, y) = (1, 2)`, `f(x) = 2x`."""

import re

from qwen_align.reward.math.answer_parser import value_of
from qwen_align.reward.math.answer_values import Agree, Chain, Doubts, Group, Ratio, Row, Scalar, Value, items_in
from qwen_align.reward.math.expression_equality import same
from qwen_align.reward.math.expression_parser import parse
from qwen_align.reward.math.expression_tree import symbol, with_values
from qwen_align.reward.math.variable_names import base_of, name_of

_MAX_PAIRS = 900  # comparisons of named values

_FUNCTION = re.compile(r"([A-Za-z]'*)\(([A-Za-z])\)")

Named = list[tuple[str, Value]]


def named_values(value: Value, agree: Agree, *, of_a_gold: bool) -> Named | None:
    """Each value with the name it is given ("" for none), None if there is a relation that gives no name."""
    entries: Named = []
    for item in items_in(value):
        if not isinstance(item, Chain):
            entries.append((entries[-1][0] if entries else "", item))
            continue
        named = _name_and_value(item, of_a_gold, agree)
        if named is None:
            return None
        entries += [(named[0], inner) for inner in (items_in(named[1]) or (named[1],))]
    return entries


def _name_and_value(chain: Chain, of_a_gold: bool, agree: Agree) -> tuple[str, Value] | None:
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


def by_coordinate(entries: Named) -> Named:
    """`(x, y) = (1, 2)` as `x = 1, y = 2`."""
    if len(entries) != 1:
        return entries
    name, value = entries[0]
    names = name.strip("()").split(",")
    if name.startswith("(") and isinstance(value, Row) and len(names) == len(value.items):
        return list(zip(names, value.items, strict=True))
    return entries


def same_named(golds: Named, saids: Named, doubts: Doubts | None, agree: Agree) -> bool:
    """Whether both give the same values to the same names; where one side names nothing, the order or a common
    letter (`x_1`, `x_2`) tells which is which.
    """
    gold_names, said_names = {name for name, _ in golds}, {name for name, _ in saids}
    gold_values, said_values = tuple(value for _, value in golds), tuple(value for _, value in saids)
    if "" not in gold_names and "" not in said_names:
        if len(golds) == len(saids) == 1:
            if gold_names != said_names and _are_points(*gold_names, *said_names):
                return same_named(by_coordinate(golds), by_coordinate(saids), doubts, agree)
            if (letters := _arguments(*gold_names, *said_names)) is not None:
                return _same_functions(gold_values[0], said_values[0], *letters)
            return _one_name(*gold_names, *said_names) and agree(gold_values[0], said_values[0], doubts)
        return _pairs_match(golds, saids, agree) and _pairs_match(saids, golds, agree)
    if len({base_of(name) for name in gold_names}) == len({base_of(name) for name in said_names}) == 1:
        return agree(Group(gold_values), Group(said_values), doubts)
    if len(golds) == len(saids):
        return agree(Row("(", gold_values, ")"), Row("(", said_values, ")"), doubts)
    # `x = 1, y = 2` says the point (1, 2)
    point, others, names = (
        (gold_values[0], said_values, [name for name, _ in saids])
        if len(golds) == 1
        else (said_values[0], gold_values, [name for name, _ in golds])
    )
    if set(names) in ({"x", "y"}, {"x", "y", "z"}) and len(names) == len(set(names)):
        others, names = tuple(others[names.index(name)] for name in sorted(names)), sorted(names)
    if isinstance(point, Row) and min(len(golds), len(saids)) == 1 and names == sorted(set(names)):
        row = Row("(", tuple(others), ")")
        return agree(point, row, doubts) if len(golds) == 1 else agree(row, point, doubts)
    return False


def _one_name(one: str, other: str) -> bool:
    """Whether two names are one; a function's value may be called `y` or `f(x)`."""
    return one == other or {one, other} in ({"y", "f(x)"}, {"y", "y(x)"}, {"y", "g(x)"})


def _are_points(one: str, other: str) -> bool:
    """Whether both name the same coordinates, in another order: `(x,y)` and `(y,x)`."""
    return one[:1] == other[:1] == "(" and sorted(one.strip("()").split(",")) == sorted(other.strip("()").split(","))


def _arguments(one: str, other: str) -> tuple[str, str] | None:
    """The letters x and t of `f(x)` and `f(t)`."""
    first, second = _FUNCTION.fullmatch(one), _FUNCTION.fullmatch(other)
    if first is None or second is None or first[1] != second[1] or first[2] == second[2]:
        return None
    return first[2], second[2]


def _same_functions(gold: Value, said: Value, letter: str, other: str) -> bool:
    """Whether two expressions are the same but for the letter of their variable."""
    if not isinstance(gold, Scalar) or not isinstance(said, Scalar):
        return False
    one, two = parse(gold.text), parse(said.text)
    if one is None or two is None or (letter in one.letters) + (other in two.letters) < 2:
        return False  # `f(2)` and `P(A)` are values of their own
    if letter in two.letters or other in one.letters:
        return False
    return same(one, with_values(two, {other: symbol(letter)})) is True


def _pairs_match(some: Named, others: Named, agree: Agree) -> bool:
    return len(some) * len(others) <= _MAX_PAIRS and all(
        any(name == other_name and agree(value, other, None) for other_name, other in others) for name, value in some
    )
