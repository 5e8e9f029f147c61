r"""One scalar expression, LaTeX or plain, as a tree of nodes: recursive descent over its tokens.

What two readers could read differently is read so: `2\frac{1}{3}` is the mixed number, `ab` a product, `1/2x` is
`(1/2)x` but `1/xy` is `1/(xy)`, `\sin 2x` takes all of `2x`, `\log` has base 10, `f(x)` is an unknown function's value.
"""

from functools import lru_cache

from qwen_align.reward.math.expression_atom_parser import literal, read_atom
from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError, tokens_of
from qwen_align.reward.math.expression_tree import Node, call, product_of
from qwen_align.reward.math.expression_vocabulary import FUNCTIONS, OPENING, STARTS
from qwen_align.reward.math.token_cursor import Cursor

MAX_CACHED = 400  # characters: longer answers are rare, and their trees large
MAX_NESTING = 64
MAX_DEPTH = 160  # of the tree: an evaluation takes three frames a level, CPython allows 1,000


def parse(text: str) -> Node | None:
    """The tree of `text` if the whole of it is one scalar expression, else None."""
    return _parsed(text) if len(text) <= MAX_CACHED else _parsed.__wrapped__(text)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def _parsed(text: str) -> Node | None:
    try:
        tokens = tokens_of(text)
        return Reader(tokens).whole() if tokens else None
    except NotAnExpressionError:
        return None


class Reader(Cursor):
    """The reader of sums, products, powers and brackets; other factors are read by `read_atom`."""

    def whole(self) -> Node:
        node = self.stacked()
        if self.tokens[self.place]:
            raise NotAnExpressionError(f"{self.tokens[self.place]!r} was not expected")
        if node.depth > MAX_DEPTH:
            raise NotAnExpressionError("too deep")
        return node

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

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign; a number may follow only a bracket, `x2` is refused."""
        token = self.peek()
        if token[:1].isdigit() or token[:1] == ".":
            if self.tokens[self.place - 1] in {")", "]", "}", ">|", r"\rfloor", r"\rceil"} or self.place == self.cut:
                return True
            raise NotAnExpressionError("a number follows without a sign")
        if token == "|":
            return self.bars == 0
        return token in STARTS or self.is_letter(token)

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
        if token in FUNCTIONS or token in {r"\sum", r"\prod", "|"}:
            raise NotAnExpressionError(f"the exponent {token} needs brackets")
        node = literal(self.take()) if token[:1].isdigit() or token[:1] == "." else self.atom()
        return Node("negative", (node,)) if is_negative else node

    def argument(self) -> Node:
        """An argument of a LaTeX command: a group, or the next single character or command."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.place] = token[1:]
            self.cut = self.place
            return literal(token[0])
        if token in {"+", "-", "|", ""} or token in FUNCTIONS:
            raise NotAnExpressionError("an argument is missing")
        return literal(self.take()) if token.isdigit() else self.atom()

    def atom(self) -> Node:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise NotAnExpressionError("nested too deeply")
        token = self.take()
        try:
            return read_atom(self, token)
        finally:
            self.nesting -= 1

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
        self.expect(OPENING[opening])
        name = {"|<": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}.get(opening)
        return call(name, node) if name else node
