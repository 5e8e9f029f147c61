"""Evaluates expressions to any precision and measures the difference between two values. Safe in any thread."""

import os
import threading
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from qwen_align.reward.math.expression_tree import Node, get_free_letters
from qwen_align.reward.math.mpmath_evaluator import MpmathEvaluator, MpNumber
from qwen_align.reward.math.sample_points import SamplePoint

_lock = threading.Lock()  # mpmath's precision and its caches of constants belong to no thread


def _replace_lock_after_fork() -> None:
    """Replaces the mpmath lock by a new one in a forked child process.

    The old lock may be held by a thread that exists only in the parent.
    """
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock_after_fork)


def evaluate_nodes(nodes: tuple[Node, ...], point: SamplePoint, bits: int, *, is_real: bool) -> list[MpNumber]:
    """Returns the numeric values of expression tree nodes at a sample point.

    Raises UndefinedError, TooLargeError or UnsupportedError if one has none.
    """
    with _lock:
        context = _get_context()
        context.prec = bits
        bound_values = {name: point.get_letter_value(name) for node in nodes for name in get_free_letters(node)}
        evaluator = MpmathEvaluator(context, point, bound_values, is_real)
        return [evaluator.evaluate(node) for node in nodes]


class Difference(NamedTuple):
    """The difference of two values, with the size of the larger one."""

    distance: MpNumber
    size: MpNumber

    def is_within_rounding_error(self, bits: int) -> bool:
        """Checks whether the difference of two values is within their rounding error at a precision of `bits` bits."""
        with _lock:
            return bool(self.distance <= _get_context().ldexp(self.size, -(bits * 7) // 10))

    def has_vanished_since(self, coarser: "Difference", bits: int) -> bool:
        """Checks whether the difference of two values nearly vanishes at a higher precision.

        `coarser` was computed to `bits` bits, this difference to twice as many.
        """
        with _lock:
            return bool(self.distance <= _get_context().ldexp(coarser.distance, -bits // 2))

    def is_unchanged_since(self, coarser: "Difference") -> bool:
        """Checks whether the difference of two values stays the same at a higher precision."""
        with _lock:
            return bool(abs(self.distance - coarser.distance) <= _get_context().ldexp(self.distance, -10))


def measure_difference(nodes: tuple[Node, Node], point: SamplePoint, bits: int, *, is_real: bool) -> Difference:
    """Measures the difference between the values of two expressions at a sample point.

    Raises what `evaluate_nodes` raises. Raises what `evaluate_nodes` raises.
    """
    left, right = evaluate_nodes(nodes, point, bits, is_real=is_real)
    with _lock:
        return Difference(abs(left - right), max(abs(left), abs(right)))


def to_fraction(value: MpNumber) -> Fraction | None:
    """Converts a real number of mpmath to its exact value. Returns None for a complex number."""
    if not hasattr(value, "_mpf_"):
        return None
    sign, mantissa, exponent, _ = value._mpf_
    return Fraction(-int(mantissa) if sign else int(mantissa)) * Fraction(2) ** int(exponent)


def warm_up_mpmath() -> None:
    """Imports mpmath and computes its constants in advance, so that the first comparison does not wait for them."""
    with _lock:
        context = _get_context()
        for bits in (120, 240, 500, 1_000):
            context.prec = bits
            for function in (context.exp, context.log, context.sin, context.atan, context.sqrt, context.asin):
                function(context.mpf(2) / 3)
            context.mpf(context.pi)


@cache
def _get_context() -> Any:
    """Returns the mpmath context shared by all evaluations. The first call imports mpmath."""
    import mpmath  # late: a reward of another kind never needs it

    return mpmath.MPContext()
