"""The evaluation of an expression by mpmath, real or complex; branches are those of school books.

A root of odd index of a negative number is real. A real value asks for real parts: the logarithm of a negative number
has none. Other values take the principal branch. What is smaller than rounding would leave of zero is zero.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from qwen_align.reward.math.exact_evaluator import MAX_TERMS, Exact
from qwen_align.reward.math.expression_tree import Node, symbols
from qwen_align.reward.math.rational_arithmetic import NotRationalError, TooLargeError, UndefinedError, UnsupportedError
from qwen_align.reward.math.sample_points import Point

_MAX_INDEX = 32  # of a root; above it logarithms are faster
Number = Any  # mpmath's mpf or mpc


class Evaluation:
    """Values at one point, in the precision of `context`; `bound` are the values of the letters."""

    def __init__(self, context: Any, point: Point, bound: dict[str, Fraction], is_real: bool) -> None:
        self.context = context
        self.point = point
        self.is_real = is_real
        self.bound = bound
        self.exact = Exact(bound)
        self.least = -(context.prec * 4) // 5
        self.known: dict[Node, Number] = {}

    def value(self, node: Node) -> Number:
        found = self.known.get(node)
        if found is None:
            found = self.known[node] = _RULES[node.head](self, node)
        return found

    def fraction(self, value: Fraction) -> Number:
        whole = self.context.mpf(value.numerator)
        return whole if value.denominator == 1 else whole / value.denominator

    def number(self, node: Node) -> Number:
        return self.fraction(self.exact.value(node))

    def constant(self, node: Node) -> Number:
        if node.value == "infinity":
            raise UndefinedError("infinity")
        if node.value == "i":
            if self.is_real:
                raise UndefinedError("an imaginary part")
            return self.context.mpc(0, 1)
        return +(self.context.pi if node.value == "pi" else self.context.e)

    def sum(self, node: Node) -> Number:
        terms = [self.value(arg) for arg in node.args]
        total = self.context.mpf(0)
        for term in terms:
            total += term
        size = max((self.context.mag(term) for term in terms if term), default=0)
        return self.snapped(total, size)

    def product(self, node: Node) -> Number:
        total = self.value(node.args[0])
        for arg in node.args[1:]:
            total = total * self.value(arg)
        return total

    def negative(self, node: Node) -> Number:
        return -self.value(node.args[0])

    def quotient(self, node: Node) -> Number:
        return self.divided(self.value(node.args[0]), self.value(node.args[1]))

    def divided(self, above: Number, below: Number) -> Number:
        if not below or self.context.mag(below) < self.least:
            raise UndefinedError("division by zero")
        return above / below

    def power(self, node: Node) -> Number:
        base, exponent = self.value(node.args[0]), node.args[1]
        try:
            known = self.exact.value(exponent)
        except (NotRationalError, TooLargeError):
            return self.raised(base, self.value(exponent))
        if known.denominator == 1:
            return self.whole_power(base, known.numerator)
        if known.denominator > MAX_TERMS or symbols(exponent):
            return self.raised(base, self.fraction(known))
        return self.whole_power(self.rooted(base, known.denominator), known.numerator)

    def whole_power(self, base: Number, exponent: int) -> Number:
        if not base and exponent <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return self.snapped(base**exponent)

    def raised(self, base: Number, exponent: Number) -> Number:
        if not base:
            if self.is_complex(exponent) or exponent <= 0:
                raise UndefinedError("zero to a power that is not positive")
            return base
        if self.is_real and base < 0:
            raise UndefinedError("a power of a negative number")
        return self.snapped(self.context.exp(exponent * self.context.log(base)))

    def root(self, node: Node) -> Number:
        base = self.value(node.args[0])
        try:
            index = self.exact.whole(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.raised(base, self.divided(self.context.mpf(1), self.value(node.args[1])))
        if not 0 < index <= MAX_TERMS:
            raise UndefinedError("a root of this index")
        return self.rooted(base, index)

    def rooted(self, base: Number, index: int) -> Number:
        if not self.is_complex(base) and base < 0:
            if index % 2:
                return -self.rooted(-base, index)
            if self.is_real:
                raise UndefinedError("an even root of a negative number")
        if index == 2:
            return self.context.sqrt(base)
        return (
            self.context.root(base, index)
            if index <= _MAX_INDEX
            else self.raised(base, self.fraction(Fraction(1, index)))
        )

    def call(self, node: Node) -> Number:
        name = str(node.value)
        if name in _ON_RATIONALS:
            try:
                return self.fraction(self.exact.value(node))
            except NotRationalError:
                if name in _ON_WHOLE:
                    raise UndefinedError(f"{name} of what is not whole") from None
        rule = _FUNCTIONS.get(name)
        if rule is None:
            raise UnsupportedError(name)
        found = rule(self, *[self.value(arg) for arg in node.args])
        if self.is_real and self.is_complex(found):
            raise UndefinedError("no real value")
        return found

    def series(self, node: Node) -> Number:
        variable, first, last, body = node.args
        try:
            start, stop = self.exact.whole(first), self.exact.whole(last)
        except UndefinedError:
            raise UnsupportedError("an infinite sum") from None
        except NotRationalError:
            raise UndefinedError("the ends of a sum are not whole") from None
        if (stop - start) * body.size > MAX_TERMS * 4:
            raise UnsupportedError("a long sum")
        is_sum = node.value == "sum"
        total = self.context.mpf(0 if is_sum else 1)
        for index in range(start, stop + 1):
            bound = {**self.bound, str(variable.value): Fraction(index)}
            term = Evaluation(self.context, self.point, bound, self.is_real).value(body)
            total = total + term if is_sum else total * term
        return total

    def apply(self, node: Node) -> Number:
        name = self.point.name_of(node)
        if name is None:
            return self.fraction(self.point.value_of(str(node.value))) * self.value(node.args[0])
        return self.fraction(self.point.value_of(name))

    def is_complex(self, value: Number) -> bool:
        return isinstance(value, self.context.mpc)

    def snapped(self, value: Number, size: int = 0) -> Number:
        """`value` with parts that are only rounding, next to `size` (log2) or to its other part, set to zero."""
        if not self.is_complex(value):
            return value if not value or self.context.mag(value) >= self.least + size else self.context.mpf(0)
        real, imaginary = value.real, value.imag
        least = self.least + max(size, self.context.mag(value) if value else 0)
        if not imaginary or self.context.mag(imaginary) < least:
            return real if real and self.context.mag(real) >= self.least + size else self.context.mpf(0)
        return value if not real or self.context.mag(real) >= least else self.context.mpc(0, imaginary)

    def logarithm(self, value: Number) -> Number:
        if not value or self.context.mag(value) < self.least:
            raise UndefinedError("logarithm of zero")
        if self.is_real and value < 0:
            raise UndefinedError("logarithm of a negative number")
        return self.snapped(self.context.log(value))

    def sine(self, value: Number) -> Number:
        return self.snapped(self.context.sin(value))

    def cosine(self, value: Number) -> Number:
        return self.snapped(self.context.cos(value))

    def ordered(self, value: Number) -> Number:
        if self.is_complex(value):
            raise UndefinedError("complex numbers have no order")
        return value

    def floor(self, value: Number) -> Number:
        """The whole part; what is only rounding away from a whole number is that number."""
        nearest = self.context.nint(self.ordered(value))
        if abs(value - nearest) < self.context.ldexp(1, self.least + max(0, self.context.mag(value))):
            return nearest
        return self.context.floor(value)

    def modulo(self, value: Number, modulus: Number) -> Number:
        return value - modulus * self.floor(self.divided(value, modulus))

    def inverse(self, name: str, value: Number) -> Number:
        return self.snapped(getattr(self.context, name)(value))


_RULES: dict[str, Callable[[Evaluation, Node], Number]] = {
    "number": Evaluation.number,
    "decimal": Evaluation.number,
    "symbol": Evaluation.number,
    "constant": Evaluation.constant,
    "sum": Evaluation.sum,
    "product": Evaluation.product,
    "negative": Evaluation.negative,
    "quotient": Evaluation.quotient,
    "power": Evaluation.power,
    "root": Evaluation.root,
    "call": Evaluation.call,
    "series": Evaluation.series,
    "apply": Evaluation.apply,
}

_ON_WHOLE = frozenset(("factorial", "binomial", "gcd", "lcm"))
_ON_RATIONALS = frozenset(("floor", "ceil", "gcd", "lcm", "mod", "factorial", "binomial", "log"))

_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "sin": Evaluation.sine,
    "cos": Evaluation.cosine,
    "tan": lambda one, x: one.divided(one.sine(x), one.cosine(x)),
    "cot": lambda one, x: one.divided(one.cosine(x), one.sine(x)),
    "sec": lambda one, x: one.divided(one.context.mpf(1), one.cosine(x)),
    "csc": lambda one, x: one.divided(one.context.mpf(1), one.sine(x)),
    "sinh": lambda one, x: one.context.sinh(x),
    "cosh": lambda one, x: one.context.cosh(x),
    "tanh": lambda one, x: one.context.tanh(x),
    "coth": lambda one, x: one.divided(one.context.mpf(1), one.context.tanh(x)),
    "sech": lambda one, x: one.divided(one.context.mpf(1), one.context.cosh(x)),
    "csch": lambda one, x: one.divided(one.context.mpf(1), one.context.sinh(x)),
    "arcsin": lambda one, x: one.inverse("asin", x),
    "arccos": lambda one, x: one.inverse("acos", x),
    "arctan": lambda one, x: one.inverse("atan", x),
    "arccot": lambda one, x: one.context.pi / 2 - one.inverse("atan", x),
    "arcsec": lambda one, x: one.inverse("acos", one.divided(one.context.mpf(1), x)),
    "arccsc": lambda one, x: one.inverse("asin", one.divided(one.context.mpf(1), x)),
    "arsinh": lambda one, x: one.inverse("asinh", x),
    "arcosh": lambda one, x: one.inverse("acosh", x),
    "artanh": lambda one, x: one.inverse("atanh", x),
    "arcsinh": lambda one, x: one.inverse("asinh", x),
    "arccosh": lambda one, x: one.inverse("acosh", x),
    "arctanh": lambda one, x: one.inverse("atanh", x),
    "ln": Evaluation.logarithm,
    "log": lambda one, x, base: one.divided(one.logarithm(x), one.logarithm(base)),
    "abs": lambda one, x: abs(x),
    "floor": Evaluation.floor,
    "ceil": lambda one, x: -one.floor(-x),
    "mod": Evaluation.modulo,
    "max": lambda one, *several: max(one.ordered(x) for x in several),
    "min": lambda one, *several: min(one.ordered(x) for x in several),
    "degrees": lambda one, x: x * one.context.pi / 180,
}
