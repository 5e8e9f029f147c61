"""Whether two expressions have the same value for all values of their letters."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache, partial

from qwen_align.reward.math.exact_evaluator import Exact, rational
from qwen_align.reward.math.expression_atom_parser import DEFAULT_BASE
from qwen_align.reward.math.expression_parser import parse
from qwen_align.reward.math.expression_tree import Node, applied, symbols, walk, with_values
from qwen_align.reward.math.magnitude_estimate import size_of
from qwen_align.reward.math.modular_fingerprint import Fingerprint
from qwen_align.reward.math.numeric_comparison import difference, values
from qwen_align.reward.math.rational_arithmetic import LongSeriesError, TooLargeError, UndefinedError, UnsupportedError
from qwen_align.reward.math.rounded_decimals import stands_for
from qwen_align.reward.math.sample_points import (
    N_REAL,
    N_SIGNED,
    N_WHOLE,
    Point,
    jump_value,
    real_value,
    signed_value,
    whole_value,
)

_MAX_BITS = 4_000  # of values that are evaluated; larger ones are compared by their form
_CONSTANT_BITS = 420  # 126 decimal digits
_MAX_CACHED = 400  # nodes
_POINT_BITS = 160
_FIRST_BITS = 80  # enough to tell most unequal values apart
_MIN_POINTS = 3
_MAX_WORK = 12_000  # about one unit a microsecond
_STAGES = ((True, False), (True, True), (False, False))  # whether values are real, whether letters are whole numbers
_EULER = Node("constant", (), "e")
_JUMPING = frozenset(("floor", "ceil", "mod"))
_COSTLY = frozenset(("call", "power", "root"))

_INDEPENDENT = (frozenset(("pi",)), frozenset(("e",)))  # each transcendental: unequal rational functions of it differ


def same(a: Node, b: Node) -> bool | None:
    """Whether the values are the same wherever both are defined; None where that was not decided.

    Undefined values are the same as nothing, an infinity only as itself. A decimal of at least ten digits is the
    same as the number it rounds. Logarithms without a base may have base ten or e, the same on both sides.
    """
    a, b = _euler_reading(a, b), _euler_reading(b, a)
    a, b = _printed_euler(a, b), _printed_euler(b, a)
    is_same = _judged(a, b)
    if is_same is not True and any(part == DEFAULT_BASE for node in (a, b) for part in walk(node)):
        return _judged(_natural(a), _natural(b)) or is_same
    return is_same


def _judged(a: Node, b: Node) -> bool | None:
    return _same(a, b) if a.size + b.size <= _MAX_CACHED else _same.__wrapped__(a, b)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers
def _same(a: Node, b: Node) -> bool | None:
    one, other = _infinity(a), _infinity(b)
    if one or other:
        return one == other
    prints = Fingerprint((applied(a) | applied(b)) & (symbols(a) | symbols(b)))
    try:
        is_same = prints.of(a) == prints.of(b)
    except UndefinedError:
        return False
    if not is_same and (stands_for(a, b) or stands_for(b, a)):
        return True
    if not prints.atoms or (not is_same and prints.atoms in _INDEPENDENT):
        return is_same
    return _Comparison(a, b, prints).decide(is_same=is_same)


def _euler_reading(node: Node, other: Node) -> Node:
    """`2e-3` as a multiple of Euler's number and a term where the other side has Euler's number."""
    text = str(node.value)
    if node.head != "decimal" or "e" not in text or not any(part.value == "e" for part in walk(other)):
        return node
    factor, _, term = text.partition("e")
    return parse(f"({factor}) e {term}") or node if term[0] in "+-" else node


def _printed_euler(node: Node, other: Node) -> Node:
    """A tree whose `E` is Euler's number, as sympy prints it, where the other side has e and no E."""
    if "E" not in node.letters or "E" in other.letters or _has_e(node) or _EULER not in walk(other):
        return node
    return with_values(node, {"E": _EULER})


def _has_e(node: Node) -> bool:
    """Whether Euler's number stands in the tree for more than the base of an exponential function."""
    return any(part.head != "power" and _EULER in part.args for part in walk(node))


def _natural(node: Node) -> Node:
    """The tree with e as the base of logarithms without one."""
    if node == DEFAULT_BASE:
        return Node("constant", (), "e")
    return Node(node.head, tuple(map(_natural, node.args)), node.value) if node.args else node


def _infinity(node: Node) -> int:
    """1 or -1 for an infinity with its sign, else 0."""
    if node.head == "negative":
        return -_infinity(node.args[0])
    return int(node.head == "constant" and node.value == "infinity")


class _Comparison:
    """Two expressions with parts that are no rational operations, `prints` their fingerprints."""

    def __init__(self, a: Node, b: Node, prints: Fingerprint) -> None:
        self.nodes = (a, b)
        self.prints = prints
        self.letters = sorted(symbols(a) | symbols(b))
        self.has_letters = bool(self.letters or applied(a) or applied(b))
        self.bits: int | None = None
        self.left = _MAX_WORK
        self.parts = [sum(counts) for counts in zip(*map(_parts, self.nodes), strict=True)]

    def decide(self, *, is_same: bool) -> bool | None:
        """The verdict; `is_same`: the forms are equal, so the values are, where there are any."""
        try:
            self.bits = self.bits_of(self.prints.exact)
        except LongSeriesError:
            return is_same or None
        except TooLargeError:
            if not self.has_letters:
                return is_same
            self.bits = None
        try:
            if is_same:
                return self.is_defined()
            return self.agree_at_points() if self.has_letters else self.constants_agree()
        except TooLargeError:
            return is_same
        except UnsupportedError:
            return is_same or None

    def bits_of(self, exact: Exact) -> int:
        """The bits that tell values of this size apart, before those that tell rounding from a difference."""
        bits = int(1.5 * max(size_of(node, exact).bits for node in self.nodes))
        if bits > _MAX_BITS:
            raise TooLargeError("a value")
        return bits

    def bits_at(self, point: Point) -> int:
        """The same at one point, where the bound for all points is too large."""
        if self.bits is not None:
            return self.bits
        self.left -= 20 * self.parts[1]
        if self.left < 0:
            raise UnsupportedError("too much work")
        return self.bits_of(Exact({name: point.value_of(name) for name in self.letters}))

    def spend(self, bits: int) -> None:
        """Pays for one evaluation of both sides; raises UnsupportedError when that would be too much work."""
        costly, plain = self.parts
        self.left -= plain + costly * (15 + bits * bits // 16_000)
        if self.left < 0:
            raise UnsupportedError("too much work")

    def is_defined(self) -> bool:
        """Whether there is a point where both have a value."""
        for is_real, is_whole in _STAGES:
            for place in range(N_WHOLE if self.has_letters else 1):
                point = self.point(place, is_whole=is_whole)
                try:
                    bits = _FIRST_BITS + self.bits_at(point)
                    self.spend(bits)
                    values(self.nodes, point, bits, is_real=is_real)
                except UndefinedError:
                    continue
                return True
        return False

    def constants_agree(self) -> bool | None:
        try:
            return self.agree(self.point(0), _CONSTANT_BITS, is_real=False)
        except UndefinedError:
            return False

    def agree_at_points(self) -> bool | None:
        """Agreement at real points, at whole numbers, else at real points with complex values.

        One real point where they differ is enough to tell them apart; of complex values that could be another branch.
        """
        is_complex = "i" in self.prints.atoms
        if not self.agree_where_they_jump():
            return False
        for is_real, is_whole in _STAGES[-1:] if is_complex else _STAGES:
            agreed = disagreed = 0
            for point in self.points(is_whole=is_whole):
                try:
                    found = self.agree(point, _POINT_BITS, is_real=is_real)
                except (UndefinedError, TooLargeError):
                    continue
                except UnsupportedError:
                    if agreed >= _MIN_POINTS:
                        return True
                    raise
                if found is not True and (is_real or is_complex):
                    return found
                agreed += found is True
                disagreed += found is not True
            if disagreed:
                return None if agreed else False
            if agreed >= _MIN_POINTS:
                return True
        return False

    def agree_where_they_jump(self) -> bool:
        """False if functions that round differ at a point where they jump, at which no letter lies by chance."""
        if _JUMPING.isdisjoint(self.prints.atoms):
            return True
        for place in range(N_WHOLE):
            point = Point(partial(jump_value, place=place), self.name_of)
            try:
                if self.agree(point, _POINT_BITS, is_real=True) is False:
                    return False
            except (UndefinedError, TooLargeError):
                continue
        return True

    def agree(self, point: Point, bits: int, *, is_real: bool) -> bool | None:
        """Whether the values at one point are the same, which takes more bits where they nearly are."""
        least = self.bits_at(point)
        for more in (_FIRST_BITS, bits, 2 * bits):
            found = self.judged(point, more + least, is_real=is_real)
            if found is False or (found and more > _FIRST_BITS):
                return found
        return None

    def judged(self, point: Point, bits: int, *, is_real: bool) -> bool | None:
        """True if the values differ by no more than rounding, False if twice the bits show the same difference."""
        self.spend(bits)
        first = difference(self.nodes, point, bits, is_real=is_real)
        if first.is_rounding(bits):
            return True
        self.spend(2 * bits)
        second = difference(self.nodes, point, 2 * bits, is_real=is_real)
        if second.vanishes(first, bits):
            return True
        return False if second.is_near(first) else None

    def points(self, *, is_whole: bool) -> Iterator[Point]:
        n_real = N_SIGNED if len(self.letters) > 1 else N_REAL
        for place in range(N_WHOLE if is_whole else n_real):
            yield self.point(place, is_whole=is_whole)

    def point(self, place: int, *, is_whole: bool = False) -> Point:
        def value_of(name: str) -> Fraction:
            if is_whole:
                return whole_value(name, place)
            if len(self.letters) > 1 and name in self.letters:
                return signed_value(name, place, self.letters.index(name))
            return real_value(name, place % N_REAL)

        return Point(value_of, self.name_of)

    def name_of(self, node: Node) -> str | None:
        """A name for the value of an unknown function, the same for equal arguments; None for a product."""
        return None if self.prints.is_product(node) else f"{node.value}{self.prints.of(node)}"


def _parts(node: Node) -> tuple[int, int]:
    """How many different parts an evaluation has to work out: functions and roots, then four units for any."""
    costly = plain = 0
    met: set[Node] = set()
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part in met:
            continue
        met.add(part)
        costly += part.head in _COSTLY
        plain += 4
        if part.head == "series":
            inner = _parts(part.args[3])
            costly += _n_terms(part) * inner[0]
            plain += _n_terms(part) * inner[1]
            waiting.extend(part.args[1:3])
        else:
            waiting.extend(part.args)
    return costly, plain


def _n_terms(series: Node) -> int:
    """How many terms a sum has; letters are at most 13."""
    first, last = rational(series.args[1]), rational(series.args[2])
    return 13 if first is None or last is None else max(1, math.ceil(last - first) + 1)
