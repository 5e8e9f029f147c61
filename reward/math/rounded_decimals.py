"""Recognizes decimals that are rounded from an exact value, such as `0.0833333333333333` for 1/12."""

import re
from fractions import Fraction

from qwen_align.reward.math.exact_evaluator import ExactEvaluator, evaluate_rational
from qwen_align.reward.math.expression_tree import Node, is_constant
from qwen_align.reward.math.magnitude_estimate import estimate_magnitude
from qwen_align.reward.math.numeric_comparison import evaluate_nodes, to_fraction
from qwen_align.reward.math.rational_arithmetic import (
    NotRationalError,
    TooLargeError,
    UndefinedError,
    UnsupportedError,
    parse_decimal_literal,
)
from qwen_align.reward.math.sample_points import SamplePoint, draw_real_value

MIN_DIGITS = 10  # significant; `3.14` is not pi
_FLOAT_DIGITS = 15  # of a float printed in full, whose last digit may be off by one: 1.4142135623730951
_MIN_BITS = 420
_MAX_BITS = 2_000
_DECIMAL = re.compile(r"([0-9]*)\.([0-9]+)(?:e([+-]?[0-9]{1,3}))?")


def is_rounding_of(decimal: Node, exact_node: Node) -> bool:
    """Checks whether a decimal of at least MIN_DIGITS digits is the rounded or truncated value of another expression.

    With the digits of a float the last one may be off by less than one.
    """
    value_and_unit = _parse_decimal_and_last_place(decimal)
    if value_and_unit is None or _parse_decimal_and_last_place(exact_node) is not None or not is_constant(exact_node):
        return False
    value, unit = value_and_unit
    tolerance = unit if _count_significant_digits(decimal) >= _FLOAT_DIGITS else unit / 2
    exact = _approximate_value(exact_node)
    if exact is None:
        return False
    is_cut = abs(value) <= abs(exact) < abs(value) + unit and (exact < 0) == (value < 0)
    return is_cut or abs(exact - value) < tolerance or abs(exact - value) * 2 == unit


def _count_significant_digits(node: Node) -> int:
    """Counts the significant digits of the decimal in an expression that `_parse_decimal_and_last_place` accepts."""
    while node.head in ("negative", "product"):
        node = node.args[0]
    mantissa = str(node.value).lower().partition("e")[0]
    return len(mantissa.replace(".", "").lstrip("0"))


def _parse_decimal_and_last_place(node: Node) -> tuple[Fraction, Fraction] | None:
    """Returns the value and the last-place unit of a decimal of at least MIN_DIGITS digits.

    Returns None for any other expression.
    """
    if node.head == "negative":
        value_and_unit = _parse_decimal_and_last_place(node.args[0])
        return None if value_and_unit is None else (-value_and_unit[0], value_and_unit[1])
    if node.head == "product" and len(node.args) == 2 and node.args[1].head == "power":
        value_and_unit, scale = _parse_decimal_and_last_place(node.args[0]), evaluate_rational(node.args[1])
        return (
            None if value_and_unit is None or not scale else (value_and_unit[0] * scale, value_and_unit[1] * abs(scale))
        )
    match = _DECIMAL.fullmatch(str(node.value).lower()) if node.head == "decimal" else None
    if match is None or len((match[1] + match[2]).lstrip("0")) < MIN_DIGITS:
        return None
    unit = Fraction(10) ** (int(match[3] or 0) - len(match[2]))
    return parse_decimal_literal(str(node.value)), unit


def _approximate_value(node: Node) -> Fraction | None:
    """Returns the value of a constant expression, exact or to high precision. Returns None if it has no value."""
    evaluator = ExactEvaluator()
    try:
        return evaluator.evaluate(node)
    except UndefinedError:
        return None
    except (NotRationalError, TooLargeError):
        pass
    try:
        bits = 2 * int(estimate_magnitude(node, evaluator).bits)
        if bits > _MAX_BITS:
            return None
        point = SamplePoint(lambda name: draw_real_value(name, 0), repr)
        return to_fraction(evaluate_nodes((node,), point, _MIN_BITS + bits, is_real=False)[0])
    except (UndefinedError, TooLargeError, UnsupportedError):
        return None
