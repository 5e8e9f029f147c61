"""Decimals that stand for the exact value they were rounded from: `0.0833333333333333` for 1/12."""

import re
from fractions import Fraction

from qwen_align.reward.math.exact_evaluator import Exact, rational
from qwen_align.reward.math.expression_tree import Node, is_number
from qwen_align.reward.math.magnitude_estimate import size_of
from qwen_align.reward.math.numeric_comparison import as_fraction, values
from qwen_align.reward.math.rational_arithmetic import (
    NotRationalError,
    TooLargeError,
    UndefinedError,
    UnsupportedError,
    literal,
)
from qwen_align.reward.math.sample_points import Point, real_value

MIN_DIGITS = 10  # significant; `3.14` is not pi
_FLOAT_DIGITS = 15  # of a float printed in full, whose last digit may be off by one: 1.4142135623730951
_BITS = 420
_MAX_BITS = 2_000
_PLAIN = re.compile(r"([0-9]*)\.([0-9]+)(?:e([+-]?[0-9]{1,3}))?")


def stands_for(one: Node, other: Node) -> bool:
    """Whether `one` is a decimal of at least MIN_DIGITS digits that rounds or cuts off the value of `other`.

    With the digits of a float the last one may be off by less than one.
    """
    written = _written(one)
    if written is None or _written(other) is not None or not is_number(other):
        return False
    value, unit = written
    error = unit if _n_digits(one) >= _FLOAT_DIGITS else unit / 2
    exact = _value(other)
    if exact is None:
        return False
    is_cut = abs(value) <= abs(exact) < abs(value) + unit and (exact < 0) == (value < 0)
    return is_cut or abs(exact - value) < error or abs(exact - value) * 2 == unit


def _n_digits(node: Node) -> int:
    """The significant digits of the decimal in a tree that `_written` reads."""
    while node.head in ("negative", "product"):
        node = node.args[0]
    mantissa = str(node.value).lower().partition("e")[0]
    return len(mantissa.replace(".", "").lstrip("0"))


def _written(node: Node) -> tuple[Fraction, Fraction] | None:
    """The value of a decimal with enough digits and the unit of its last place."""
    if node.head == "negative":
        found = _written(node.args[0])
        return None if found is None else (-found[0], found[1])
    if node.head == "product" and len(node.args) == 2 and node.args[1].head == "power":
        found, scale = _written(node.args[0]), rational(node.args[1])
        return None if found is None or not scale else (found[0] * scale, found[1] * abs(scale))
    plain = _PLAIN.fullmatch(str(node.value).lower()) if node.head == "decimal" else None
    if plain is None or len((plain[1] + plain[2]).lstrip("0")) < MIN_DIGITS:
        return None
    unit = Fraction(10) ** (int(plain[3] or 0) - len(plain[2]))
    return literal(str(node.value)), unit


def _value(node: Node) -> Fraction | None:
    """The value, exact or to more bits than a decimal has digits."""
    exact = Exact()
    try:
        return exact.value(node)
    except UndefinedError:
        return None
    except (NotRationalError, TooLargeError):
        pass
    try:
        bits = 2 * int(size_of(node, exact).bits)
        if bits > _MAX_BITS:
            return None
        point = Point(lambda name: real_value(name, 0), lambda node: None)
        return as_fraction(values((node,), point, _BITS + bits, is_real=False)[0])
    except (UndefinedError, TooLargeError, UnsupportedError):
        return None
