"""Estimates the size of an expression's value and the precision needed to compare it, before any evaluation."""

import math
from fractions import Fraction
from typing import NamedTuple

from qwen_align.reward.math.exact_evaluator import MAX_TERMS, ExactEvaluator
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.rational_arithmetic import (
    MAX_BITS,
    LongSeriesError,
    NotRationalError,
    TooLargeError,
    UndefinedError,
)

_LETTER_BITS = 4.0  # bits before the point of a letter's value: letters are given values up to 13
_EVERYDAY_BITS = 32.0
_CONSTANT_LOG2 = {"pi": 1.66, "e": 1.45, "i": 0.0}
_EXPONENTIAL_FUNCTIONS = frozenset(("sinh", "cosh", "tanh", "coth", "sech", "csch"))
_UNBOUNDED_FUNCTIONS = frozenset(("tan", "cot", "sec", "csc"))
_BOUNDED_FUNCTIONS = {
    **dict.fromkeys(("sin", "cos"), 0.0),
    **dict.fromkeys(("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"), 2.0),
}


class Magnitude(NamedTuple):
    """Upper bounds on the absolute values of a number and of its inverse, as base-2 logarithms.

    `log2_upper` bounds the number, `log2_inverse` its inverse; neither is below 0. `bits` is at least as large as both.
    """

    log2_upper: float
    log2_inverse: float
    bits: float


def estimate_magnitude(node: Node, exact: ExactEvaluator) -> Magnitude:
    """Estimates bounds on the size of an expression's value. Raises TooLargeError above MAX_BITS."""
    return _MagnitudeEstimator(exact).estimate(node)


class _MagnitudeEstimator:
    """An estimator of bounds on the values of expression tree nodes, with a cache."""

    def __init__(self, exact: ExactEvaluator) -> None:
        self.exact = exact
        self.cache: dict[Node, Magnitude] = {}
        self.fine_bits: dict[Node, float] = {}

    def estimate(self, node: Node) -> Magnitude:
        """Estimates bounds on the size of an expression's value, from the exact value where it is rational.

        Raises TooLargeError above MAX_BITS.
        """
        magnitude = self.cache.get(node)
        if magnitude is None:
            magnitude = self.measure_exactly(node) or self.estimate_by_rule(node)
            if magnitude.bits > MAX_BITS:
                raise TooLargeError("a value")
            self.cache[node] = magnitude
        return magnitude

    def measure_exactly(self, node: Node) -> Magnitude | None:
        """Returns bounds on the size of an expression's value, computed from its exact value.

        Returns None if the value is not rational.
        """
        try:
            return _measure_rational(self.exact.evaluate(node))
        except (NotRationalError, UndefinedError, TooLargeError):
            return None

    def estimate_by_rule(self, node: Node) -> Magnitude:
        """Estimates bounds on the size of an expression's value from its operation and the bounds of its arguments."""
        if node.head == "constant":
            log2_upper = _CONSTANT_LOG2.get(str(node.value), _LETTER_BITS)
            return Magnitude(log2_upper, 0.0, log2_upper)
        if node.head in {"symbol", "apply"}:
            return Magnitude(_LETTER_BITS, _LETTER_BITS, 2 * _LETTER_BITS)
        if node.head == "decimal":
            raise TooLargeError("a decimal")
        if node.head == "call":
            return self.estimate_call(node)
        if node.head == "series":
            return self.estimate_series(node)
        return self.estimate_operation(node, [self.estimate(arg) for arg in node.args])

    def estimate_operation(self, node: Node, part_magnitudes: list[Magnitude]) -> Magnitude:
        """Estimates bounds on the size of a sum, product, quotient, power, root or negated value."""
        first_part = part_magnitudes[0]
        if node.head == "sum":
            log2_count = math.log2(len(part_magnitudes))
            bits = max(part.bits for part in part_magnitudes) + log2_count
            return Magnitude(max(part.log2_upper for part in part_magnitudes) + log2_count, bits, bits)
        if node.head == "product":
            log2_upper, log2_inverse, bits = (sum(sizes) for sizes in zip(*part_magnitudes, strict=True))
            return Magnitude(log2_upper, log2_inverse, bits)
        if node.head == "quotient":
            log2_upper, log2_inverse = (
                first_part.log2_upper + part_magnitudes[1].log2_inverse,
                first_part.log2_inverse + part_magnitudes[1].log2_upper,
            )
            return Magnitude(log2_upper, log2_inverse, first_part.bits + part_magnitudes[1].bits)
        if node.head == "power":
            exponent_bound = self.bound_exponent(node.args[1])
            log2_upper, log2_inverse, bits = (size * exponent_bound + 1 for size in first_part)
            fine_bits = self.count_excess_constant_bits(node.args[1])
            return Magnitude(log2_upper, log2_inverse, bits + 2 * fine_bits + (_EVERYDAY_BITS if fine_bits else 0.0))
        if node.head == "root":
            return Magnitude(
                first_part.log2_upper / 2,
                first_part.log2_inverse / 2,
                first_part.bits + self.count_excess_constant_bits(node.args[0]),
            )
        return first_part

    def count_excess_constant_bits(self, node: Node) -> float:
        """Counts the bits of an expression's constants that exceed those of everyday numbers.

        As many more are needed to tell a function's value at a tiny argument from that of its first terms: near zero,
        cos x differs from 1 by half the square of x.
        """
        bits = self.fine_bits.get(node)
        if bits is None:
            if node.letters or node.unknown_functions:
                bits = sum(map(self.count_excess_constant_bits, node.args))
            else:
                bits = max(0.0, self.estimate(node).bits - _EVERYDAY_BITS)
            self.fine_bits[node] = bits
        return bits

    def bound_exponent(self, node: Node) -> float:
        """Returns an upper bound on the absolute value of an exponent."""
        try:
            return float(abs(self.exact.evaluate(node)))
        except OverflowError:
            raise TooLargeError("a power") from None
        except (NotRationalError, UndefinedError, TooLargeError):
            return _raise_two_to(self.estimate(node).log2_upper)

    def estimate_call(self, node: Node) -> Magnitude:
        """Estimates bounds on the size of a known function's value."""
        part_magnitudes = [self.estimate(arg) for arg in node.args]
        log2_upper = max(part.log2_upper for part in part_magnitudes)
        bits = max(part.bits for part in part_magnitudes) + sum(map(self.count_excess_constant_bits, node.args))
        if node.value in {"ln", "log"}:
            return Magnitude(math.log2(bits + 2), bits + 2, bits + 2)
        if node.value in _BOUNDED_FUNCTIONS:
            return Magnitude(_BOUNDED_FUNCTIONS[str(node.value)], bits + 2, bits + 2)
        if node.value in _UNBOUNDED_FUNCTIONS:
            return Magnitude(bits + 2, bits + 2, bits + 2)
        if node.value in _EXPONENTIAL_FUNCTIONS:
            log2_grown = 3 * _raise_two_to(log2_upper)  # 1 - tanh(x) is 2 exp(-2x), and 2 log2(e) is 2.9
            return Magnitude(log2_grown, max(log2_grown, bits), max(log2_grown, bits))
        if node.value in {"factorial", "binomial"}:
            log2_grown = _raise_two_to(log2_upper) * max(log2_upper - 1.4, 1.0) + log2_upper + 1  # Stirling
            return Magnitude(log2_grown, max(log2_grown, bits), max(log2_grown, bits))
        return Magnitude(log2_upper + 2, bits + 2, bits + 2)

    def estimate_series(self, node: Node) -> Magnitude:
        r"""Estimates bounds on the size of a `\sum` or `\prod`.

        Raises LongSeriesError if it has too many terms. Where an end is a letter, there are at most 2^_LETTER_BITS
        terms.
        """
        _, first, last, body = (
            self.estimate(arg) if arg.head != "constant" else Magnitude(0.0, 0.0, 0.0) for arg in node.args
        )
        try:
            n_terms = self.exact.evaluate_integer(node.args[2]) - self.exact.evaluate_integer(node.args[1])
        except (NotRationalError, UndefinedError, TooLargeError):
            n_terms = int(_raise_two_to(max(first.log2_upper, last.log2_upper)))
        if n_terms > MAX_TERMS:
            raise LongSeriesError("a long sum")
        if node.value == "sum":
            log2_count = math.log2(max(n_terms, 1))
            return Magnitude(body.log2_upper + log2_count, body.bits + log2_count, body.bits + log2_count)
        return Magnitude(*(size * max(n_terms, 1) for size in body))


def _measure_rational(value: Fraction) -> Magnitude:
    """Returns bounds on the size of a fraction, from the bit lengths of its numerator and denominator."""
    numerator_bits, denominator_bits = value.numerator.bit_length(), value.denominator.bit_length()
    return Magnitude(
        max(0.0, numerator_bits - denominator_bits + 1.0),
        max(0.0, denominator_bits - numerator_bits + 1.0),
        float(numerator_bits + denominator_bits),
    )


def _raise_two_to(power: float) -> float:
    """Returns 2 raised to a power. Raises TooLargeError if the result is above MAX_BITS."""
    if power > math.log2(MAX_BITS):
        raise TooLargeError("a power")
    return math.exp2(power)
