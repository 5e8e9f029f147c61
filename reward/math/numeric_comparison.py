"""Values of expressions to any number of bits, and how far two of them are apart. Safe in any thread."""

import os
import threading
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from qwen_align.reward.math.expression_tree import Node, symbols
from qwen_align.reward.math.mpmath_evaluator import Evaluation, Number
from qwen_align.reward.math.sample_points import Point

_lock = threading.Lock()  # mpmath's precision and its caches of constants belong to no thread


def _renew_lock() -> None:
    """A child forked while another thread of its parent was evaluating must not wait for that thread."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def values(nodes: tuple[Node, ...], point: Point, bits: int, *, is_real: bool) -> list[Number]:
    """The values at `point`; raises UndefinedError, TooLargeError or UnsupportedError."""
    with _lock:
        context = _context()
        context.prec = bits
        bound = {name: point.value_of(name) for node in nodes for name in symbols(node)}
        one = Evaluation(context, point, bound, is_real)
        return [one.value(node) for node in nodes]


class Difference(NamedTuple):
    """The size of the difference of two values and of the larger of them."""

    distance: Number
    size: Number

    def is_rounding(self, bits: int) -> bool:
        """Whether it is no more than rounding leaves of values that were computed to `bits` bits."""
        with _lock:
            return bool(self.distance <= _context().ldexp(self.size, -(bits * 7) // 10))

    def vanishes(self, first: "Difference", bits: int) -> bool:
        """Whether it is far smaller than `first`, which was computed to `bits` bits, itself to twice as many."""
        with _lock:
            return bool(self.distance <= _context().ldexp(first.distance, -bits // 2))

    def is_near(self, first: "Difference") -> bool:
        """Whether more bits left the difference as it was."""
        with _lock:
            return bool(abs(self.distance - first.distance) <= _context().ldexp(self.distance, -10))


def difference(nodes: tuple[Node, Node], point: Point, bits: int, *, is_real: bool) -> Difference:
    """How far two values are apart at a point; raises what `values` raises."""
    one, other = values(nodes, point, bits, is_real=is_real)
    with _lock:
        return Difference(abs(one - other), max(abs(one), abs(other)))


def as_fraction(value: Number) -> Fraction | None:
    """The exact value of a real result, None for a complex one."""
    if not hasattr(value, "_mpf_"):
        return None
    sign, mantissa, exponent, _ = value._mpf_
    return Fraction(-int(mantissa) if sign else int(mantissa)) * Fraction(2) ** int(exponent)


def warm() -> None:
    """Imports mpmath and lets it work out its constants, which the first values would have to wait for."""
    with _lock:
        context = _context()
        for bits in (120, 240, 500, 1_000):
            context.prec = bits
            for function in (context.exp, context.log, context.sin, context.atan, context.sqrt, context.asin):
                function(context.mpf(2) / 3)
            context.mpf(context.pi)


@cache
def _context() -> Any:
    import mpmath  # late: a reward of another kind never needs it

    return mpmath.MPContext()
