"""Formats equal answers as the same string, so that votes for an answer can be counted."""

from qwen_align.reward.math.answer_equality import is_same_answer
from qwen_align.reward.math.answer_values import (
    AnswerValue,
    BaseNumeral,
    BracketedTuple,
    Choice,
    Congruence,
    Matrix,
    Ratio,
    RelationChain,
    Scalar,
    SetBuilder,
    SetUnion,
    UnorderedItems,
    Words,
)
from qwen_align.reward.math.exact_evaluator import evaluate_rational
from qwen_align.reward.math.expression_parser import parse_expression
from qwen_align.reward.math.named_value_equality import collect_named_values
from qwen_align.reward.math.number_line_regions import INEQUALITIES, Region, merge_intervals, to_region


def format_canonically(value: AnswerValue) -> str:
    """Returns a canonical string of a parsed answer, the same for equal numbers, points and sets.

    Other expressions keep their text, without spaces. Units and the names of unknowns are left out.
    """
    if isinstance(value, Scalar):
        return _format_scalar(value)
    if isinstance(value, Words):
        return value.text
    if isinstance(value, Choice):
        return value.letter
    if isinstance(value, BracketedTuple):
        return f"{value.name}{value.opening}{','.join(map(format_canonically, value.items))}{value.closing}"
    if isinstance(value, UnorderedItems):
        return f"{{{','.join(sorted(map(format_canonically, value.items)))}}}"
    if isinstance(value, Matrix):
        rows = ("&".join(map(format_canonically, row)) for row in value.rows)
        return f"{value.kind}[{';'.join(rows)}]"
    if isinstance(value, BaseNumeral):
        return f"{value.digits}_{value.base}"
    if isinstance(value, Ratio):
        return ":".join(map(format_canonically, value.parts))
    if isinstance(value, SetBuilder):
        return f"{{{value.element}:{value.condition}}}".replace(" ", "")
    if isinstance(value, Congruence):
        return f"{value.residue % value.modulus} mod {value.modulus}"
    return _format_relation_or_union(value)


def _format_scalar(value: Scalar) -> str:
    """Returns the exact number of an expression as a string.

    An expression without one keeps its text, without spaces.
    """
    if value.number is not None:
        return str(value.number)
    node = parse_expression(value.text)
    number = None if node is None else evaluate_rational(node)
    return str(number) if number is not None else value.text.replace(" ", "")


def _format_relation_or_union(value: RelationChain | SetUnion) -> str:
    """Returns the canonical string of an equation, inequality or union of sets.

    This is the value of `x = 5`, the intervals of an inequality or union, or else the text of the sides and relations.
    """
    if isinstance(value, RelationChain):
        named_values = collect_named_values(value, is_same_answer, is_gold=False)
        if named_values is not None and len(named_values) == 1:
            return format_canonically(named_values[0][1])
    if isinstance(value, SetUnion) or set(value.relations) & INEQUALITIES:
        region = to_region(value, is_gold=False)
        if region is not None:
            return _format_intervals(region)
    if isinstance(value, SetUnion):
        return r"\cup".join(map(format_canonically, value.parts))
    sides = [side.replace(" ", "") for side in value.sides]
    return "".join(side + relation for side, relation in zip(sides, (*value.relations, ""), strict=True))


def _format_intervals(region: Region) -> str:
    """Formats a region of the number line as a LaTeX union of intervals."""
    intervals = (
        f"{'[' if interval.includes_low else '('}{format_canonically(interval.low)},"
        f"{format_canonically(interval.high)}{']' if interval.includes_high else ')'}"
        for interval in merge_intervals(region.intervals)
    )
    return r"\cup".join(intervals)
