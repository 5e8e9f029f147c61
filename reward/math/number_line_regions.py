r"""Represents intervals, unions, solved inequalities and `x \ne 3` uniformly as regions of the number line."""

import re
from fractions import Fraction
from functools import cmp_to_key
from typing import NamedTuple

from qwen_align.reward.math.answer_parser import parse_normalized
from qwen_align.reward.math.answer_values import (
    AnswerValue,
    BracketedTuple,
    RelationChain,
    Scalar,
    SetUnion,
    UnorderedItems,
)
from qwen_align.reward.math.variable_names import normalize_variable_name

_MINUS_INFINITY, _PLUS_INFINITY = Scalar(r"-\infty"), Scalar(r"\infty")
_ABSOLUTE_VALUE = re.compile(r"\| ?([a-z]) ?\|")
_ASCENDING_RELATIONS = {"<": "<", r"\le": r"\le", ">": "<", r"\ge": r"\le"}
INEQUALITIES = frozenset(_ASCENDING_RELATIONS) | {r"\ne"}


class Interval(NamedTuple):
    """An interval of the number line, with its two ends and whether it includes each of them."""

    low: Scalar
    high: Scalar
    includes_low: bool
    includes_high: bool


class Region(NamedTuple):
    """A region of the number line: a union of intervals.

    `name` is the variable that an inequality names, "" if none does.
    """

    intervals: tuple[Interval, ...]
    name: str = ""


_REAL_LINE = BracketedTuple("(", (_MINUS_INFINITY, _PLUS_INFINITY), ")")
_WHOLE_LINE = Region((Interval(_MINUS_INFINITY, _PLUS_INFINITY, False, False),))


def to_region(value: AnswerValue, *, is_gold: bool) -> Region | None:
    """Converts an answer such as an interval or inequality to its region of the number line.

    Returns None if it describes no region. An inequality must be solved for a name.
    """
    if isinstance(value, RelationChain):
        return _chain_to_region(value, is_gold)
    if isinstance(value, BracketedTuple):
        interval = _tuple_to_interval(value)
        return None if interval is None else Region((interval,))
    if isinstance(value, Scalar):
        return Region((Interval(value, value, True, True),))
    if isinstance(value, UnorderedItems):
        return _group_to_region(value, is_gold)
    if isinstance(value, SetUnion):
        united = _unite_regions([to_region(part, is_gold=is_gold) for part in value.parts])
        holes = _unite_regions([to_region(part, is_gold=is_gold) for part in value.removed])
        return _remove_points(united, holes) if united is not None and holes is not None else None
    return None


def merge_intervals(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """Sorts intervals by their low ends and merges touching ones.

    This is done only if all ends are plain numbers or infinite.
    """
    if not all(_is_comparable_end(interval.low) and _is_comparable_end(interval.high) for interval in intervals):
        return intervals
    merged: list[Interval] = []
    for interval in sorted(intervals, key=cmp_to_key(_compare_low_ends)):
        if _compare_ends(interval.low, interval.high) > 0 or (
            _compare_ends(interval.low, interval.high) == 0 and not (interval.includes_low and interval.includes_high)
        ):
            continue  # empty
        previous = merged[-1] if merged else None
        if previous is None or not _is_touching(previous, interval):
            merged.append(interval)
            continue
        high_order = _compare_ends(previous.high, interval.high)
        includes_high = (
            previous.includes_high or interval.includes_high
            if high_order == 0
            else (previous if high_order > 0 else interval).includes_high
        )
        includes_low = previous.includes_low or (
            interval.includes_low and _compare_ends(previous.low, interval.low) == 0
        )
        merged[-1] = Interval(
            previous.low, previous.high if high_order >= 0 else interval.high, includes_low, includes_high
        )
    return tuple(merged)


def _chain_to_region(chain: RelationChain, is_gold: bool) -> Region | None:
    """Converts an inequality or membership to the number-line region of its variable.

    Returns None if it is not solved for a variable.
    """
    sides, relations = chain
    if len(sides) == 2 and relations[0] in (r"\ne", r"\in", "="):
        name = normalize_variable_name(sides[0], is_gold=is_gold)
        value = parse_normalized(sides[1])
        if name is None or value is None:
            return None
        inner_region = to_region(value, is_gold=is_gold)
        if relations[0] == r"\ne" and inner_region is not None:
            inner_region = _remove_points(
                Region((Interval(_MINUS_INFINITY, _PLUS_INFINITY, False, False),)), inner_region
            )
        return None if inner_region is None else inner_region._replace(name=name)
    if not set(relations) <= set(_ASCENDING_RELATIONS) or len(sides) > 3:
        return None
    if len({_is_less_than(relation) for relation in relations}) == 2:
        return None
    if not _is_less_than(relations[0]):
        sides, relations = sides[::-1], relations[::-1]
    closed = [_ASCENDING_RELATIONS[relation] == r"\le" for relation in relations]
    if len(sides) == 3:
        name = normalize_variable_name(sides[1], is_gold=is_gold)
        low, high = _parse_interval_end(sides[0], name), _parse_interval_end(sides[2], name)
        if name is None or low is None or high is None:
            return None
        return Region((Interval(low, high, closed[0], closed[1]),), name)
    if (strip_region := _absolute_value_to_region(sides[0], sides[1], closed[0], is_gold)) is not None:
        return strip_region
    return _half_line_to_region(sides[0], sides[1], closed[0], is_gold)


def _absolute_value_to_region(lesser_side: str, greater_side: str, is_closed: bool, is_gold: bool) -> Region | None:
    """Converts `|x| < 3` or `|x| > 3` to its number-line region. Returns None for any other inequality."""
    for side, other_side in ((lesser_side, greater_side), (greater_side, lesser_side)):
        match = _ABSOLUTE_VALUE.fullmatch(side)
        name = None if match is None else normalize_variable_name(match[1], is_gold=is_gold)
        end = parse_normalized(other_side)
        if name is None or not isinstance(end, Scalar) or end.number is None or end.number <= 0:
            continue
        low = Scalar(f"-{end.text}", -end.number)
        if side == lesser_side:
            return Region((Interval(low, end, is_closed, is_closed),), name)
        return Region(
            (Interval(_MINUS_INFINITY, low, False, is_closed), Interval(end, _PLUS_INFINITY, is_closed, False)), name
        )
    return None


def _half_line_to_region(lesser_side: str, greater_side: str, is_closed: bool, is_gold: bool) -> Region | None:
    """Converts `x < 3` or `x > 3` to its half-line. Returns None if neither side is just a variable."""
    for side, other_side, is_above in ((lesser_side, greater_side, False), (greater_side, lesser_side, True)):
        name = normalize_variable_name(side, is_gold=is_gold)
        end = _parse_interval_end(other_side, name)
        if name is not None and end is not None and normalize_variable_name(other_side, is_gold=is_gold) is None:
            interval = (
                Interval(end, _PLUS_INFINITY, is_closed, False)
                if is_above
                else Interval(_MINUS_INFINITY, end, False, is_closed)
            )
            return Region((interval,), name)
    return None


def _parse_interval_end(side: str, name: str | None) -> Scalar | None:
    """Parses one side of an inequality to an interval end.

    Returns None if the variable occurs in it, so that the inequality is not solved.
    """
    value = parse_normalized(side)
    if name is None or not isinstance(value, Scalar) or (value.number is None and name in value.text):
        return None
    return value


def _is_less_than(relation: str) -> bool:
    """Checks whether a relation sign is "less than" or "at most"."""
    return relation in ("<", r"\le")


def _tuple_to_interval(row: BracketedTuple) -> Interval | None:
    """Converts two scalars in brackets to an interval. Returns None for any other tuple."""
    if len(row.items) != 2 or row.name:
        return None
    low, high = row.items
    if isinstance(low, Scalar) and isinstance(high, Scalar):
        return Interval(low, high, row.opening == "[", row.closing == "]")
    return None


def _group_to_region(group: UnorderedItems, is_gold: bool) -> Region | None:
    """Converts a list of relations, intervals or numbers to one number-line region.

    Returns None if the list is ambiguous.
    """
    plain_items, holes = _split_off_excluded_points(group.items)
    if holes:
        plain_group = UnorderedItems(plain_items, group.all_hold)
        base_region = to_region(plain_group, is_gold=is_gold) if plain_items else _WHOLE_LINE
        first_hole = holes[0]
        name = (
            normalize_variable_name(first_hole.sides[0], is_gold=is_gold)
            if isinstance(first_hole, RelationChain)
            else None
        )
        hole_values = [parse_normalized(item.sides[1]) if isinstance(item, RelationChain) else item for item in holes]
        hole_region = to_region(
            UnorderedItems(tuple(hole for hole in hole_values if hole is not None)), is_gold=is_gold
        )
        if base_region is None or hole_region is None or name is None or base_region.name not in ("", name):
            return None
        return _remove_points(base_region._replace(name=name), hole_region)
    group = group._replace(items=plain_items)
    are_memberships = {r"\in" in item.relations for item in plain_items if isinstance(item, RelationChain)}
    if len(are_memberships) == 2:
        return None  # `x \in (0,5), x > 3` may mean either
    if any(isinstance(item, Scalar) for item in group.items) and not all(isinstance(i, Scalar) for i in group.items):
        return None  # a number beside an inequality is another answer
    regions = [to_region(item, is_gold=is_gold) for item in group.items]
    if group.all_hold:
        return _intersect_half_lines(regions)
    united = _unite_regions(regions)
    covers = united is not None and len(regions) > 1 and merge_intervals(united.intervals) == _WHOLE_LINE.intervals
    return None if covers else united  # `x > 1, x < 2` means both at once


def _split_off_excluded_points(
    items: tuple[AnswerValue, ...],
) -> tuple[tuple[AnswerValue, ...], tuple[AnswerValue, ...]]:
    r"""Splits a list into its ordinary items and the points excluded by `x \ne 3`.

    A domain such as `x \in \mathbb{R}` beside relations is dropped.
    """
    chains = [item for item in items if isinstance(item, RelationChain)]
    domains = [item for item in chains if item.relations == (r"\in",) and parse_normalized(item.sides[1]) == _REAL_LINE]
    if domains and len(chains) > len(domains):
        items = tuple(item for item in items if item not in domains)
    plain_items: list[AnswerValue] = []
    holes: list[AnswerValue] = []
    target = plain_items
    for item in items:
        if isinstance(item, RelationChain):
            target = holes if item.relations == (r"\ne",) else plain_items
        target.append(item)
    return tuple(plain_items), tuple(holes)


def _intersect_half_lines(regions: list[Region | None]) -> Region | None:
    """Intersects an upward and a downward half-line, such as `x > 1` and `x < 2`."""
    united = _unite_regions(regions)
    if united is not None:
        bounded = tuple(
            interval
            for interval in united.intervals
            if (interval.low, interval.high) != (_MINUS_INFINITY, _PLUS_INFINITY)
        )
        united = united._replace(intervals=bounded)
        if len(bounded) == 1:  # the other is `x < \infty`
            return united
    if united is None or len(united.intervals) != 2:
        return None
    upward, downward = sorted(united.intervals, key=lambda interval: interval.low == _MINUS_INFINITY)
    if (
        upward.high != _PLUS_INFINITY
        or downward.low != _MINUS_INFINITY
        or upward.low == _MINUS_INFINITY
        or downward.high == _PLUS_INFINITY
    ):
        return None
    if (
        _is_comparable_end(upward.low)
        and _is_comparable_end(downward.high)
        and _compare_ends(upward.low, downward.high) >= 0
    ):
        return None
    return united._replace(
        intervals=(Interval(upward.low, downward.high, upward.includes_low, downward.includes_high),)
    )


def _unite_regions(regions: list[Region | None]) -> Region | None:
    """Unites number-line regions of one variable. Returns None if one is None or their variables differ."""
    known_regions = [region for region in regions if region is not None]
    names = {region.name for region in known_regions if region.name}
    if len(known_regions) < len(regions) or len(names) > 1:
        return None
    return Region(tuple(interval for region in known_regions for interval in region.intervals), next(iter(names), ""))


def _remove_points(region: Region, holes: Region) -> Region | None:
    """Removes single points from a number-line region. Returns None if their positions in it are not known."""
    intervals = list(region.intervals)
    if holes.intervals and not all(
        _is_comparable_end(interval.low) and _is_comparable_end(interval.high) for interval in intervals
    ):
        return None
    for hole in holes.intervals:
        if hole.low != hole.high:
            return None
        if hole.low.number is None:
            if len(holes.intervals) > 1 or len(intervals) > 1 or intervals[0][:2] != (_MINUS_INFINITY, _PLUS_INFINITY):
                return None
            intervals = [
                Interval(_MINUS_INFINITY, hole.low, False, False),
                Interval(hole.low, _PLUS_INFINITY, False, False),
            ]
            continue
        remaining: list[Interval] = []
        for interval in intervals:
            if _compare_ends(interval.low, hole.low) > 0 or _compare_ends(interval.high, hole.low) < 0:
                remaining.append(interval)
                continue
            if _compare_ends(interval.low, hole.low) < 0:
                remaining.append(interval._replace(high=hole.low, includes_high=False))
            if _compare_ends(interval.high, hole.low) > 0:
                remaining.append(interval._replace(low=hole.low, includes_low=False))
        intervals = remaining
    return region._replace(intervals=tuple(intervals))


def _is_comparable_end(end: Scalar) -> bool:
    """Checks whether the end of an interval is a plain number or infinite."""
    return end.number is not None or end.text in (_MINUS_INFINITY.text, _PLUS_INFINITY.text)


def _compare_ends(left: Scalar, right: Scalar) -> int:
    """Compares two interval ends.

    The result is below 0, 0 or above 0 as the left end is less than, equal to or greater than the right.
    """
    left_key, right_key = _get_end_sort_key(left), _get_end_sort_key(right)
    return (left_key > right_key) - (left_key < right_key)


def _get_end_sort_key(end: Scalar) -> tuple[int, Fraction]:
    """Returns a sort key that orders interval ends from minus infinity to infinity."""
    if end.number is not None:
        return 0, end.number
    return (-1 if end.text == _MINUS_INFINITY.text else 1), Fraction(0)


def _compare_low_ends(left: Interval, right: Interval) -> int:
    """Compares two intervals by their low ends. At equal ends the interval that includes its end comes first."""
    return _compare_ends(left.low, right.low) or right.includes_low - left.includes_low


def _is_touching(left: Interval, right: Interval) -> bool:
    """Checks whether the right of two intervals overlaps the left or starts where the left ends."""
    order = _compare_ends(left.high, right.low)
    return order > 0 or (order == 0 and (left.includes_high or right.includes_low))
