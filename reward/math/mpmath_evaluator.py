"""Evaluates an expression with mpmath over the real or complex numbers, with the branches used in school books.

A root of odd index of a negative number is real. A real value asks for real parts: the logarithm of a negative number
has none. Other values take the principal branch. What is smaller than rounding would leave of zero is zero.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from qwen_align.reward.math.exact_evaluator import MAX_TERMS, ExactEvaluator
from qwen_align.reward.math.expression_tree import Node, get_free_letters
from qwen_align.reward.math.rational_arithmetic import NotRationalError, TooLargeError, UndefinedError, UnsupportedError
from qwen_align.reward.math.sample_points import SamplePoint

_MAX_ROOT_INDEX = 32  # above it logarithms are faster
MpNumber = Any  # mpmath's mpf or mpc


class MpmathEvaluator:
    """An evaluator of expression tree nodes at one sample point, with the precision of the mpmath `context`.

    `bound_values` are the values of the variables.
    """

    def __init__(self, context: Any, point: SamplePoint, bound_values: dict[str, Fraction], is_real: bool) -> None:
        self.context = context
        self.point = point
        self.is_real = is_real
        self.bound_values = bound_values
        self.exact = ExactEvaluator(bound_values)
        self.least_magnitude = -(context.prec * 4) // 5
        self.cache: dict[Node, MpNumber] = {}

    def evaluate(self, node: Node) -> MpNumber:
        """Returns the numeric value of an expression tree node.

        Raises UndefinedError or UnsupportedError if it has none.
        """
        result = self.cache.get(node)
        if result is None:
            result = self.cache[node] = _HEAD_RULES[node.head](self, node)
        return result

    def to_mpf(self, value: Fraction) -> MpNumber:
        """Converts a fraction to a real number of mpmath."""
        numerator = self.context.mpf(value.numerator)
        return numerator if value.denominator == 1 else numerator / value.denominator

    def evaluate_number(self, node: Node) -> MpNumber:
        """Returns the numeric value of a number, a decimal or a variable."""
        return self.to_mpf(self.exact.evaluate(node))

    def evaluate_constant(self, node: Node) -> MpNumber:
        """Returns the numeric value of pi, e or i.

        Raises UndefinedError for an infinity, and for i where values are real.
        """
        if node.value == "infinity":
            raise UndefinedError("infinity")
        if node.value == "i":
            if self.is_real:
                raise UndefinedError("an imaginary part")
            return self.context.mpc(0, 1)
        return +(self.context.pi if node.value == "pi" else self.context.e)

    def evaluate_sum(self, node: Node) -> MpNumber:
        """Returns the numeric value of a sum, where a result as small as the rounding error is zero."""
        terms = [self.evaluate(arg) for arg in node.args]
        total = self.context.mpf(0)
        for term in terms:
            total += term
        size = max((self.context.mag(term) for term in terms if term), default=0)
        return self.drop_rounding_residue(total, size)

    def evaluate_product(self, node: Node) -> MpNumber:
        """Returns the numeric value of a product, by multiplying the values of its factors."""
        total = self.evaluate(node.args[0])
        for arg in node.args[1:]:
            total = total * self.evaluate(arg)
        return total

    def evaluate_negative(self, node: Node) -> MpNumber:
        """Returns the numeric value of a negated expression."""
        return -self.evaluate(node.args[0])

    def evaluate_quotient(self, node: Node) -> MpNumber:
        """Returns the numeric value of a quotient, the numerator divided by the denominator."""
        return self.divide(self.evaluate(node.args[0]), self.evaluate(node.args[1]))

    def divide(self, numerator: MpNumber, denominator: MpNumber) -> MpNumber:
        """Divides one number by another. Raises UndefinedError if the divisor is zero within rounding."""
        if not denominator or self.context.mag(denominator) < self.least_magnitude:
            raise UndefinedError("division by zero")
        return numerator / denominator

    def evaluate_power(self, node: Node) -> MpNumber:
        """Returns the numeric value of a power. A rational exponent is applied as an integer power of a root."""
        base, exponent = self.evaluate(node.args[0]), node.args[1]
        try:
            exact_exponent = self.exact.evaluate(exponent)
        except (NotRationalError, TooLargeError):
            return self.raise_to_power(base, self.evaluate(exponent))
        if exact_exponent.denominator == 1:
            return self.raise_to_integer(base, exact_exponent.numerator)
        if exact_exponent.denominator > MAX_TERMS or get_free_letters(exponent):
            return self.raise_to_power(base, self.to_mpf(exact_exponent))
        return self.raise_to_integer(self.take_root(base, exact_exponent.denominator), exact_exponent.numerator)

    def raise_to_integer(self, base: MpNumber, exponent: int) -> MpNumber:
        """Computes an integer power of a number."""
        if not base and exponent <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return self.drop_rounding_residue(base**exponent)

    def raise_to_power(self, base: MpNumber, exponent: MpNumber) -> MpNumber:
        """Computes a real or complex power of a number, by exponential and logarithm."""
        if not base:
            if self.is_complex(exponent) or exponent <= 0:
                raise UndefinedError("zero to a power that is not positive")
            return base
        if self.is_real and base < 0:
            raise UndefinedError("a power of a negative number")
        return self.drop_rounding_residue(self.context.exp(exponent * self.context.log(base)))

    def evaluate_root(self, node: Node) -> MpNumber:
        """Returns the numeric value of a root node."""
        base = self.evaluate(node.args[0])
        try:
            index = self.exact.evaluate_integer(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.raise_to_power(base, self.divide(self.context.mpf(1), self.evaluate(node.args[1])))
        if not 0 < index <= MAX_TERMS:
            raise UndefinedError("a root of this index")
        return self.take_root(base, index)

    def take_root(self, base: MpNumber, index: int) -> MpNumber:
        """Returns the root of a number for an integer index. A negative number has a real root for an odd index."""
        if not self.is_complex(base) and base < 0:
            if index % 2:
                return -self.take_root(-base, index)
            if self.is_real:
                raise UndefinedError("an even root of a negative number")
        if index == 2:
            return self.context.sqrt(base)
        return (
            self.context.root(base, index)
            if index <= _MAX_ROOT_INDEX
            else self.raise_to_power(base, self.to_mpf(Fraction(1, index)))
        )

    def evaluate_call(self, node: Node) -> MpNumber:
        """Returns the numeric value of a known function applied to its arguments."""
        name = str(node.value)
        if name in _RATIONAL_FUNCTIONS:
            try:
                return self.to_mpf(self.exact.evaluate(node))
            except NotRationalError:
                if name in _INTEGER_FUNCTIONS:
                    raise UndefinedError(f"{name} of what is not whole") from None
        rule = _FUNCTION_RULES.get(name)
        if rule is None:
            raise UnsupportedError(name)
        result = rule(self, *[self.evaluate(arg) for arg in node.args])
        if self.is_real and self.is_complex(result):
            raise UndefinedError("no real value")
        return result

    def evaluate_series(self, node: Node) -> MpNumber:
        r"""Returns the numeric value of a finite `\sum` or `\prod`.

        Raises UnsupportedError for a long or infinite one.
        """
        variable, first, last, body = node.args
        try:
            start, stop = self.exact.evaluate_integer(first), self.exact.evaluate_integer(last)
        except UndefinedError:
            raise UnsupportedError("an infinite sum") from None
        except NotRationalError:
            raise UndefinedError("the ends of a sum are not whole") from None
        if (stop - start) * body.size > MAX_TERMS * 4:
            raise UnsupportedError("a long sum")
        is_sum = node.value == "sum"
        total = self.context.mpf(0 if is_sum else 1)
        for index in range(start, stop + 1):
            bound_values = {**self.bound_values, str(variable.value): Fraction(index)}
            term = MpmathEvaluator(self.context, self.point, bound_values, self.is_real).evaluate(body)
            total = total + term if is_sum else total * term
        return total

    def evaluate_unknown_function(self, node: Node) -> MpNumber:
        """Returns the value that the sample point assigns to a call of an unknown function."""
        return self.to_mpf(self.point.get_letter_value(self.point.get_call_name(node)))

    def is_complex(self, value: MpNumber) -> bool:
        """Checks whether a number has mpmath's complex type."""
        return isinstance(value, self.context.mpc)

    def drop_rounding_residue(self, value: MpNumber, size: int = 0) -> MpNumber:
        """Sets the real and imaginary parts of a value to zero where they are only rounding error.

        They are compared with `size` (log2) or with the other part.
        """
        if not self.is_complex(value):
            return value if not value or self.context.mag(value) >= self.least_magnitude + size else self.context.mpf(0)
        real, imaginary = value.real, value.imag
        least_magnitude = self.least_magnitude + max(size, self.context.mag(value) if value else 0)
        if not imaginary or self.context.mag(imaginary) < least_magnitude:
            return real if real and self.context.mag(real) >= self.least_magnitude + size else self.context.mpf(0)
        return value if not real or self.context.mag(real) >= least_magnitude else self.context.mpc(0, imaginary)

    def take_logarithm(self, value: MpNumber) -> MpNumber:
        """Returns the natural logarithm of a number.

        Raises UndefinedError for zero, and for a negative number in real evaluation.
        """
        if not value or self.context.mag(value) < self.least_magnitude:
            raise UndefinedError("logarithm of zero")
        if self.is_real and value < 0:
            raise UndefinedError("logarithm of a negative number")
        return self.drop_rounding_residue(self.context.log(value))

    def take_sine(self, value: MpNumber) -> MpNumber:
        """Returns the sine of a number."""
        return self.drop_rounding_residue(self.context.sin(value))

    def take_cosine(self, value: MpNumber) -> MpNumber:
        """Returns the cosine of a number."""
        return self.drop_rounding_residue(self.context.cos(value))

    def require_real(self, value: MpNumber) -> MpNumber:
        """Returns a value if it is real. Raises UndefinedError for a complex value, which has no order."""
        if self.is_complex(value):
            raise UndefinedError("complex numbers have no order")
        return value

    def take_floor(self, value: MpNumber) -> MpNumber:
        """Rounds a number down to an integer. A number within rounding error of an integer becomes that integer."""
        nearest = self.context.nint(self.require_real(value))
        if abs(value - nearest) < self.context.ldexp(1, self.least_magnitude + max(0, self.context.mag(value))):
            return nearest
        return self.context.floor(value)

    def compute_remainder(self, value: MpNumber, modulus: MpNumber) -> MpNumber:
        """Returns the remainder of dividing a number by a modulus."""
        return value - modulus * self.take_floor(self.divide(value, modulus))

    def apply_inverse_function(self, name: str, value: MpNumber) -> MpNumber:
        """Returns an inverse trigonometric or hyperbolic function of a number, by its mpmath name such as asin."""
        return self.drop_rounding_residue(getattr(self.context, name)(value))


_HEAD_RULES: dict[str, Callable[[MpmathEvaluator, Node], MpNumber]] = {
    "number": MpmathEvaluator.evaluate_number,
    "decimal": MpmathEvaluator.evaluate_number,
    "symbol": MpmathEvaluator.evaluate_number,
    "constant": MpmathEvaluator.evaluate_constant,
    "sum": MpmathEvaluator.evaluate_sum,
    "product": MpmathEvaluator.evaluate_product,
    "negative": MpmathEvaluator.evaluate_negative,
    "quotient": MpmathEvaluator.evaluate_quotient,
    "power": MpmathEvaluator.evaluate_power,
    "root": MpmathEvaluator.evaluate_root,
    "call": MpmathEvaluator.evaluate_call,
    "series": MpmathEvaluator.evaluate_series,
    "apply": MpmathEvaluator.evaluate_unknown_function,
}

_INTEGER_FUNCTIONS = frozenset(("factorial", "binomial", "gcd", "lcm"))
_RATIONAL_FUNCTIONS = frozenset(("floor", "ceil", "gcd", "lcm", "mod", "factorial", "binomial", "log"))

_FUNCTION_RULES: dict[str, Callable[..., MpNumber]] = {
    "sin": MpmathEvaluator.take_sine,
    "cos": MpmathEvaluator.take_cosine,
    "tan": lambda evaluator, x: evaluator.divide(evaluator.take_sine(x), evaluator.take_cosine(x)),
    "cot": lambda evaluator, x: evaluator.divide(evaluator.take_cosine(x), evaluator.take_sine(x)),
    "sec": lambda evaluator, x: evaluator.divide(evaluator.context.mpf(1), evaluator.take_cosine(x)),
    "csc": lambda evaluator, x: evaluator.divide(evaluator.context.mpf(1), evaluator.take_sine(x)),
    "sinh": lambda evaluator, x: evaluator.context.sinh(x),
    "cosh": lambda evaluator, x: evaluator.context.cosh(x),
    "tanh": lambda evaluator, x: evaluator.context.tanh(x),
    "coth": lambda evaluator, x: evaluator.divide(evaluator.context.mpf(1), evaluator.context.tanh(x)),
    "sech": lambda evaluator, x: evaluator.divide(evaluator.context.mpf(1), evaluator.context.cosh(x)),
    "csch": lambda evaluator, x: evaluator.divide(evaluator.context.mpf(1), evaluator.context.sinh(x)),
    "arcsin": lambda evaluator, x: evaluator.apply_inverse_function("asin", x),
    "arccos": lambda evaluator, x: evaluator.apply_inverse_function("acos", x),
    "arctan": lambda evaluator, x: evaluator.apply_inverse_function("atan", x),
    "arccot": lambda evaluator, x: evaluator.context.pi / 2 - evaluator.apply_inverse_function("atan", x),
    "arcsec": lambda evaluator, x: evaluator.apply_inverse_function(
        "acos", evaluator.divide(evaluator.context.mpf(1), x)
    ),
    "arccsc": lambda evaluator, x: evaluator.apply_inverse_function(
        "asin", evaluator.divide(evaluator.context.mpf(1), x)
    ),
    "arsinh": lambda evaluator, x: evaluator.apply_inverse_function("asinh", x),
    "arcosh": lambda evaluator, x: evaluator.apply_inverse_function("acosh", x),
    "artanh": lambda evaluator, x: evaluator.apply_inverse_function("atanh", x),
    "arcsinh": lambda evaluator, x: evaluator.apply_inverse_function("asinh", x),
    "arccosh": lambda evaluator, x: evaluator.apply_inverse_function("acosh", x),
    "arctanh": lambda evaluator, x: evaluator.apply_inverse_function("atanh", x),
    "ln": MpmathEvaluator.take_logarithm,
    "log": lambda evaluator, x, base: evaluator.divide(evaluator.take_logarithm(x), evaluator.take_logarithm(base)),
    "abs": lambda evaluator, x: abs(x),
    "floor": MpmathEvaluator.take_floor,
    "ceil": lambda evaluator, x: -evaluator.take_floor(-x),
    "mod": MpmathEvaluator.compute_remainder,
    "max": lambda evaluator, *arguments: max(evaluator.require_real(x) for x in arguments),
    "min": lambda evaluator, *arguments: min(evaluator.require_real(x) for x in arguments),
    "degrees": lambda evaluator, x: x * evaluator.context.pi / 180,
}
