"""Decides whether two expressions have equal values for all values of their variables."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache, partial

from qwen_align.reward.math.exact_evaluator import ExactEvaluator, evaluate_rational
from qwen_align.reward.math.expression_atom_parser import DEFAULT_BASE
from qwen_align.reward.math.expression_parser import parse_expression
from qwen_align.reward.math.expression_tree import (
    Node,
    get_free_letters,
    get_unknown_functions,
    iterate_nodes,
    substitute_letters,
)
from qwen_align.reward.math.letter_order import is_equal_in_order
from qwen_align.reward.math.magnitude_estimate import estimate_magnitude
from qwen_align.reward.math.modular_fingerprint import Fingerprint
from qwen_align.reward.math.numeric_comparison import evaluate_nodes, measure_difference
from qwen_align.reward.math.rational_arithmetic import LongSeriesError, TooLargeError, UndefinedError, UnsupportedError
from qwen_align.reward.math.rounded_decimals import is_rounding_of
from qwen_align.reward.math.sample_points import (
    N_INTEGER_POINTS,
    N_REAL_POINTS,
    N_SIGNED_POINTS,
    SamplePoint,
    draw_integer_value,
    draw_jump_value,
    draw_real_value,
    draw_signed_value,
)

_MAX_BITS = 4_000  # of values that are evaluated; larger ones are compared by their fingerprints
_CONSTANT_BITS = 420  # 126 decimal digits
_MAX_CACHED_NODES = 400
_POINT_BITS = 160
_FIRST_BITS = 80  # enough to tell most unequal values apart
_MIN_POINTS = 3
_MAX_WORK_UNITS = 12_000  # about one unit a microsecond
# Whether values are real, whether letters are whole numbers.
_DOMAIN_STAGES = ((True, False), (True, True), (False, False))
_EULER = Node("constant", (), "e")
_ROUNDING_FUNCTIONS = frozenset(("floor", "ceil", "mod"))
_COSTLY_HEADS = frozenset(("call", "power", "root"))

# Each is transcendental: unequal rational functions of it differ.
_SINGLE_TRANSCENDENTALS = (frozenset(("pi",)), frozenset(("e",)))


def decide_equality(left: Node, right: Node) -> bool | None:
    """Decides whether two expressions are equal wherever both are defined.

    Returns None where that could not be decided. Undefined values are equal to nothing, an infinity only to itself. A
    decimal of at least ten digits equals the number it rounds. Logarithms without a base may have base ten or e, the
    same on both sides. Products of capital letters are equal only in the same order.
    """
    left, right = _reread_exponent_as_euler_number(left, right), _reread_exponent_as_euler_number(right, left)
    left, right = _replace_printed_euler(left, right), _replace_printed_euler(right, left)
    is_same = _decide_with_cache(left, right)
    if is_same is not True and any(part == DEFAULT_BASE for node in (left, right) for part in iterate_nodes(node)):
        is_same = _decide_with_cache(_use_natural_logarithms(left), _use_natural_logarithms(right)) or is_same
    return is_same and is_equal_in_order(left, right, _decide_with_cache)


def _decide_with_cache(left: Node, right: Node) -> bool | None:
    """Decides the equality of two expressions with a cache, which is bypassed for large expression trees."""
    return (
        _decide_pair(left, right)
        if left.size + right.size <= _MAX_CACHED_NODES
        else _decide_pair.__wrapped__(left, right)
    )


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers
def _decide_pair(left: Node, right: Node) -> bool | None:
    """Decides the equality of two expressions by infinities, fingerprints and rounded decimals, else by evaluation."""
    left_infinity, right_infinity = _get_infinity_sign(left), _get_infinity_sign(right)
    if left_infinity or right_infinity:
        return left_infinity == right_infinity
    fingerprint = Fingerprint()
    try:
        is_same = fingerprint.compute_residues(left) == fingerprint.compute_residues(right)
    except UndefinedError:
        return False
    if not is_same and (is_rounding_of(left, right) or is_rounding_of(right, left)):
        return True
    if not fingerprint.atoms or (not is_same and fingerprint.atoms in _SINGLE_TRANSCENDENTALS):
        return is_same
    return _Comparison(left, right, fingerprint).decide(is_same=is_same)


def _reread_exponent_as_euler_number(node: Node, other_side: Node) -> Node:
    """Rewrites `2e-3` as the expression `2 e - 3` if the other side of the comparison contains Euler's number."""
    text = str(node.value)
    if node.head != "decimal" or "e" not in text or not any(part.value == "e" for part in iterate_nodes(other_side)):
        return node
    factor, _, term = text.partition("e")
    return parse_expression(f"({factor}) e {term}") or node if term[0] in "+-" else node


def _replace_printed_euler(node: Node, other_side: Node) -> Node:
    """Replaces the symbol `E`, as sympy prints it, by Euler's number.

    This is done only where the other side of the comparison has e and no E.
    """
    if (
        "E" not in node.letters
        or "E" in other_side.letters
        or _has_standalone_euler(node)
        or _EULER not in iterate_nodes(other_side)
    ):
        return node
    return substitute_letters(node, {"E": _EULER})


def _has_standalone_euler(node: Node) -> bool:
    """Checks whether Euler's number occurs in an expression other than as the base of a power."""
    return any(part.head != "power" and _EULER in part.args for part in iterate_nodes(node))


def _use_natural_logarithms(node: Node) -> Node:
    """Replaces the unstated base of logarithms in an expression by e."""
    if node == DEFAULT_BASE:
        return Node("constant", (), "e")
    return Node(node.head, tuple(map(_use_natural_logarithms, node.args)), node.value) if node.args else node


def _get_infinity_sign(node: Node) -> int:
    """Returns the sign of an expression that is an infinity, as 1 or -1. Returns 0 for any other expression."""
    if node.head == "negative":
        return -_get_infinity_sign(node.args[0])
    return int(node.head == "constant" and node.value == "infinity")


class _Comparison:
    """A numeric comparison of two expressions with irrational operations, within a budget of work."""

    def __init__(self, left: Node, right: Node, fingerprint: Fingerprint) -> None:
        self.nodes = (left, right)
        self.fingerprint = fingerprint
        self.letters = sorted(get_free_letters(left) | get_free_letters(right))
        self.has_letters = bool(self.letters or get_unknown_functions(left) or get_unknown_functions(right))
        self.bits: int | None = None
        self.work_left = _MAX_WORK_UNITS
        self.part_counts = [sum(counts) for counts in zip(*map(_count_parts, self.nodes), strict=True)]

    def decide(self, *, is_same: bool) -> bool | None:
        """Returns whether the two expressions are equal, by evaluating them.

        Returns None where that could not be decided. `is_same` says that the fingerprints are equal, so the values are,
        where there are any.
        """
        try:
            self.bits = self.estimate_required_bits(self.fingerprint.exact)
        except LongSeriesError:
            return is_same or None
        except TooLargeError:
            if not self.has_letters:
                return is_same
            self.bits = None
        try:
            if is_same:
                return self.is_defined_somewhere()
            return self.compare_at_points() if self.has_letters else self.compare_constants()
        except TooLargeError:
            return is_same
        except UnsupportedError:
            return is_same or None

    def estimate_required_bits(self, exact: ExactEvaluator) -> int:
        """Estimates the precision in bits needed to tell two values of the expressions' size apart.

        Raises TooLargeError above _MAX_BITS.
        """
        bits = int(1.5 * max(estimate_magnitude(node, exact).bits for node in self.nodes))
        if bits > _MAX_BITS:
            raise TooLargeError("a value")
        return bits

    def estimate_bits_at_point(self, point: SamplePoint) -> int:
        """Estimates the required precision in bits at one sample point, where the bound for all points is too large."""
        if self.bits is not None:
            return self.bits
        self.work_left -= 20 * self.part_counts[1]
        if self.work_left < 0:
            raise UnsupportedError("too much work")
        return self.estimate_required_bits(
            ExactEvaluator({name: point.get_letter_value(name) for name in self.letters})
        )

    def spend_work(self, bits: int) -> None:
        """Deducts the cost of one evaluation of both expressions from the work budget.

        Raises UnsupportedError when the budget is used up.
        """
        costly, plain = self.part_counts
        self.work_left -= plain + costly * (15 + bits * bits // 16_000)
        if self.work_left < 0:
            raise UnsupportedError("too much work")

    def is_defined_somewhere(self) -> bool:
        """Checks whether there is a sample point where both expressions have a value."""
        for is_real, is_integer in _DOMAIN_STAGES:
            for point_index in range(N_INTEGER_POINTS if self.has_letters else 1):
                point = self.build_point(point_index, is_integer=is_integer)
                try:
                    bits = _FIRST_BITS + self.estimate_bits_at_point(point)
                    self.spend_work(bits)
                    evaluate_nodes(self.nodes, point, bits, is_real=is_real)
                except UndefinedError:
                    continue
                return True
        return False

    def compare_constants(self) -> bool | None:
        """Compares the values of two expressions without variables.

        Returns None if rounding hides whether they differ.
        """
        try:
            return self.compare_at_point(self.build_point(0), _CONSTANT_BITS, is_real=False)
        except UndefinedError:
            return False

    def compare_at_points(self) -> bool | None:
        """Compares two expressions at real sample points, then at integer ones, then at real ones with complex values.

        One real point where they differ is enough to tell them apart; of complex values that could be another branch.
        """
        is_complex = "i" in self.fingerprint.atoms
        if not self.is_equal_at_jumps():
            return False
        for is_real, is_integer in _DOMAIN_STAGES[-1:] if is_complex else _DOMAIN_STAGES:
            n_agreed = n_disagreed = 0
            for point in self.iterate_points(is_integer=is_integer):
                try:
                    outcome = self.compare_at_point(point, _POINT_BITS, is_real=is_real)
                except (UndefinedError, TooLargeError):
                    continue
                except UnsupportedError:
                    if n_agreed >= _MIN_POINTS:
                        return True
                    raise
                if outcome is not True and (is_real or is_complex):
                    return outcome
                n_agreed += outcome is True
                n_disagreed += outcome is not True
            if n_disagreed:
                return None if n_agreed else False
            if n_agreed >= _MIN_POINTS:
                return True
        return False

    def is_equal_at_jumps(self) -> bool:
        """Checks whether two expressions with floor or ceil are equal at sample points where these functions jump.

        Values of variables that are drawn at random never lie there.
        """
        if _ROUNDING_FUNCTIONS.isdisjoint(self.fingerprint.atoms):
            return True
        for point_index in range(N_INTEGER_POINTS):
            point = SamplePoint(partial(draw_jump_value, point_index=point_index), self.name_unknown_function)
            try:
                if self.compare_at_point(point, _POINT_BITS, is_real=True) is False:
                    return False
            except (UndefinedError, TooLargeError):
                continue
        return True

    def compare_at_point(self, point: SamplePoint, bits: int, *, is_real: bool) -> bool | None:
        """Compares two expressions at one sample point, with more precision where they are nearly equal.

        Returns None if the highest precision does not decide.
        """
        base_bits = self.estimate_bits_at_point(point)
        for extra_bits in (_FIRST_BITS, bits, 2 * bits):
            outcome = self.compare_at_precision(point, extra_bits + base_bits, is_real=is_real)
            if outcome is False or (outcome and extra_bits > _FIRST_BITS):
                return outcome
        return None

    def compare_at_precision(self, point: SamplePoint, bits: int, *, is_real: bool) -> bool | None:
        """Compares two expressions at one sample point, computed to `bits` bits and to twice as many.

        Returns True if the values differ by no more than rounding, False if both precisions show the same difference,
        else None.
        """
        self.spend_work(bits)
        coarse_difference = measure_difference(self.nodes, point, bits, is_real=is_real)
        if coarse_difference.is_within_rounding_error(bits):
            return True
        self.spend_work(2 * bits)
        fine_difference = measure_difference(self.nodes, point, 2 * bits, is_real=is_real)
        if fine_difference.has_vanished_since(coarse_difference, bits):
            return True
        return False if fine_difference.is_unchanged_since(coarse_difference) else None

    def iterate_points(self, *, is_integer: bool) -> Iterator[SamplePoint]:
        """Yields sample points whose variables are all real or all integer."""
        n_real = N_SIGNED_POINTS if len(self.letters) > 1 else N_REAL_POINTS
        for point_index in range(N_INTEGER_POINTS if is_integer else n_real):
            yield self.build_point(point_index, is_integer=is_integer)

    def build_point(self, point_index: int, *, is_integer: bool = False) -> SamplePoint:
        """Builds the sample point of a given index, with a value for each variable."""

        def get_letter_value(name: str) -> Fraction:
            if is_integer:
                return draw_integer_value(name, point_index)
            if len(self.letters) > 1 and name in self.letters:
                return draw_signed_value(name, point_index, self.letters.index(name))
            return draw_real_value(name, point_index % N_REAL_POINTS)

        return SamplePoint(get_letter_value, self.name_unknown_function)

    def name_unknown_function(self, node: Node) -> str:
        """Returns a name for the value of an unknown function, the same for equal arguments."""
        return f"{node.value}{self.fingerprint.compute_residues(node)}"


def _count_parts(node: Node) -> tuple[int, int]:
    """Counts the costly parts (functions and roots) and the plain work units of evaluating an expression.

    Each different part is counted once and costs four plain work units.
    """
    costly = plain = 0
    visited: set[Node] = set()
    pending = [node]
    while pending:
        part = pending.pop()
        if part in visited:
            continue
        visited.add(part)
        costly += part.head in _COSTLY_HEADS
        plain += 4
        if part.head == "series":
            inner_counts = _count_parts(part.args[3])
            costly += _count_series_terms(part) * inner_counts[0]
            plain += _count_series_terms(part) * inner_counts[1]
            pending.extend(part.args[1:3])
        else:
            pending.extend(part.args)
    return costly, plain


def _count_series_terms(series: Node) -> int:
    r"""Counts the terms of a `\sum` or `\prod`. It is taken as 13 where a bound contains a variable."""
    first, last = evaluate_rational(series.args[1]), evaluate_rational(series.args[2])
    return 13 if first is None or last is None else max(1, math.ceil(last - first) + 1)
