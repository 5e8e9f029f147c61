"""Exact rational values, each step's size bounded before it is taken."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.closed_form import closed_form
from qwen_align.reward.math.node import Node

MAX_BITS = 10_000  # of a numerator or denominator; larger values are compared by their form only
MAX_TERMS = 400  # of a sum or product that is added up term by term
MAX_STEPS = 3_000
MAX_MODULUS_BITS = 512  # of `a^b mod m`, whose exponent may have MAX_BITS


class UndefinedError(ArithmeticError):
    """The expression has no value: a division by zero, the logarithm of zero, an infinity."""


class NotRationalError(ArithmeticError):
    """The value is not plainly rational."""


class TooLargeError(ArithmeticError):
    """The value, or the work to get it, is above the bounds."""


@lru_cache(maxsize=4_096)
def rational(node: Node) -> Fraction | None:
    """The exact value of an expression without letters, None if it is not plainly rational, undefined or too large."""
    try:
        return Exact().value(node)
    except (UndefinedError, NotRationalError, TooLargeError):
        return None


@lru_cache(maxsize=4_096)
def literal(text: str) -> Fraction:
    """The value of digits as written: `0.25`, `0.1(6)` for a repeating decimal, `1.5e3`; raises TooLargeError."""
    mantissa, _, power = text.lower().partition("e")
    if len(power) > 5 or abs(int(power or 0)) > MAX_BITS // 4:
        raise TooLargeError(text)
    mantissa, _, period = mantissa.partition("(")
    whole, _, places = mantissa.partition(".")
    value = Fraction(int(whole + places or "0"), 10 ** len(places))
    if period:
        digits = period.rstrip(")")
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(places))
    return value * Fraction(10) ** int(power or 0)


class LongSeriesError(TooLargeError):
    """A sum or product of more terms than are added up; its value need not be large."""


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
        return _power(base, exponent.numerator)

    def root(self, node: Node) -> Fraction:
        base, index = self.value(node.args[0]), self.whole(node.args[1])
        if not 0 < index <= MAX_TERMS:
            raise UndefinedError("a root of this index")
        return exact_root(base, index)

    def call(self, node: Node) -> Fraction:
        name = str(node.value)
        if name == "mod" and node.args[0].head == "power":
            return self.power_modulo(node)
        rule = _FUNCTIONS.get(name)
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


def exact_root(value: Fraction, index: int) -> Fraction:
    """The rational root, the real one of a negative number for an odd index; raises NotRationalError without one."""
    if value < 0:
        if index % 2 == 0:
            raise NotRationalError("an even root of a negative number")
        return -exact_root(-value, index)
    return Fraction(_whole_root(value.numerator, index), _whole_root(value.denominator, index))


def _whole_root(value: int, index: int) -> int:
    if index == 1 or value < 2:
        return value
    if index == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > 1_000:
            raise NotRationalError("a root of a large number")
        root = round(math.exp(math.log(value) / index)) if value.bit_length() <= index * 40 else _newton(value, index)
    if root**index != value:
        raise NotRationalError("an irrational root")
    return root


def _newton(value: int, index: int) -> int:
    """The whole part of a large root."""
    root = 1 << -(-value.bit_length() // index)
    while True:
        closer = ((index - 1) * root + value // root ** (index - 1)) // index
        if closer >= root:
            return root
        root = closer


def _power(base: Fraction, exponent: int) -> Fraction:
    if base == 0:
        if exponent <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return base
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * (bits - 1) > MAX_BITS:
        raise TooLargeError("a power")
    return base**exponent


def _wholes(values: Sequence[Fraction]) -> list[int]:
    if any(value.denominator != 1 for value in values):
        raise NotRationalError("not whole")
    return [value.numerator for value in values]


def _factorial(values: Sequence[Fraction]) -> Fraction:
    (n,) = _wholes(values)
    if n < 0:
        raise UndefinedError("factorial of a negative number")
    if n > MAX_BITS // 8:  # log2(n!) is above 8 n from there
        raise TooLargeError("a factorial")
    return Fraction(math.factorial(n))


def _binomial(values: Sequence[Fraction]) -> Fraction:
    n, k = _wholes(values)
    if n < 0:
        raise NotRationalError("a binomial of a negative number")
    if k < 0 or k > n:
        return Fraction(0)
    k = min(k, n - k)
    if k * n.bit_length() > MAX_BITS and n > MAX_BITS:
        raise TooLargeError("a binomial")
    return Fraction(math.comb(n, k))


def _modulo(values: Sequence[Fraction]) -> Fraction:
    if not values[1]:
        raise UndefinedError("modulo zero")
    return values[0] % values[1]


def _logarithm(values: Sequence[Fraction]) -> Fraction:
    value, base = values
    if value <= 0 or base <= 0 or base == 1:
        raise UndefinedError("logarithm") if value == 0 or base in {0, 1} else NotRationalError("logarithm")
    if base < 1:
        value, base = 1 / value, 1 / base
    sign = 1
    if value < 1:
        value, sign = 1 / value, -1
    step = _log(base)
    exponent = round(_log(value) / step) if step else 0
    if _power(base, exponent) != value:
        raise NotRationalError("logarithm")
    return Fraction(sign * exponent)


def _log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


_FUNCTIONS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "gcd": lambda values: Fraction(math.gcd(*_wholes(values))),
    "lcm": lambda values: Fraction(math.lcm(*_wholes(values))),
    "max": max,
    "min": min,
    "mod": _modulo,
    "factorial": _factorial,
    "binomial": _binomial,
    "log": _logarithm,
}
