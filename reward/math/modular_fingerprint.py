"""Computes modular fingerprints of expressions, equal for expressions that are equal as rational functions.

The Schwartz-Zippel test at one point of each of two prime fields. Letters, constants and every part that is no rational
operation (a root, a sine, a power too large to take) stand for elements drawn from a hash of the part's own
fingerprint, so that sin(x + x) and sin(2x), or 9^9^9^9 and itself, agree without being evaluated.
"""

from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b

from qwen_align.reward.math.exact_evaluator import ExactEvaluator
from qwen_align.reward.math.expression_tree import Node, iterate_nodes
from qwen_align.reward.math.rational_arithmetic import (
    NotRationalError,
    TooLargeError,
    UndefinedError,
    parse_decimal_literal,
)

# Safe primes p = 2q + 1: every element but 0, 1 and -1 has order q or 2q, so no power of a small number repeats.
PRIMES = (2305843009213699919, 2305843009213701227)
MAX_EXPONENT = 1 << 40  # a degree far below the primes, which bounds the probability of a false agreement
MAX_SUMMED_NODES = 600  # nodes worked out for a sum whose terms have letters

_COMMUTATIVE = frozenset(("gcd", "lcm", "max", "min"))


class Fingerprint:
    """A calculator of two modular residues of an expression, equal for expressions that are equal rational functions.

    `atoms` are the heads and names of the parts that are no rational operation; without atoms unequal fingerprints
    are a proof.
    """

    def __init__(self) -> None:
        self.exact = ExactEvaluator()
        self.atoms: set[str] = set()
        self.cache: dict[Node, tuple[int, int]] = {}
        self.bound_values: dict[str, tuple[int, int]] = {}

    def compute_residues(self, node: Node) -> tuple[int, int]:
        """Returns the two modular residues of an expression.

        Raises UndefinedError if it divides by an expression that is zero everywhere.
        """
        residues = self.cache.get(node)
        if residues is None:
            residues = self.cache[node] = _HEAD_RULES[node.head](self, node)
        return residues

    def draw_atom(self, kind: str, *parts: object) -> tuple[int, int]:
        """Draws hash-based modular residues for a part that is not a rational operation.

        Its kind is added to `atoms`.
        """
        self.atoms.add(kind)
        return _draw_residues(kind, *parts)

    def fingerprint_symbol(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a variable, from its value where it is bound to one."""
        value = self.exact.bound_values.get(str(node.value))
        if value is not None:
            return _reduce_fraction(value)
        return self.bound_values.get(str(node.value)) or _draw_residues("symbol", node.value)

    def fingerprint_number(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of an exact number."""
        return _reduce_fraction(self.exact.evaluate(node))

    def fingerprint_decimal(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a decimal of any size."""
        try:
            return _reduce_fraction(self.exact.evaluate(node))
        except TooLargeError:
            return self.fingerprint_scientific(str(node.value))

    def fingerprint_scientific(self, text: str) -> tuple[int, int]:
        """Returns the modular residues of a number such as `1.5e9999`. It is too large to write out."""
        mantissa, _, power = text.lower().partition("e")
        if len(power) > 12:
            return self.draw_atom("decimal", text)
        first, second = _reduce_fraction(parse_decimal_literal(mantissa))
        scale = _raise_residues((10, 10), int(power))
        return first * scale[0] % PRIMES[0], second * scale[1] % PRIMES[1]

    def fingerprint_constant(self, node: Node) -> tuple[int, int]:
        """Returns hash-based modular residues for pi, e or i. Raises UndefinedError for an infinity."""
        if node.value == "infinity":
            raise UndefinedError("infinity")
        return self.draw_atom(str(node.value))

    def fingerprint_sum(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a sum, by adding the residues of its terms."""
        residues = [self.compute_residues(arg) for arg in node.args]
        return sum(first for first, _ in residues) % PRIMES[0], sum(second for _, second in residues) % PRIMES[1]

    def fingerprint_product(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a product, by multiplying the residues of its factors."""
        p, q = PRIMES
        first = second = 1
        for arg in node.args:
            a, b = self.compute_residues(arg)
            first, second = first * a % p, second * b % q
        return first, second

    def fingerprint_negative(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a negated expression."""
        first, second = self.compute_residues(node.args[0])
        return -first % PRIMES[0], -second % PRIMES[1]

    def fingerprint_quotient(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a quotient. Raises UndefinedError if the residues of the divisor are zero."""
        numerator, denominator = (self.compute_residues(arg) for arg in node.args)
        inverse = _raise_residues(denominator, -1)
        return numerator[0] * inverse[0] % PRIMES[0], numerator[1] * inverse[1] % PRIMES[1]

    def fingerprint_power(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a power.

        They are hash-based where the exponent is not rational or too large.
        """
        base = self.compute_residues(node.args[0])
        try:
            exponent = self.exact.evaluate(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.draw_atom("power", base, self.compute_residues(node.args[1]))
        if abs(exponent) > MAX_EXPONENT:
            return self.draw_atom("power", base, self.compute_residues(node.args[1]))
        if exponent.denominator != 1:
            base = self.draw_atom("root", base, exponent.denominator)
        return _raise_residues(base, exponent.numerator)

    def fingerprint_root(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a root. They are exact where the root is rational, else hash-based."""
        try:
            index = self.exact.evaluate_integer(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.draw_atom("any root", self.compute_residues(node.args[0]), self.compute_residues(node.args[1]))
        if index < 1:
            raise UndefinedError("a root of this index")
        return (
            self.compute_residues(node.args[0])
            if index == 1
            else self.fingerprint_exactly_or_draw("root", node, self.compute_residues(node.args[0]), index)
        )

    def fingerprint_call(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of a known function's value.

        They are exact where the value is rational, else hash-based.
        """
        parts = [self.compute_residues(arg) for arg in node.args]
        if node.value in _COMMUTATIVE:
            parts.sort()
        return self.fingerprint_exactly_or_draw(str(node.value), node, *parts)

    def fingerprint_exactly_or_draw(self, kind: str, node: Node, *parts: object) -> tuple[int, int]:
        """Returns the modular residues of an expression's exact value.

        An expression without one gets hash-based residues.
        """
        if not self.bound_values:
            try:
                return _reduce_fraction(self.exact.evaluate(node))
            except (NotRationalError, TooLargeError):
                pass
        return self.draw_atom(kind, *parts)

    def fingerprint_unknown_function(self, node: Node) -> tuple[int, int]:
        """Returns the modular residues of an unknown function's value, such as `f(2)`, drawn from its arguments'."""
        return _draw_residues("apply", node.value, *(self.compute_residues(arg) for arg in node.args))

    def fingerprint_series(self, node: Node) -> tuple[int, int]:
        r"""Returns the modular residues of a `\sum` or `\prod`.

        They are computed exactly if possible, else term by term, else hash-based.
        """
        first, last = node.args[1:3]
        if "infinity" in {end.value for arg in (first, last) for end in iterate_nodes(arg)}:
            return self.fingerprint_opaque_series(node, repr(first), repr(last))
        if not self.bound_values:
            try:
                return _reduce_fraction(self.exact.evaluate(node))
            except TooLargeError:
                pass
            except NotRationalError:
                try:
                    return self.fingerprint_term_by_term(
                        node, self.exact.evaluate_integer(first), self.exact.evaluate_integer(last)
                    )
                except (NotRationalError, TooLargeError):
                    pass
        return self.fingerprint_opaque_series(node, self.compute_residues(first), self.compute_residues(last))

    def fingerprint_term_by_term(self, node: Node, start: int, stop: int) -> tuple[int, int]:
        r"""Returns the modular residues of a short `\sum` or `\prod`, computed term by term.

        Raises TooLargeError for a long one.
        """
        variable, body = node.args[0], node.args[3]
        if (stop - start) * body.size > MAX_SUMMED_NODES:
            raise TooLargeError("a long sum")
        is_sum = node.value == "sum"
        first, second = (0, 0) if is_sum else (1, 1)
        for index in range(start, stop + 1):
            self.exact.steps_left[0] -= 2 * body.size
            if self.exact.steps_left[0] < 0:
                raise TooLargeError("a long sum")
            inner = Fingerprint()
            inner.exact = ExactEvaluator(
                {**self.exact.bound_values, str(variable.value): Fraction(index)}, self.exact.steps_left
            )
            a, b = inner.compute_residues(body)
            self.atoms |= inner.atoms
            first, second = (first + a, second + b) if is_sum else (first * a, second * b)
        return first % PRIMES[0], second % PRIMES[1]

    def fingerprint_opaque_series(self, node: Node, *ends: object) -> tuple[int, int]:
        r"""Returns hash-based modular residues for a `\sum` or `\prod`, from its bounds and body."""
        variable, body = node.args[0], node.args[3]
        inner = Fingerprint()
        inner.exact.steps_left = self.exact.steps_left
        inner.bound_values = {**self.bound_values, str(variable.value): _draw_residues("bound", len(self.bound_values))}
        body_residues = inner.compute_residues(body)
        self.atoms |= inner.atoms
        return self.draw_atom("series", node.value, *ends, body_residues)


_HEAD_RULES: dict[str, Callable[[Fingerprint, Node], tuple[int, int]]] = {
    "number": Fingerprint.fingerprint_number,
    "decimal": Fingerprint.fingerprint_decimal,
    "symbol": Fingerprint.fingerprint_symbol,
    "constant": Fingerprint.fingerprint_constant,
    "sum": Fingerprint.fingerprint_sum,
    "product": Fingerprint.fingerprint_product,
    "negative": Fingerprint.fingerprint_negative,
    "quotient": Fingerprint.fingerprint_quotient,
    "power": Fingerprint.fingerprint_power,
    "root": Fingerprint.fingerprint_root,
    "call": Fingerprint.fingerprint_call,
    "apply": Fingerprint.fingerprint_unknown_function,
    "series": Fingerprint.fingerprint_series,
}


def _draw_residues(*parts: object) -> tuple[int, int]:
    """Returns a pseudorandom element of each prime field, drawn from a hash of the given parts."""
    digest = blake2b(repr(parts).encode(), digest_size=32).digest()
    return int.from_bytes(digest[:16]) % PRIMES[0], int.from_bytes(digest[16:]) % PRIMES[1]


def _reduce_fraction(value: Fraction) -> tuple[int, int]:
    """Returns the residues of a fraction modulo each of the two primes."""
    p, q = PRIMES
    if value.denominator == 1:
        return value.numerator % p, value.numerator % q
    inverse = _raise_residues((value.denominator % p, value.denominator % q), -1)
    return value.numerator * inverse[0] % p, value.numerator * inverse[1] % q


def _raise_residues(base: tuple[int, int], exponent: int) -> tuple[int, int]:
    """Computes an integer power of two modular residues.

    Raises UndefinedError for zero to a power that is not positive.
    """
    if 0 in base and exponent <= 0:
        raise UndefinedError("zero to a power that is not positive")
    return pow(base[0], exponent, PRIMES[0]), pow(base[1], exponent, PRIMES[1])
