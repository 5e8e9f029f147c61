"""Exact rational values of expressions."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.rational_arithmetic import (
    FUNCTIONS,
    MAX_BITS,
    LongSeriesError,
    NotRationalError,
    TooLargeError,
    UndefinedError,
    exact_power,
    exact_root,
    literal,
)
from qwen_align.reward.math.series_closed_form import closed_form

MAX_TERMS = 400  # of a sum or product that is added up term by term
MAX_STEPS = 3_000
MAX_MODULUS_BITS = 512  # of `a^b mod m`, whose exponent may have MAX_BITS


@lru_cache(maxsize=4_096)
def rational(node: Node) -> Fraction | None:
    """The exact value of an expression without letters, None if it is not plainly rational, undefined or too large."""
    try:
        return Exact().value(node)
    except (UndefinedError, NotRationalError, TooLargeError):
        return None


class Exact:
    """Rational values of expressions; values once found are kept, `bound` gives those of bound letters.

    `steps` is what is left of the work allowed, about two microseconds each.
    """

    def __init__(self, bound: dict[str, Fraction] | None = None, steps: list[int] | None = None) -> None:
        self.bound = bound or {}
        self.steps = [MAX_STEPS] if steps is None else steps
        self.known: dict[Node, Fraction | ArithmeticError] = {}

    def value(self, node: Node) -> Fraction:
        """The exact value; raises NotRationalError, UndefinedError or TooLargeError."""
        if node.head == "number":
            assert isinstance(node.value, Fraction)
            return node.value
        known = self.known.get(node)
        if known is None:
            try:
                known = self.bounded(_RULES[node.head](self, node))
            except (NotRationalError, UndefinedError, TooLargeError) as found:
                known = found
            self.known[node] = known
        if isinstance(known, ArithmeticError):
            raise known
        return known

    def bounded(self, value: Fraction) -> Fraction:
        """`value`, which is paid for and may not be too large."""
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        if bits > MAX_BITS:
            raise TooLargeError("a number")
        self.steps[0] -= 1 + bits // 300
        if self.steps[0] < 0:
            raise LongSeriesError("too much work")
        return value

    def whole(self, node: Node) -> int:
        """The value, which must be an integer."""
        value = self.value(node)
        if value.denominator != 1:
            raise NotRationalError("not whole")
        return value.numerator

    def symbol(self, node: Node) -> Fraction:
        value = self.bound.get(str(node.value))
        if value is None:
            raise NotRationalError("a letter")
        return value

    def sum(self, node: Node) -> Fraction:
        total = Fraction(0)
        for term in node.args:
            total = self.bounded(total + self.value(term))
        return total

    def product(self, node: Node) -> Fraction:
        values = [self.value(factor) for factor in node.args]
        total = Fraction(1)
        for value in values:
            total = self.bounded(total * value)
        return total

    def quotient(self, node: Node) -> Fraction:
        above, below = (self.value(arg) for arg in node.args)
        if not below:
            raise UndefinedError("division by zero")
        return above / below

    def power(self, node: Node) -> Fraction:
        base, exponent = (self.value(arg) for arg in node.args)
        if exponent.denominator != 1:
            if exponent.denominator > MAX_TERMS:
                raise NotRationalError("a power")
            base = exact_root(base, exponent.denominator)
        return exact_power(base, exponent.numerator)

    def root(self, node: Node) -> Fraction:
        base, index = self.value(node.args[0]), self.whole(node.args[1])
        if not 0 < index <= MAX_TERMS:
            raise UndefinedError("a root of this index")
        return exact_root(base, index)

    def call(self, node: Node) -> Fraction:
        name = str(node.value)
        if name == "mod" and node.args[0].head == "power":
            return self.power_modulo(node)
        rule = FUNCTIONS.get(name)
        if rule is None:
            raise NotRationalError(name)
        return rule([self.value(arg) for arg in node.args])

    def power_modulo(self, node: Node) -> Fraction:
        """`a^b mod m` without a^b."""
        base, exponent = (self.whole(arg) for arg in node.args[0].args)
        modulus = self.whole(node.args[1])
        if modulus == 0:
            raise UndefinedError("modulo zero")
        if exponent < 0:
            raise NotRationalError("a modular inverse")
        if modulus.bit_length() > MAX_MODULUS_BITS or exponent.bit_length() > 4 * MAX_MODULUS_BITS:
            raise TooLargeError("a modular power")
        return Fraction(pow(base, exponent, modulus))

    def series(self, node: Node) -> Fraction:
        variable, first, last, body = node.args
        start, stop = self.whole(first), self.whole(last)
        is_sum = node.value == "sum"

        def term(index: int) -> Fraction:
            self.steps[0] -= 5
            return Exact({**self.bound, str(variable.value): Fraction(index)}, self.steps).value(body)

        if stop - start >= MAX_TERMS or (stop - start) * body.size > MAX_STEPS // 3:
            found = None if body.size > MAX_TERMS // 10 else closed_form(term, start, stop, self.bounded, is_sum=is_sum)
            if found is None:
                raise LongSeriesError("a long sum")
            return found
        total = Fraction(0 if is_sum else 1)
        for index in range(start, stop + 1):
            total = self.bounded(total + term(index) if is_sum else total * term(index))
        return total

    def decimal(self, node: Node) -> Fraction:
        return literal(str(node.value))

    def constant(self, node: Node) -> Fraction:
        if node.value == "infinity":
            raise UndefinedError("infinity")
        raise NotRationalError(str(node.value))

    def apply(self, node: Node) -> Fraction:
        raise NotRationalError(str(node.value))

    def negative(self, node: Node) -> Fraction:
        return -self.value(node.args[0])


_RULES: dict[str, Callable[[Exact, Node], Fraction]] = {
    "decimal": Exact.decimal,
    "symbol": Exact.symbol,
    "constant": Exact.constant,
    "sum": Exact.sum,
    "product": Exact.product,
    "negative": Exact.negative,
    "quotient": Exact.quotient,
    "power": Exact.power,
    "root": Exact.root,
    "call": Exact.call,
    "apply": Exact.apply,
    "series": Exact.series,
}
