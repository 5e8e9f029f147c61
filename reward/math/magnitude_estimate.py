"""How large a value can be and how many bits it takes to tell it from others, estimated before any evaluation."""

import math
from fractions import Fraction
from typing import NamedTuple

from qwen_align.reward.math.exact_evaluator import MAX_TERMS, Exact
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.rational_arithmetic import (
    MAX_BITS,
    LongSeriesError,
    NotRationalError,
    TooLargeError,
    UndefinedError,
)

_POINT = 4.0  # bits before the point of a letter's value: letters are given values up to 13
_EVERYDAY_BITS = 32.0
_CONSTANTS = {"pi": 1.66, "e": 1.45, "i": 0.0}
_EXPONENTIAL = frozenset(("sinh", "cosh", "tanh", "coth", "sech", "csch"))
_UNBOUNDED = frozenset(("tan", "cot", "sec", "csc"))
_BOUNDED = {
    **dict.fromkeys(("sin", "cos"), 0.0),
    **dict.fromkeys(("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"), 2.0),
}


class Size(NamedTuple):
    """`above` and `below`: log2 of bounds on the value and on its inverse, not below 0; `bits`: at least both."""

    above: float
    below: float
    bits: float


def size_of(node: Node, exact: Exact) -> Size:
    """The size of the value; raises TooLargeError above MAX_BITS."""
    return _Estimate(exact).of(node)


class _Estimate:
    def __init__(self, exact: Exact) -> None:
        self.exact = exact
        self.known: dict[Node, Size] = {}
        self.fine: dict[Node, float] = {}

    def of(self, node: Node) -> Size:
        found = self.known.get(node)
        if found is None:
            found = self.exactly(node) or self.estimate(node)
            if found.bits > MAX_BITS:
                raise TooLargeError("a value")
            self.known[node] = found
        return found

    def exactly(self, node: Node) -> Size | None:
        try:
            return _rational_size(self.exact.value(node))
        except (NotRationalError, UndefinedError, TooLargeError):
            return None

    def estimate(self, node: Node) -> Size:
        if node.head == "constant":
            above = _CONSTANTS.get(str(node.value), _POINT)
            return Size(above, 0.0, above)
        if node.head in {"symbol", "apply"}:
            return Size(_POINT, _POINT, 2 * _POINT)
        if node.head == "decimal":
            raise TooLargeError("a decimal")
        if node.head == "call":
            return self.call(node)
        if node.head == "series":
            return self.series(node)
        return self.operation(node, [self.of(arg) for arg in node.args])

    def operation(self, node: Node, parts: list[Size]) -> Size:
        first = parts[0]
        if node.head == "sum":
            more = math.log2(len(parts))
            bits = max(part.bits for part in parts) + more
            return Size(max(part.above for part in parts) + more, bits, bits)
        if node.head == "product":
            above, below, bits = (sum(sizes) for sizes in zip(*parts, strict=True))
            return Size(above, below, bits)
        if node.head == "quotient":
            above, below = first.above + parts[1].below, first.below + parts[1].above
            return Size(above, below, first.bits + parts[1].bits)
        if node.head == "power":
            factor = self.exponent(node.args[1])
            above, below, bits = (size * factor + 1 for size in first)
            fine = self.fineness(node.args[1])
            return Size(above, below, bits + 2 * fine + (_EVERYDAY_BITS if fine else 0.0))
        if node.head == "root":
            return Size(first.above / 2, first.below / 2, first.bits + self.fineness(node.args[0]))
        return first

    def fineness(self, node: Node) -> float:
        """The bits of the node's constants beyond those of everyday numbers.

        As many more are needed to tell a function's value at a tiny argument from that of its first terms: near zero,
        cos x differs from 1 by half the square of x.
        """
        found = self.fine.get(node)
        if found is None:
            if node.letters or node.applied:
                found = sum(map(self.fineness, node.args))
            else:
                found = max(0.0, self.of(node).bits - _EVERYDAY_BITS)
            self.fine[node] = found
        return found

    def exponent(self, node: Node) -> float:
        try:
            return float(abs(self.exact.value(node)))
        except OverflowError:
            raise TooLargeError("a power") from None
        except (NotRationalError, UndefinedError, TooLargeError):
            return _two_to(self.of(node).above)

    def call(self, node: Node) -> Size:
        parts = [self.of(arg) for arg in node.args]
        above = max(part.above for part in parts)
        bits = max(part.bits for part in parts) + sum(map(self.fineness, node.args))
        if node.value in {"ln", "log"}:
            return Size(math.log2(bits + 2), bits + 2, bits + 2)
        if node.value in _BOUNDED:
            return Size(_BOUNDED[str(node.value)], bits + 2, bits + 2)
        if node.value in _UNBOUNDED:
            return Size(bits + 2, bits + 2, bits + 2)
        if node.value in _EXPONENTIAL:
            grown = 3 * _two_to(above)  # 1 - tanh(x) is 2 exp(-2x), and 2 log2(e) is 2.9
            return Size(grown, max(grown, bits), max(grown, bits))
        if node.value in {"factorial", "binomial"}:
            grown = _two_to(above) * max(above - 1.4, 1.0) + above + 1  # Stirling
            return Size(grown, max(grown, bits), max(grown, bits))
        return Size(above + 2, bits + 2, bits + 2)

    def series(self, node: Node) -> Size:
        """For at most 2^_POINT terms where an end is a letter; long ones are given up with LongSeriesError."""
        _, first, last, body = (self.of(arg) if arg.head != "constant" else Size(0.0, 0.0, 0.0) for arg in node.args)
        try:
            count = self.exact.whole(node.args[2]) - self.exact.whole(node.args[1])
        except (NotRationalError, UndefinedError, TooLargeError):
            count = int(_two_to(max(first.above, last.above)))
        if count > MAX_TERMS:
            raise LongSeriesError("a long sum")
        if node.value == "sum":
            more = math.log2(max(count, 1))
            return Size(body.above + more, body.bits + more, body.bits + more)
        return Size(*(size * max(count, 1) for size in body))


def _rational_size(value: Fraction) -> Size:
    above, below = value.numerator.bit_length(), value.denominator.bit_length()
    return Size(max(0.0, above - below + 1.0), max(0.0, below - above + 1.0), float(above + below))


def _two_to(power: float) -> float:
    if power > math.log2(MAX_BITS):
        raise TooLargeError("a power")
    return math.exp2(power)
