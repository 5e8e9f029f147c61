"""Whether two lists hold the same items, in any order."""

from fractions import Fraction

from qwen_align.reward.math.answer_values import Agree, Doubts, Group, Scalar, Value

MAX_PAIRS = 900  # comparisons of items without order: thirty against thirty


def same_items(golds: tuple[Value, ...], saids: tuple[Value, ...], doubts: Doubts | None, agree: Agree) -> bool:
    """Whether each is one of the others, both ways; said twice is said once."""
    if not golds or not saids:
        return not golds and not saids
    ones, others = _numbers(golds), _numbers(saids)
    if ones is not None and others is not None and ones == others:
        return True
    golds, saids = tuple(dict.fromkeys(golds)), tuple(dict.fromkeys(saids))
    if len(golds) * len(saids) > MAX_PAIRS or len(saids) > 2 * len(golds) + 2:
        return set(golds) == set(saids)
    return _each_is_among(golds, saids, doubts, agree) and _each_is_among(
        saids, golds, doubts, lambda said, gold, doubts: agree(gold, said, doubts)
    )


def _numbers(items: tuple[Value, ...]) -> frozenset[Fraction] | None:
    numbers = [item.number for item in items if isinstance(item, Scalar) and item.unit is None]
    known = frozenset(number for number in numbers if number is not None)
    return known if len(numbers) == len(items) and None not in numbers else None


def _each_is_among(items: tuple[Value, ...], others: tuple[Value, ...], doubts: Doubts | None, agree: Agree) -> bool:
    for item in items:
        alike = [other for other in others if isinstance(other, Group) == isinstance(item, Group)]
        if any(agree(item, other, None) for other in alike):
            continue
        if doubts is None or not any(_with_doubts(item, other, doubts, agree) for other in alike):
            return False
    return True


def _with_doubts(item: Value, other: Value, doubts: Doubts, agree: Agree) -> bool:
    n_before = len(doubts)
    if agree(item, other, doubts):
        return True
    del doubts[n_before:]
    return False
