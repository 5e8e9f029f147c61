"""Fingerprints: expressions that are equal as rational functions of their letters and of their other parts.

The Schwartz-Zippel test at one point of each of two prime fields. Letters, constants and every part that is no rational
operation (a root, a sine, a power too large to take) stand for elements drawn from a hash of the part's own
fingerprint, so that sin(x + x) and sin(2x), or 9^9^9^9 and itself, agree without being evaluated.
"""

from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b

from qwen_align.reward.math.exact_evaluator import Exact
from qwen_align.reward.math.expression_tree import Node, walk
from qwen_align.reward.math.rational_arithmetic import NotRationalError, TooLargeError, UndefinedError, literal

# Safe primes p = 2q + 1: every element but 0, 1 and -1 has order q or 2q, so no power of a small number repeats.
PRIMES = (2305843009213699919, 2305843009213701227)
MAX_EXPONENT = 1 << 40  # a degree far below the primes, which bounds the probability of a false agreement
MAX_ADDED = 600  # nodes worked out for a sum whose terms have letters

_COMMUTATIVE = frozenset(("gcd", "lcm", "max", "min"))


class Fingerprint:
    """The two residues of expressions, equal for equal rational functions, and what else the expressions hold.

    `atoms` are the heads and names of the parts that are no rational operation; without atoms unequal fingerprints
    are a proof.
    """

    def __init__(self, products: frozenset[str] = frozenset()) -> None:
        self.exact = Exact()
        self.atoms: set[str] = set()
        self.products = products
        self.known: dict[Node, tuple[int, int]] = {}
        self.bound: dict[str, tuple[int, int]] = {}

    def of(self, node: Node) -> tuple[int, int]:
        """The residues; raises UndefinedError where the expression divides by what is zero everywhere."""
        found = self.known.get(node)
        if found is None:
            found = self.known[node] = _RULES[node.head](self, node)
        return found

    def atom(self, kind: str, *parts: object) -> tuple[int, int]:
        self.atoms.add(kind)
        return _drawn(kind, *parts)

    def symbol(self, node: Node) -> tuple[int, int]:
        value = self.exact.bound.get(str(node.value))
        if value is not None:
            return _residues(value)
        return self.bound.get(str(node.value)) or _drawn("symbol", node.value)

    def number(self, node: Node) -> tuple[int, int]:
        return _residues(self.exact.value(node))

    def decimal(self, node: Node) -> tuple[int, int]:
        try:
            return _residues(self.exact.value(node))
        except TooLargeError:
            return self.scaled(str(node.value))

    def scaled(self, text: str) -> tuple[int, int]:
        """The residues of `1.5e9999`."""
        mantissa, _, power = text.lower().partition("e")
        if len(power) > 12:
            return self.atom("decimal", text)
        one, other = _residues(literal(mantissa))
        scale = _raised((10, 10), int(power))
        return one * scale[0] % PRIMES[0], other * scale[1] % PRIMES[1]

    def constant(self, node: Node) -> tuple[int, int]:
        if node.value == "infinity":
            raise UndefinedError("infinity")
        return self.atom(str(node.value))

    def sum(self, node: Node) -> tuple[int, int]:
        found = [self.of(arg) for arg in node.args]
        return sum(one for one, _ in found) % PRIMES[0], sum(other for _, other in found) % PRIMES[1]

    def product(self, node: Node) -> tuple[int, int]:
        p, q = PRIMES
        one = other = 1
        for arg in node.args:
            a, b = self.of(arg)
            one, other = one * a % p, other * b % q
        return one, other

    def negative(self, node: Node) -> tuple[int, int]:
        one, other = self.of(node.args[0])
        return -one % PRIMES[0], -other % PRIMES[1]

    def quotient(self, node: Node) -> tuple[int, int]:
        above, below = (self.of(arg) for arg in node.args)
        over = _raised(below, -1)
        return above[0] * over[0] % PRIMES[0], above[1] * over[1] % PRIMES[1]

    def power(self, node: Node) -> tuple[int, int]:
        base = self.of(node.args[0])
        try:
            exponent = self.exact.value(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.atom("power", base, self.of(node.args[1]))
        if abs(exponent) > MAX_EXPONENT:
            return self.atom("power", base, self.of(node.args[1]))
        if exponent.denominator != 1:
            base = self.atom("root", base, exponent.denominator)
        return _raised(base, exponent.numerator)

    def root(self, node: Node) -> tuple[int, int]:
        try:
            index = self.exact.whole(node.args[1])
        except (NotRationalError, TooLargeError):
            return self.atom("any root", self.of(node.args[0]), self.of(node.args[1]))
        if index < 1:
            raise UndefinedError("a root of this index")
        return self.of(node.args[0]) if index == 1 else self.rational_or("root", node, self.of(node.args[0]), index)

    def call(self, node: Node) -> tuple[int, int]:
        parts = [self.of(arg) for arg in node.args]
        if node.value in _COMMUTATIVE:
            parts.sort()
        return self.rational_or(str(node.value), node, *parts)

    def rational_or(self, kind: str, node: Node, *parts: object) -> tuple[int, int]:
        """The residues of the exact value if there is one, else an atom."""
        if not self.bound:
            try:
                return _residues(self.exact.value(node))
            except (NotRationalError, TooLargeError):
                pass
        return self.atom(kind, *parts)

    def is_product(self, node: Node) -> bool:
        """Whether `h(a+b)` is h times a sum: `products` are the letters that also stand alone."""
        return node.value in self.products and len(node.args) == 1 and node.args[0].head == "sum"

    def apply(self, node: Node) -> tuple[int, int]:
        parts = [self.of(arg) for arg in node.args]
        if self.is_product(node):
            one, other = _drawn("symbol", node.value)
            return one * parts[0][0] % PRIMES[0], other * parts[0][1] % PRIMES[1]
        return _drawn("apply", node.value, *parts)

    def series(self, node: Node) -> tuple[int, int]:
        first, last = node.args[1:3]
        if "infinity" in {end.value for arg in (first, last) for end in walk(arg)}:
            return self.opaque_series(node, repr(first), repr(last))
        if not self.bound:
            try:
                return _residues(self.exact.value(node))
            except TooLargeError:
                pass
            except NotRationalError:
                try:
                    return self.added_up(node, self.exact.whole(first), self.exact.whole(last))
                except (NotRationalError, TooLargeError):
                    pass
        return self.opaque_series(node, self.of(first), self.of(last))

    def added_up(self, node: Node, start: int, stop: int) -> tuple[int, int]:
        """The residues of a short sum or product, term by term; raises TooLargeError for a long one."""
        variable, body = node.args[0], node.args[3]
        if (stop - start) * body.size > MAX_ADDED:
            raise TooLargeError("a long sum")
        is_sum = node.value == "sum"
        one, other = (0, 0) if is_sum else (1, 1)
        for index in range(start, stop + 1):
            self.exact.steps[0] -= 2 * body.size
            if self.exact.steps[0] < 0:
                raise TooLargeError("a long sum")
            inner = Fingerprint(self.products)
            inner.exact = Exact({**self.exact.bound, str(variable.value): Fraction(index)}, self.exact.steps)
            a, b = inner.of(body)
            self.atoms |= inner.atoms
            one, other = (one + a, other + b) if is_sum else (one * a, other * b)
        return one % PRIMES[0], other % PRIMES[1]

    def opaque_series(self, node: Node, *ends: object) -> tuple[int, int]:
        variable, body = node.args[0], node.args[3]
        inner = Fingerprint(self.products)
        inner.exact.steps = self.exact.steps
        inner.bound = {**self.bound, str(variable.value): _drawn("bound", len(self.bound))}
        part = inner.of(body)
        self.atoms |= inner.atoms
        return self.atom("series", node.value, *ends, part)


_RULES: dict[str, Callable[[Fingerprint, Node], tuple[int, int]]] = {
    "number": Fingerprint.number,
    "decimal": Fingerprint.decimal,
    "symbol": Fingerprint.symbol,
    "constant": Fingerprint.constant,
    "sum": Fingerprint.sum,
    "product": Fingerprint.product,
    "negative": Fingerprint.negative,
    "quotient": Fingerprint.quotient,
    "power": Fingerprint.power,
    "root": Fingerprint.root,
    "call": Fingerprint.call,
    "apply": Fingerprint.apply,
    "series": Fingerprint.series,
}


def _drawn(*parts: object) -> tuple[int, int]:
    """A fixed element of each field, as good as random, that stands for what the parts describe."""
    digest = blake2b(repr(parts).encode(), digest_size=32).digest()
    return int.from_bytes(digest[:16]) % PRIMES[0], int.from_bytes(digest[16:]) % PRIMES[1]


def _residues(value: Fraction) -> tuple[int, int]:
    p, q = PRIMES
    if value.denominator == 1:
        return value.numerator % p, value.numerator % q
    over = _raised((value.denominator % p, value.denominator % q), -1)
    return value.numerator * over[0] % p, value.numerator * over[1] % q


def _raised(base: tuple[int, int], exponent: int) -> tuple[int, int]:
    if 0 in base and exponent <= 0:
        raise UndefinedError("zero to a power that is not positive")
    return pow(base[0], exponent, PRIMES[0]), pow(base[1], exponent, PRIMES[1])
