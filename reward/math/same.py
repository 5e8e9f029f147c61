"""Whether two expressions have the same value for all values of their letters."""

from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.decimals import stands_for
from qwen_align.reward.math.exact import Exact, TooLargeError, UndefinedError
from qwen_align.reward.math.modular import Fingerprint
from qwen_align.reward.math.node import Node, applied, symbols, walk
from qwen_align.reward.math.numeric import Point, UnsupportedError, agree, values
from qwen_align.reward.math.points import N_REAL, N_WHOLE, real_value, whole_value
from qwen_align.reward.math.size import size_of

_MAX_BITS = 2_000  # of values that are evaluated; larger ones are compared by their form
_CONSTANT_BITS = 420  # 126 decimal digits
_POINT_BITS = 160
_FIRST_BITS = 80  # enough to tell most unequal values apart
_MIN_POINTS = 3
_MAX_WORK = 12_000  # about one unit a microsecond

_INDEPENDENT = (frozenset(("pi",)), frozenset(("e",)))  # each transcendental: unequal rational functions of it differ


@lru_cache(maxsize=4_096)
def same(a: Node, b: Node) -> bool | None:
    """Whether the values are the same wherever both are defined; None where that was not decided.

    Undefined values are the same as nothing, an infinity only as itself. A decimal of at least ten digits is the
    same as the number it rounds.
    """
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
        self.has_letters = bool(symbols(a) | symbols(b) | applied(a) | applied(b))
        self.bits = 0
        self.n_points = 0

    def decide(self, *, is_same: bool) -> bool | None:
        """The verdict; `is_same`: the forms are equal, so the values are, where there are any."""
        try:
            exact = Exact()
            self.bits = 2 * int(max(size_of(node, exact).bits for node in self.nodes))
        except TooLargeError:
            return is_same
        self.n_points = min(N_REAL, _MAX_WORK // self.work())
        if self.bits > 2 * _MAX_BITS or self.n_points < 1:
            return is_same or None
        try:
            if is_same:
                return self.is_defined()
            return self.agree_at_points() if self.has_letters else self.constants_agree()
        except (UnsupportedError, TooLargeError):
            return is_same or None

    def work(self) -> int:
        """About the microseconds one evaluation of both sides takes."""
        bits = self.bits + (_POINT_BITS if self.has_letters else _CONSTANT_BITS)
        parts = {part for node in self.nodes for part in walk(node)}
        costly = sum(part.head in {"call", "power", "root", "series"} for part in parts)
        return 3 * len(parts) + costly * (10 + bits * bits // 5_000) + 1

    def is_defined(self) -> bool:
        """Whether there is a point where both have a value."""
        for is_real in (True, False):
            for place in range(self.n_points if self.has_letters else 1):
                try:
                    values(self.nodes, self.point(place), _FIRST_BITS + self.bits, is_real=is_real)
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
        stages = [(False, False)] if is_complex else [(True, False), (True, True), (False, False)]
        for is_real, is_whole in stages:
            agreed = disagreed = 0
            for place in range(N_WHOLE if is_whole else self.n_points):
                try:
                    found = self.agree(self.point(place, is_whole=is_whole), _POINT_BITS, is_real=is_real)
                except UndefinedError:
                    continue
                if found is not True and (is_real or is_complex):
                    return found
                agreed += found is True
                disagreed += found is not True
            if disagreed:
                return None if agreed else False
            if agreed >= min(_MIN_POINTS, self.n_points):
                return True
        return False

    def agree(self, point: Point, bits: int, *, is_real: bool) -> bool | None:
        """Whether the values at one point are the same, which takes more bits where they nearly are."""
        for more in (_FIRST_BITS, bits, 2 * bits):
            found = agree(self.nodes, point, more + self.bits, is_real=is_real)
            if found is False or (found and more > _FIRST_BITS):
                return found
        return None

    def point(self, place: int, *, is_whole: bool = False) -> Point:
        def value_of(name: str) -> Fraction:
            return whole_value(name, place) if is_whole else real_value(name, place)

        return Point(value_of, self.name_of)

    def name_of(self, node: Node) -> str | None:
        """A name for the value of an unknown function, the same for equal arguments; None for a product."""
        if node.value in self.prints.products and len(node.args) == 1:
            return None
        return f"{node.value}{self.prints.of(node)}"
