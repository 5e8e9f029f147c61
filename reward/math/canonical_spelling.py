"""One spelling for equal answers, to count votes by."""

from qwen_align.reward.math.answer_equality import agree
from qwen_align.reward.math.answer_values import (
    Based,
    Chain,
    Choice,
    Group,
    Matrix,
    Ratio,
    Row,
    Scalar,
    Union,
    Value,
    Words,
)
from qwen_align.reward.math.exact_evaluator import rational
from qwen_align.reward.math.expression_parser import parse
from qwen_align.reward.math.named_value_equality import named_values
from qwen_align.reward.math.number_line_regions import INEQUALITIES, Region, merged, region


def written(value: Value) -> str:
    """`value` in a spelling that equal numbers, points and sets share; expressions as they were typed, without spaces.

    Units and the names of unknowns are left out.
    """
    if isinstance(value, Scalar):
        return _scalar(value)
    if isinstance(value, Words):
        return value.text
    if isinstance(value, Choice):
        return value.letter
    if isinstance(value, Row):
        return f"{value.opening}{','.join(map(written, value.items))}{value.closing}"
    if isinstance(value, Group):
        return f"{{{','.join(sorted(set(map(written, value.items))))}}}"
    if isinstance(value, Matrix):
        rows = ("&".join(map(written, row)) for row in value.rows)
        return f"{value.kind}[{';'.join(rows)}]"
    if isinstance(value, Based):
        return f"{value.digits}_{value.base}"
    if isinstance(value, Ratio):
        return ":".join(map(written, value.parts))
    return _relation(value)


def _scalar(value: Scalar) -> str:
    if value.number is not None:
        return str(value.number)
    node = parse(value.text)
    number = None if node is None else rational(node)
    return str(number) if number is not None else value.text.replace(" ", "")


def _relation(value: Chain | Union) -> str:
    if isinstance(value, Chain):
        named = named_values(value, agree, of_a_gold=False)
        if named is not None and len(named) == 1:
            return written(named[0][1])
    if isinstance(value, Union) or set(value.relations) & INEQUALITIES:
        found = region(value, of_a_gold=False)
        if found is not None:
            return _region(found)
    if isinstance(value, Union):
        return r"\cup".join(map(written, value.parts))
    sides = [side.replace(" ", "") for side in value.sides]
    return "".join(side + relation for side, relation in zip(sides, (*value.relations, ""), strict=True))


def _region(found: Region) -> str:
    rows = (
        f"{'[' if one.has_low else '('}{written(one.low)},{written(one.high)}{']' if one.has_high else ')'}"
        for one in merged(found.intervals)
    )
    return r"\cup".join(rows)
