"""How large a value can be and how many bits it takes to tell it from others, estimated before any evaluation."""

import math
from fractions import Fraction
from typing import NamedTuple

from qwen_align.reward.math.exact import (
    MAX_BITS,
    MAX_TERMS,
    Exact,
    LongSeriesError,
    NotRationalError,
    TooLargeError,
    UndefinedError,
)
from qwen_align.reward.math.node import Node

_POINT = 4.0  # bits before the point of a letter's value: letters are given values up to 13
_CONSTANTS = {"pi": 1.66, "e": 1.45, "i": 0.0}
_EXPONENTIAL = frozenset(("sinh", "cosh", "tanh", "coth", "sech", "csch"))
_UNBOUNDED = frozenset(("tan", "cot", "sec", "csc"))
_BOUNDED = frozenset(("sin", "cos", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"))


class Size(NamedTuple):
    """`above`: log2 of a bound on the value, not below 0; `bits`: at least `above`, and enough for small values too."""

    above: float
    bits: float


def size_of(node: Node, exact: Exact) -> Size:
    """The size of the value; raises TooLargeError above MAX_BITS."""
    return _Estimate(exact).of(node)


class _Estimate:
    def __init__(self, exact: Exact) -> None:
        self.exact = exact
        self.known: dict[Node, Size] = {}

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
            return Size(above, above)
        if node.head in {"symbol", "apply"}:
            return Size(_POINT, 2 * _POINT)
        if node.head == "decimal":
            raise TooLargeError("a decimal")
        if node.head == "call":
            return self.call(node)
        if node.head == "series":
            return self.series(node)
        parts = [self.of(arg) for arg in node.args]
        if node.head == "sum":
            more = math.log2(len(parts))
            return Size(max(part.above for part in parts) + more, max(part.bits for part in parts) + more)
        if node.head == "product":
            return Size(sum(part.above for part in parts), sum(part.bits for part in parts))
        if node.head == "quotient":
            return Size(parts[0].above + parts[1].bits, parts[0].bits + parts[1].bits)
        if node.head == "power":
            return self.power(node, parts[0])
        if node.head == "root":
            return Size(parts[0].above / 2, parts[0].bits)
        return parts[0]

    def power(self, node: Node, base: Size) -> Size:
        try:
            factor = float(abs(self.exact.value(node.args[1])))
        except OverflowError:
            raise TooLargeError("a power") from None
        except (NotRationalError, UndefinedError, TooLargeError):
            factor = _two_to(self.of(node.args[1]).above)
        return Size(base.above * factor + 1, base.bits * factor + 1)

    def call(self, node: Node) -> Size:
        parts = [self.of(arg) for arg in node.args]
        above, bits = max(part.above for part in parts), max(part.bits for part in parts)
        if node.value in {"ln", "log"}:
            return Size(math.log2(bits + 2), bits + 2)
        if node.value in _BOUNDED:
            return Size(2.0, bits + 2)
        if node.value in _UNBOUNDED:
            return Size(bits + 2, bits + 2)
        if node.value in _EXPONENTIAL:
            grown = 2 * _two_to(above)
            return Size(grown, max(grown, bits))
        if node.value in {"factorial", "binomial"}:
            grown = _two_to(above) * max(above - 1.4, 1.0) + above + 1  # Stirling
            return Size(grown, max(grown, bits))
        return Size(above + 2, bits + 2)

    def series(self, node: Node) -> Size:
        """For at most 2^_POINT terms where an end is a letter; long ones are given up with LongSeriesError."""
        _, first, last, body = (self.of(arg) if arg.head != "constant" else Size(0.0, 0.0) for arg in node.args)
        try:
            count = self.exact.whole(node.args[2]) - self.exact.whole(node.args[1])
        except (NotRationalError, UndefinedError, TooLargeError):
            count = int(_two_to(max(first.above, last.above)))
        if count > MAX_TERMS:
            raise LongSeriesError("a long sum")
        if node.value == "sum":
            more = math.log2(max(count, 1))
            return Size(body.above + more, body.bits + more)
        return Size(body.above * max(count, 1), body.bits * max(count, 1))


def _rational_size(value: Fraction) -> Size:
    above, below = value.numerator.bit_length(), value.denominator.bit_length()
    return Size(max(0.0, above - below + 1), float(above + below))


def _two_to(power: float) -> float:
    if power > math.log2(MAX_BITS):
        raise TooLargeError("a power")
    return math.exp2(power)
