r"""Parts of the number line: intervals, unions, solved inequalities and `x \ne 3` in one form."""

import re
from fractions import Fraction
from functools import cmp_to_key
from typing import NamedTuple

from qwen_align.reward.math.answer_parser import value_of
from qwen_align.reward.math.answer_values import Chain, Group, Row, Scalar, Union, Value
from qwen_align.reward.math.variable_names import name_of

_LEAST, _MOST = Scalar(r"-\infty"), Scalar(r"\infty")
_BARS = re.compile(r"\| ?([a-z]) ?\|")
_UPWARD = {"<": "<", r"\le": r"\le", ">": "<", r"\ge": r"\le"}
INEQUALITIES = frozenset(_UPWARD) | {r"\ne"}


class Interval(NamedTuple):
    low: Scalar
    high: Scalar
    has_low: bool
    has_high: bool


class Region(NamedTuple):
    """A union of intervals; `name` is the variable an inequality told, "" if none was."""

    intervals: tuple[Interval, ...]
    name: str = ""


_REAL_LINE = Row("(", (_LEAST, _MOST), ")")
_LINE = Region((Interval(_LEAST, _MOST, False, False),))


def region(value: Value, *, of_a_gold: bool) -> Region | None:
    """The part of the number line a value says, None if it says none; an inequality must be solved for a name."""
    if isinstance(value, Chain):
        return _of_chain(value, of_a_gold)
    if isinstance(value, Row):
        interval = _of_row(value)
        return None if interval is None else Region((interval,))
    if isinstance(value, Scalar):
        return Region((Interval(value, value, True, True),))
    if isinstance(value, Group):
        return _of_group(value, of_a_gold)
    if isinstance(value, Union):
        whole = _joined([region(part, of_a_gold=of_a_gold) for part in value.parts])
        holes = _joined([region(part, of_a_gold=of_a_gold) for part in value.without])
        return _without(whole, holes) if whole is not None and holes is not None else None
    return None


def merged(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """The intervals by rising low end, touching ones joined, if all ends are plain numbers or infinite."""
    if not all(_is_placed(one.low) and _is_placed(one.high) for one in intervals):
        return intervals
    kept: list[Interval] = []
    for one in sorted(intervals, key=cmp_to_key(_by_low)):
        if _order(one.low, one.high) > 0 or (_order(one.low, one.high) == 0 and not (one.has_low and one.has_high)):
            continue  # nothing lies in it
        last = kept[-1] if kept else None
        if last is None or not _touch(last, one):
            kept.append(one)
            continue
        by_high = _order(last.high, one.high)
        has_high = last.has_high or one.has_high if by_high == 0 else (last if by_high > 0 else one).has_high
        has_low = last.has_low or (one.has_low and _order(last.low, one.low) == 0)
        kept[-1] = Interval(last.low, last.high if by_high >= 0 else one.high, has_low, has_high)
    return tuple(kept)


def _of_chain(chain: Chain, of_a_gold: bool) -> Region | None:
    sides, relations = chain
    if len(sides) == 2 and relations[0] in (r"\ne", r"\in", "="):
        name = name_of(sides[0], of_a_gold=of_a_gold)
        value = value_of(sides[1])
        if name is None or value is None:
            return None
        inner = region(value, of_a_gold=of_a_gold)
        if relations[0] == r"\ne" and inner is not None:
            inner = _without(Region((Interval(_LEAST, _MOST, False, False),)), inner)
        return None if inner is None else inner._replace(name=name)
    if not set(relations) <= set(_UPWARD) or len(sides) > 3:
        return None
    if len({_is_upward(relation) for relation in relations}) == 2:
        return None
    if not _is_upward(relations[0]):
        sides, relations = sides[::-1], relations[::-1]
    closed = [_UPWARD[relation] == r"\le" for relation in relations]
    if len(sides) == 3:
        name = name_of(sides[1], of_a_gold=of_a_gold)
        low, high = _end(sides[0], name), _end(sides[2], name)
        if name is None or low is None or high is None:
            return None
        return Region((Interval(low, high, closed[0], closed[1]),), name)
    if (strip := _strip(sides[0], sides[1], closed[0], of_a_gold)) is not None:
        return strip
    return _half_line(sides[0], sides[1], closed[0], of_a_gold)


def _strip(less: str, more: str, is_closed: bool, of_a_gold: bool) -> Region | None:
    """What `|x| < 3` or `|x| > 3` says, None if it is no such thing."""
    for side, other in ((less, more), (more, less)):
        bars = _BARS.fullmatch(side)
        name = None if bars is None else name_of(bars[1], of_a_gold=of_a_gold)
        end = value_of(other)
        if name is None or not isinstance(end, Scalar) or end.number is None or end.number <= 0:
            continue
        low = Scalar(f"-{end.text}", -end.number)
        if side == less:
            return Region((Interval(low, end, is_closed, is_closed),), name)
        return Region((Interval(_LEAST, low, False, is_closed), Interval(end, _MOST, is_closed, False)), name)
    return None


def _half_line(less: str, more: str, is_closed: bool, of_a_gold: bool) -> Region | None:
    for side, other, is_above in ((less, more, False), (more, less, True)):
        name = name_of(side, of_a_gold=of_a_gold)
        end = _end(other, name)
        if name is not None and end is not None and name_of(other, of_a_gold=of_a_gold) is None:
            interval = Interval(end, _MOST, is_closed, False) if is_above else Interval(_LEAST, end, False, is_closed)
            return Region((interval,), name)
    return None


def _end(side: str, name: str | None) -> Scalar | None:
    """An end of the interval, None if the variable occurs in it: then the inequality is not solved."""
    value = value_of(side)
    if name is None or not isinstance(value, Scalar) or (value.number is None and name in value.text):
        return None
    return value


def _is_upward(relation: str) -> bool:
    return relation in ("<", r"\le")


def _of_row(row: Row) -> Interval | None:
    if len(row.items) != 2:
        return None
    low, high = row.items
    if isinstance(low, Scalar) and isinstance(high, Scalar):
        return Interval(low, high, row.opening == "[", row.closing == "]")
    return None


def _of_group(group: Group, of_a_gold: bool) -> Region | None:
    kept, holes = _parted(group.items)
    if holes:
        whole = region(Group(kept, group.all_hold), of_a_gold=of_a_gold) if kept else _LINE
        first = holes[0]
        name = name_of(first.sides[0], of_a_gold=of_a_gold) if isinstance(first, Chain) else None
        known = [value_of(item.sides[1]) if isinstance(item, Chain) else item for item in holes]
        inner = region(Group(tuple(hole for hole in known if hole is not None)), of_a_gold=of_a_gold)
        if whole is None or inner is None or name is None or whole.name not in ("", name):
            return None
        return _without(whole._replace(name=name), inner)
    group = group._replace(items=kept)
    if len({isinstance(item, Chain) and r"\in" in item.relations for item in kept if isinstance(item, Chain)}) == 2:
        return None  # `x \\in (0,5), x > 3` may say either
    if any(isinstance(item, Scalar) for item in group.items) and not all(isinstance(i, Scalar) for i in group.items):
        return None  # a number beside an inequality is another answer
    regions = [region(item, of_a_gold=of_a_gold) for item in group.items]
    if group.all_hold:
        return _in_common(regions)
    joined = _joined(regions)
    covers = joined is not None and len(regions) > 1 and merged(joined.intervals) == _LINE.intervals
    return None if covers else joined  # `x > 1, x < 2` means both at once


def _parted(items: tuple[Value, ...]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The items without a mere domain (`x \\in \\mathbb{R}` beside other relations), and those from `x \\ne 3` on."""
    chains = [item for item in items if isinstance(item, Chain)]
    domains = [item for item in chains if item.relations == (r"\in",) and value_of(item.sides[1]) == _REAL_LINE]
    if domains and len(chains) > len(domains):
        items = tuple(item for item in items if item not in domains)
    kept: list[Value] = []
    holes: list[Value] = []
    place = kept
    for item in items:
        if isinstance(item, Chain):
            place = holes if item.relations == (r"\ne",) else kept
        place.append(item)
    return tuple(kept), tuple(holes)


def _in_common(regions: list[Region | None]) -> Region | None:
    """Where a half-line up and a half-line down overlap: `x > 1 and x < 2`."""
    both = _joined(regions)
    if both is not None:
        bounded = tuple(one for one in both.intervals if (one.low, one.high) != (_LEAST, _MOST))
        both = both._replace(intervals=bounded)
        if len(bounded) == 1:  # the other says `x < \infty`
            return both
    if both is None or len(both.intervals) != 2:
        return None
    up, down = sorted(both.intervals, key=lambda one: one.low == _LEAST)
    if up.high != _MOST or down.low != _LEAST or up.low == _LEAST or down.high == _MOST:
        return None
    if _is_placed(up.low) and _is_placed(down.high) and _order(up.low, down.high) >= 0:
        return None
    return both._replace(intervals=(Interval(up.low, down.high, up.has_low, down.has_high),))


def _joined(regions: list[Region | None]) -> Region | None:
    known = [one for one in regions if one is not None]
    names = {one.name for one in known if one.name}
    if len(known) < len(regions) or len(names) > 1:
        return None
    return Region(tuple(interval for one in known for interval in one.intervals), next(iter(names), ""))


def _without(whole: Region, holes: Region) -> Region | None:
    """The region without single points whose places are plain numbers."""
    intervals = list(whole.intervals)
    if holes.intervals and not all(_is_placed(one.low) and _is_placed(one.high) for one in intervals):
        return None
    for hole in holes.intervals:
        if hole.low != hole.high:
            return None
        if hole.low.number is None:
            if len(holes.intervals) > 1 or len(intervals) > 1 or intervals[0][:2] != (_LEAST, _MOST):
                return None
            intervals = [Interval(_LEAST, hole.low, False, False), Interval(hole.low, _MOST, False, False)]
            continue
        cut: list[Interval] = []
        for one in intervals:
            if _order(one.low, hole.low) > 0 or _order(one.high, hole.low) < 0:
                cut.append(one)
                continue
            if _order(one.low, hole.low) < 0:
                cut.append(one._replace(high=hole.low, has_high=False))
            if _order(one.high, hole.low) > 0:
                cut.append(one._replace(low=hole.low, has_low=False))
        intervals = cut
    return whole._replace(intervals=tuple(intervals))


def _is_placed(end: Scalar) -> bool:
    return end.number is not None or end.text in (_LEAST.text, _MOST.text)


def _order(one: Scalar, other: Scalar) -> int:
    (rank, place), (other_rank, other_place) = _place(one), _place(other)
    return (rank > other_rank) - (rank < other_rank) or (place > other_place) - (place < other_place)


def _place(end: Scalar) -> tuple[int, Fraction]:
    if end.number is not None:
        return 0, end.number
    return (-1 if end.text == _LEAST.text else 1), Fraction(0)


def _by_low(one: Interval, other: Interval) -> int:
    return _order(one.low, other.low) or other.has_low - one.has_low


def _touch(one: Interval, other: Interval) -> bool:
    order = _order(one.high, other.low)
    return order > 0 or (order == 0 and (one.has_high or other.has_low))
