"""Evaluates expressions to any number of bits and measures how far two are apart. Safe in any thread."""

import os
import threading
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from qwen_align.reward.math.expression_tree import Node, get_free_letters
from qwen_align.reward.math.mpmath_evaluator import MpmathEvaluator, MpNumber
from qwen_align.reward.math.sample_points import SamplePoint

_lock = threading.Lock()  # mpmath's precision and its caches of constants belong to no thread


def _renew_lock() -> None:
    """Renews the lock in a forked child, which must not wait for a thread that only its parent has."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def evaluate_nodes(nodes: tuple[Node, ...], point: SamplePoint, bits: int, *, is_real: bool) -> list[MpNumber]:
    """Returns the values of nodes at a point; raises UndefinedError, TooLargeError or UnsupportedError."""
    with _lock:
        context = _get_context()
        context.prec = bits
        bound_values = {name: point.get_letter_value(name) for node in nodes for name in get_free_letters(node)}
        evaluator = MpmathEvaluator(context, point, bound_values, is_real)
        return [evaluator.evaluate(node) for node in nodes]


class Difference(NamedTuple):
    """The distance of two values and the size of the larger of them."""

    distance: MpNumber
    size: MpNumber

    def is_rounding_error(self, bits: int) -> bool:
        """Checks whether the distance is no more than rounding leaves of values that were computed to `bits` bits."""
        with _lock:
            return bool(self.distance <= _get_context().ldexp(self.size, -(bits * 7) // 10))

    def has_vanished_since(self, coarser: "Difference", bits: int) -> bool:
        """Checks whether the distance is far smaller than in an earlier computation.

        That one was to `bits` bits, this one is to twice as many.
        """
        with _lock:
            return bool(self.distance <= _get_context().ldexp(coarser.distance, -bits // 2))

    def is_unchanged_since(self, coarser: "Difference") -> bool:
        """Checks whether more bits left the distance as it was in an earlier computation."""
        with _lock:
            return bool(abs(self.distance - coarser.distance) <= _get_context().ldexp(self.distance, -10))


def measure_difference(nodes: tuple[Node, Node], point: SamplePoint, bits: int, *, is_real: bool) -> Difference:
    """Measures how far two nodes' values are apart at a point; raises what `evaluate_nodes` raises."""
    left, right = evaluate_nodes(nodes, point, bits, is_real=is_real)
    with _lock:
        return Difference(abs(left - right), max(abs(left), abs(right)))


def to_fraction(value: MpNumber) -> Fraction | None:
    """Converts mpmath's real number to its exact value, None for a complex one."""
    if not hasattr(value, "_mpf_"):
        return None
    sign, mantissa, exponent, _ = value._mpf_
    return Fraction(-int(mantissa) if sign else int(mantissa)) * Fraction(2) ** int(exponent)


def warm_up_mpmath() -> None:
    """Imports mpmath and lets it work out its constants, which the first values would have to wait for."""
    with _lock:
        context = _get_context()
        for bits in (120, 240, 500, 1_000):
            context.prec = bits
            for function in (context.exp, context.log, context.sin, context.atan, context.sqrt, context.asin):
                function(context.mpf(2) / 3)
            context.mpf(context.pi)


@cache
def _get_context() -> Any:
    """Returns the one context of mpmath, imported at the first call."""
    import mpmath  # late: a reward of another kind never needs it

    return mpmath.MPContext()
