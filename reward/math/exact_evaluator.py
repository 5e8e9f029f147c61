"""Evaluates expressions without free variables to exact rational values."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.rational_arithmetic import (
    EXACT_FUNCTIONS,
    MAX_BITS,
    LongSeriesError,
    NotRationalError,
    TooLargeError,
    UndefinedError,
    parse_decimal_literal,
    raise_to_power,
    take_exact_root,
)
from qwen_align.reward.math.series_closed_form import find_closed_form

MAX_TERMS = 400  # of a sum or product that is added up term by term
MAX_STEPS = 3_000
MAX_MODULUS_BITS = 512  # of `a^b mod m`, whose exponent may have MAX_BITS


@lru_cache(maxsize=4_096)
def evaluate_rational(node: Node) -> Fraction | None:
    """Returns the exact rational value of an expression without variables.

    None if the value is not plainly rational, undefined or too large.
    """
    try:
        return ExactEvaluator().evaluate(node)
    except (UndefinedError, NotRationalError, TooLargeError):
        return None


class ExactEvaluator:
    """An evaluator of expression trees to exact fractions, with a cache.

    `bound_values` gives the values of bound variables; `steps_left` holds the remaining work budget in steps of about
    two microseconds.
    """

    def __init__(self, bound_values: dict[str, Fraction] | None = None, steps_left: list[int] | None = None) -> None:
        self.bound_values = bound_values or {}
        self.steps_left = [MAX_STEPS] if steps_left is None else steps_left
        self.cache: dict[Node, Fraction | ArithmeticError] = {}

    def evaluate(self, node: Node) -> Fraction:
        """Returns the exact value of an expression tree node.

        Raises NotRationalError, UndefinedError or TooLargeError if it has none.
        """
        if node.head == "number":
            assert isinstance(node.value, Fraction)
            return node.value
        result = self.cache.get(node)
        if result is None:
            try:
                result = self.charge_work_and_check_size(_HEAD_RULES[node.head](self, node))
            except (NotRationalError, UndefinedError, TooLargeError) as error:
                result = error
            self.cache[node] = result
        if isinstance(result, ArithmeticError):
            raise result
        return result

    def charge_work_and_check_size(self, value: Fraction) -> Fraction:
        """Deducts the cost of a computed value from the work budget and returns the value.

        Raises TooLargeError if it is too large.
        """
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        if bits > MAX_BITS:
            raise TooLargeError("a number")
        self.steps_left[0] -= 1 + bits // 300
        if self.steps_left[0] < 0:
            raise LongSeriesError("too much work")
        return value

    def evaluate_integer(self, node: Node) -> int:
        """Returns the value of an expression as an integer. Raises NotRationalError if the value is not an integer."""
        value = self.evaluate(node)
        if value.denominator != 1:
            raise NotRationalError("not whole")
        return value.numerator

    def evaluate_symbol(self, node: Node) -> Fraction:
        """Returns the value of a bound variable. Raises NotRationalError for a free variable."""
        value = self.bound_values.get(str(node.value))
        if value is None:
            raise NotRationalError("a letter")
        return value

    def evaluate_sum(self, node: Node) -> Fraction:
        """Returns the exact value of a sum node, by adding the values of its terms."""
        total = Fraction(0)
        for term in node.args:
            total = self.charge_work_and_check_size(total + self.evaluate(term))
        return total

    def evaluate_product(self, node: Node) -> Fraction:
        """Returns the exact value of a product node, by multiplying the values of its factors."""
        values = [self.evaluate(factor) for factor in node.args]
        total = Fraction(1)
        for value in values:
            total = self.charge_work_and_check_size(total * value)
        return total

    def evaluate_quotient(self, node: Node) -> Fraction:
        """Returns the exact value of a quotient node, the numerator divided by the denominator."""
        numerator, denominator = (self.evaluate(arg) for arg in node.args)
        if not denominator:
            raise UndefinedError("division by zero")
        return numerator / denominator

    def evaluate_power(self, node: Node) -> Fraction:
        """Returns the exact value of a power with a rational exponent."""
        base, exponent = (self.evaluate(arg) for arg in node.args)
        if exponent.denominator != 1:
            if exponent.denominator > MAX_TERMS:
                raise NotRationalError("a power")
            base = take_exact_root(base, exponent.denominator)
        return raise_to_power(base, exponent.numerator)

    def evaluate_root(self, node: Node) -> Fraction:
        """Returns the exact value of a root with an integer index."""
        base, index = self.evaluate(node.args[0]), self.evaluate_integer(node.args[1])
        if not 0 < index <= MAX_TERMS:
            raise UndefinedError("a root of this index")
        return take_exact_root(base, index)

    def evaluate_call(self, node: Node) -> Fraction:
        """Returns the exact value of a known function applied to its arguments."""
        name = str(node.value)
        if name == "mod" and node.args[0].head == "power":
            return self.evaluate_power_modulo(node)
        rule = EXACT_FUNCTIONS.get(name)
        if rule is None:
            raise NotRationalError(name)
        return rule([self.evaluate(arg) for arg in node.args])

    def evaluate_power_modulo(self, node: Node) -> Fraction:
        """Returns `a^b mod m` by modular exponentiation, without computing `a^b`."""
        base, exponent = (self.evaluate_integer(arg) for arg in node.args[0].args)
        modulus = self.evaluate_integer(node.args[1])
        if modulus == 0:
            raise UndefinedError("modulo zero")
        if exponent < 0:
            raise NotRationalError("a modular inverse")
        if modulus.bit_length() > MAX_MODULUS_BITS or exponent.bit_length() > 4 * MAX_MODULUS_BITS:
            raise TooLargeError("a modular power")
        return Fraction(pow(base, exponent, modulus))

    def evaluate_series(self, node: Node) -> Fraction:
        r"""Returns the exact value of a `\sum` or `\prod` over an index.

        One with many terms is computed by its closed form.
        """
        variable, first, last, body = node.args
        start, stop = self.evaluate_integer(first), self.evaluate_integer(last)
        is_sum = node.value == "sum"

        def term(index: int) -> Fraction:
            self.steps_left[0] -= 5
            return ExactEvaluator(
                {**self.bound_values, str(variable.value): Fraction(index)}, self.steps_left
            ).evaluate(body)

        if stop - start >= MAX_TERMS or (stop - start) * body.size > MAX_STEPS // 3:
            closed_form_value = (
                None
                if body.size > MAX_TERMS // 10
                else find_closed_form(term, start, stop, self.charge_work_and_check_size, is_sum=is_sum)
            )
            if closed_form_value is None:
                raise LongSeriesError("a long sum")
            return closed_form_value
        total = Fraction(0 if is_sum else 1)
        for index in range(start, stop + 1):
            total = self.charge_work_and_check_size(total + term(index) if is_sum else total * term(index))
        return total

    def evaluate_decimal(self, node: Node) -> Fraction:
        """Returns the exact value of a decimal number as written."""
        return parse_decimal_literal(str(node.value))

    def evaluate_constant(self, node: Node) -> Fraction:
        """Raises NotRationalError for pi, e and i, and UndefinedError for an infinity."""
        if node.value == "infinity":
            raise UndefinedError("infinity")
        raise NotRationalError(str(node.value))

    def evaluate_unknown_function(self, node: Node) -> Fraction:
        """Raises NotRationalError, because an unknown function has no exact value."""
        raise NotRationalError(str(node.value))

    def evaluate_negative(self, node: Node) -> Fraction:
        """Returns the exact value of a negated expression."""
        return -self.evaluate(node.args[0])


_HEAD_RULES: dict[str, Callable[[ExactEvaluator, Node], Fraction]] = {
    "decimal": ExactEvaluator.evaluate_decimal,
    "symbol": ExactEvaluator.evaluate_symbol,
    "constant": ExactEvaluator.evaluate_constant,
    "sum": ExactEvaluator.evaluate_sum,
    "product": ExactEvaluator.evaluate_product,
    "negative": ExactEvaluator.evaluate_negative,
    "quotient": ExactEvaluator.evaluate_quotient,
    "power": ExactEvaluator.evaluate_power,
    "root": ExactEvaluator.evaluate_root,
    "call": ExactEvaluator.evaluate_call,
    "apply": ExactEvaluator.evaluate_unknown_function,
    "series": ExactEvaluator.evaluate_series,
}
