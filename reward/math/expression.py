r"""The reader of one scalar expression, LaTeX or plain, into a tree of nodes.

What two readers could read differently is read so: `2\frac{1}{3}` is the mixed number, `ab` a product, `1/2x` is
`(1/2)x` but `1/xy` is `1/(xy)`, `\sin 2x` takes all of `2x`, `\log` has base 10, `f(x)` is an unknown function's value.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.math.node import Node, applied, call, is_number, number, symbol, symbols
from qwen_align.reward.math.tokens import FUNCTION_WORDS, NotAnExpressionError, tokens_of

__all__ = ["Node", "applied", "is_number", "parse", "symbols"]

MAX_NESTING = 64
MAX_DEPTH = 160  # of the tree: an evaluation takes two frames a level, CPython allows 1,000
MAX_CACHED = 400  # characters: longer answers are rare, and their trees large

_APPLIED = frozenset("fghFGPQ")
_OPENING = {"(": ")", "[": "]", "{": "}", "|<": ">|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_SEVERAL = frozenset(("gcd", "lcm", "max", "min"))
_FUNCTIONS = frozenset(FUNCTION_WORDS) - {"sqrt"}
_TRIGONOMETRIC = frozenset("sin cos tan cot sec csc sinh cosh tanh coth sech csch".split())
_RENAMED = {"cotan": "cot"}
_OPAQUE = frozenset(
    (
        r"\overline",
        r"\bar",
        r"\vec",
        r"\hat",
        r"\tilde",
        r"\widehat",
        r"\widetilde",
        r"\overrightarrow",
        r"\angle",
        r"\triangle",
    )
)
_GREEK = frozenset(
    rf"\{name}"
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma "
        "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell"
    ).split()
)
_CONSTANTS = {"pi": "pi", "e": "e", "i": "i", r"\infty": "infinity"}
_STARTS = (
    frozenset(("(", "[", "{", "|<", r"\lfloor", r"\lceil", "sqrt", "√", "pi", r"\infty", r"\frac", r"\binom"))
    | frozenset((r"\sum", r"\prod"))
    | _FUNCTIONS
    | _GREEK
    | _OPAQUE
)
_MINUS_ONE = number(-1)


def parse(text: str) -> Node | None:
    """The tree of `text` if the whole of it is one scalar expression, else None."""
    return _parsed(text) if len(text) <= MAX_CACHED else _parsed.__wrapped__(text)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def _parsed(text: str) -> Node | None:
    try:
        tokens = tokens_of(text)
        return _Reader(tokens).whole() if tokens else None
    except NotAnExpressionError:
        return None


def product_of(factors: list[Node]) -> Node:
    """The product, flat; a single factor is itself."""
    if len(factors) == 1:
        return factors[0]
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.args if factor.head == "product" else (factor,))
    return Node("product", tuple(flat))


class _Reader:
    """Recursive descent over the tokens; `bound` are the letters bound by sum and product signs."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.place = 0
        self.nesting = 0
        self.bars = 0
        self.bound: list[str] = []

    def whole(self) -> Node:
        node = self.stacked()
        if self.tokens[self.place]:
            raise NotAnExpressionError(f"{self.tokens[self.place]!r} was not expected")
        if node.depth > MAX_DEPTH:
            raise NotAnExpressionError("too deep")
        return node

    def take(self) -> str:
        token = self.tokens[self.place]
        self.place += 1 if token else 0
        return token

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise NotAnExpressionError(f"{token!r} was expected")

    def stacked(self) -> Node:
        r"""A sum, or two of them over each other: `{3 \over 2}`, `{6 \choose 3}`."""
        node = self.sum()
        sign = self.peek()
        if sign not in {r"\over", r"\choose"}:
            return node
        self.take()
        below = self.sum()
        return Node("quotient", (node, below)) if sign == r"\over" else call("binomial", node, below)

    def sum(self) -> Node:
        terms = [self.product()]
        while (sign := self.peek()) in {"+", "-"}:
            self.take()
            term = self.product()
            terms.append(Node("negative", (term,)) if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def product(self) -> Node:
        factors = [self.signed()]
        while True:
            token = self.peek()
            if token == "*":
                self.take()
                factors.append(self.signed())
            elif token == "/":
                self.take()
                factors = [Node("quotient", (product_of(factors), self.denominator()))]
            elif token == "mod":
                self.take()
                factors = [call("mod", product_of(factors), self.signed())]
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return product_of(factors)

    def denominator(self) -> Node:
        """What a slash divides by: `1/2x` by 2, `1/xy` by xy."""
        factors = [self.signed()]
        if self.tokens[self.place - 1].isalpha() and factors[0].head in {"symbol", "power"}:
            while self.is_letter(self.peek()):
                factors.append(self.power())
        return product_of(factors)

    def signed(self) -> Node:
        is_negative = False
        while (sign := self.peek()) in {"+", "-"}:
            self.take()
            is_negative ^= sign == "-"
        node = self.power()
        return Node("negative", (node,)) if is_negative else node

    def is_letter(self, token: str) -> bool:
        return (len(token) == 1 and token.isalpha()) or token in _GREEK or token == "pi"

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign; a number may follow only a bracket, `x2` is refused."""
        token = self.peek()
        if token[:1].isdigit() or token[:1] == ".":
            if self.tokens[self.place - 1] in {")", "]", "}", ">|", r"\rfloor", r"\rceil"} or self.place == self.cut:
                return True
            raise NotAnExpressionError("a number follows without a sign")
        if token == "|":
            return self.bars == 0
        return token in _STARTS or self.is_letter(token)

    cut = -1
    """The place of a number whose first digit was a command's argument: `\\frac123` is 3/2."""

    def power(self) -> Node:
        """A factor with its factorials and exponents."""
        base = self.atom()
        while self.peek() == "!":
            self.take()
            base = call("factorial", base)
            if self.peek() == "!":
                raise NotAnExpressionError("double factorials are not read")
        if self.peek() != "^":
            return base
        if self.is_circle():
            return call("degrees", base)
        exponents = [base]
        while self.peek() == "^":
            self.take()
            exponents.append(self.script())
        if self.peek() == "!":
            raise NotAnExpressionError("a factorial of a power needs brackets")
        node = exponents.pop()
        while exponents:
            node = Node("power", (exponents.pop(), node))
        return node

    def is_circle(self) -> bool:
        """Takes a degree sign if one follows."""
        rest = self.tokens[self.place : self.place + 4]
        for sign in (["^", r"\circ"], ["^", "{", r"\circ", "}"], ["^", "degree"], ["^", "{", "degree", "}"]):
            if rest[: len(sign)] == sign:
                self.place += len(sign)
                return True
        return False

    def script(self) -> Node:
        """An exponent: a group, a number, a letter or a command with its arguments, with signs before it."""
        is_negative = False
        while (sign := self.peek()) in {"+", "-"}:
            self.take()
            is_negative ^= sign == "-"
        token = self.peek()
        if token in _FUNCTIONS or token in {r"\sum", r"\prod", "|"}:
            raise NotAnExpressionError(f"the exponent {token} needs brackets")
        node = self.literal(self.take()) if token[:1].isdigit() or token[:1] == "." else self.atom()
        return Node("negative", (node,)) if is_negative else node

    def argument(self) -> Node:
        """An argument of a LaTeX command: a group, or the next single character or command."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.place] = token[1:]
            self.cut = self.place
            return self.literal(token[0])
        if token in {"+", "-", "|", ""} or token in _FUNCTIONS:
            raise NotAnExpressionError("an argument is missing")
        return self.literal(self.take()) if token.isdigit() else self.atom()

    def atom(self) -> Node:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise NotAnExpressionError("nested too deeply")
        token = self.take()
        try:
            return self.atom_from(token)
        finally:
            self.nesting -= 1

    def atom_from(self, token: str) -> Node:
        if token[:1].isdigit() or token[:1] == ".":
            return self.numeral(token)
        if token in _OPENING or token == "|":
            return self.group(token)
        if token in _FUNCTIONS:
            return self.function(token)
        if token in _READERS:
            return _READERS[token](self)
        if token in _OPAQUE:
            return symbol(token + self.opaque_text())
        if self.is_letter(token) or token in _CONSTANTS:
            return self.letter(token)
        raise NotAnExpressionError(f"{token!r} was not expected")

    def numeral(self, token: str) -> Node:
        """A number, or the mixed number that starts with it."""
        node = self.literal(token)
        if self.peek() == "_":
            raise NotAnExpressionError("a number in another base")
        if not token.isdigit():
            return node
        part = self.fraction_ahead()
        return node if part is None else Node("sum", (node, part))

    def fraction_ahead(self) -> Node | None:
        r"""The proper fraction `\frac{1}{3}` or `1/3` that follows, taken."""
        start, cut, tokens = self.place, self.cut, self.tokens
        if self.peek() == r"\frac":
            self.tokens = list(tokens)
            self.take()
            digits = [self.digits_argument(), self.digits_argument()]
        elif self.peek().isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
            digits = [self.peek(), self.peek(2)]
            self.place += 3
        else:
            return None
        if all(digits) and int(digits[0]) < int(digits[1]):
            return number(Fraction(int(digits[0]), int(digits[1])))
        self.place, self.cut, self.tokens = start, cut, tokens
        return None

    def digits_argument(self) -> str:
        """The next argument of a command if it is a plain whole number, else ""."""
        if self.peek() == "{":
            if not self.peek(1).isdigit() or self.peek(2) != "}":
                return ""
            self.place += 3
            return self.tokens[self.place - 2]
        token = self.peek()
        if not token.isdigit():
            return ""
        if len(token) > 1:
            self.tokens[self.place] = token[1:]
            self.cut = self.place
            return token[0]
        self.take()
        return token

    def literal(self, token: str) -> Node:
        if token.isdigit():
            return number(int(token))
        return Node("decimal", (), token)

    def group(self, opening: str) -> Node:
        if opening == "|":
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.expect("|")
            return call("abs", node)
        bars, self.bars = self.bars, 0
        node = self.stacked() if opening == "{" else self.sum()
        self.bars = bars
        self.expect(_OPENING[opening])
        name = {"|<": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}.get(opening)
        return call(name, node) if name else node

    def letter(self, token: str) -> Node:
        name = token
        if self.peek() == "_":
            self.take()
            name += "_" + (self.opaque_text())
        while self.peek() == "'" or (self.peek() == "^" and self.peek(1) == "'"):
            self.place += 1 if self.peek() == "'" else 2
            name += "'"
        if name[0] in _APPLIED and self.peek() == "(":
            return Node("apply", tuple(self.several()), name)
        if name in _CONSTANTS and name not in self.bound:
            return Node("constant", (), _CONSTANTS[name])
        return symbol(name)

    def opaque_text(self) -> str:
        """The next argument as text, for names that are not looked into."""
        token = self.take()
        if token != "{":
            if not token or token in "+-*/^_!|(":
                raise NotAnExpressionError("an argument is missing")
            return token
        parts: list[str] = []
        depth = 1
        while depth:
            token = self.take()
            if not token:
                raise NotAnExpressionError("an argument is missing")
            depth += (token == "{") - (token == "}")
            parts.append(token)
        return " ".join(parts[:-1])

    def several(self) -> list[Node]:
        """The arguments in brackets, one or more with commas between them."""
        opening = self.take()
        closing = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}.get(opening)
        if closing is None:
            raise NotAnExpressionError("an argument is missing")
        bars, self.bars = self.bars, 0
        found = [self.sum()]
        while self.peek() == ",":
            self.take()
            found.append(self.sum())
        self.bars = bars
        self.expect(closing)
        return found

    def function(self, name: str) -> Node:
        r"""A known function's value: `\sin^2 x`, `\log_2 8`, `\ln 2x`, `\gcd(4, 6)`."""
        base: Node | None = None
        exponent: Node | None = None
        while self.peek() in {"_", "^"}:
            if self.take() == "_":
                base = self.base()
            else:
                exponent = self.script()
        if name in _SEVERAL:
            if base is not None or exponent is not None:
                raise NotAnExpressionError(f"{name} takes no exponent")
            return call(name, *self.several())
        argument = self.function_argument(name)
        name = _RENAMED.get(name, name)
        if base is not None and name != "log":
            raise NotAnExpressionError(f"{name} takes no base")
        if exponent == Node("negative", (number(1),)) and name in _TRIGONOMETRIC:
            return call("arc" + name, argument)
        node = _function_node(name, argument, base)
        return node if exponent is None else Node("power", (node, exponent))

    def base(self) -> Node:
        r"""A logarithm's base: the first digit where the rest is the argument, as in `\log_28`."""
        token = self.peek()
        follows = self.peek(1)
        if token.isdigit() and len(token) > 1 and not (follows in _STARTS or self.is_letter(follows) or follows == "|"):
            return self.argument()
        return self.script()

    def function_argument(self, name: str) -> Node:
        if self.peek() in {"(", "[", "{"}:
            return self.group(self.take())
        is_negative = self.peek() == "-"
        if is_negative:
            self.take()
        factors = [self.power()]
        while self.starts_factor() and self.peek() not in _FUNCTIONS and self.peek() not in {"(", "[", "|<", r"\sum"}:
            factors.append(self.power())
        node = product_of(factors)
        if name in _TRIGONOMETRIC and self.peek() == "/" and self.peek(1).isdigit() and is_number(node):
            self.take()
            node = Node("quotient", (node, self.power()))
        return Node("negative", (node,)) if is_negative else node

    def fraction(self) -> Node:
        start = self.place
        above = self.argument()
        between = self.place
        below = self.argument()
        texts = [
            [token for token in self.tokens[a:b] if token not in "{}"]
            for a, b in ((start, between), (between, self.place))
        ]
        if texts[0][:1] == ["d"] and texts[1][:1] == ["d"] and len(texts[1]) > 1:
            raise NotAnExpressionError("a derivative")
        return Node("quotient", (above, below))

    def root(self) -> Node:
        index = number(2)
        if self.peek() == "[":
            self.take()
            index = self.sum()
            self.expect("]")
        radicand = self.group(self.take()) if self.peek() == "(" else self.argument()
        return Node("root", (radicand, index))

    def plain_root(self) -> Node:
        return Node("root", (self.atom(), number(2)))

    def binomial(self) -> Node:
        return call("binomial", self.argument(), self.argument())

    def series(self, kind: str) -> Node:
        r"""`\sum_{k=1}^{n} body`; the body is a product."""
        self.expect("_")
        self.expect("{")
        name = self.take()
        if not self.is_letter(name):
            raise NotAnExpressionError("a letter was expected under the sign")
        self.expect("=")
        first = self.sum()
        self.expect("}")
        self.expect("^")
        last = self.script()
        self.bound.append(name)
        body = self.product()
        self.bound.pop()
        return Node("series", (symbol(name), first, last, body), kind)


_READERS: dict[str, Callable[[_Reader], Node]] = {
    r"\frac": _Reader.fraction,
    "sqrt": _Reader.root,
    "√": _Reader.plain_root,
    r"\binom": _Reader.binomial,
    r"\sum": lambda reader: reader.series("sum"),
    r"\prod": lambda reader: reader.series("product"),
}


def _function_node(name: str, argument: Node, base: Node | None) -> Node:
    if name == "exp":
        return Node("power", (Node("constant", (), "e"), argument))
    if name in {"log", "lg"}:
        return call("log", argument, number(10) if base is None else base)
    return call(name, argument)
