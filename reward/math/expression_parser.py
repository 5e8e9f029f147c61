r"""Parses a single scalar expression, in LaTeX or plain text, to an expression tree by recursive descent.

Where notation is ambiguous: `2\frac{1}{3}` is the mixed number, `ab` a product, `1/2x` is `(1/2)x` but `1/xy` is
`1/(xy)`, `\sin 2x` takes all of `2x`, `\log` has base 10. Whether a letter before a bracket is a factor or an unknown
function says the `Reading`, which `letter_readings` chooses.
"""

from functools import lru_cache

from qwen_align.reward.math.expression_atom_parser import make_literal, parse_atom_from_token
from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError, tokenize_expression
from qwen_align.reward.math.expression_tree import Node, make_call, make_product
from qwen_align.reward.math.expression_vocabulary import CLOSING_BRACKETS, FACTOR_STARTS, FUNCTION_NAMES
from qwen_align.reward.math.letter_parser import parse_application
from qwen_align.reward.math.token_cursor import DEFAULT_READING, Reading, TokenCursor

MAX_CACHED = 400  # characters: longer answers are rare, and their trees large
MAX_NESTING = 64
MAX_DEPTH = 160  # of the tree: an evaluation takes three frames a level, CPython allows 1,000


def parse_expression(text: str, reading: Reading = DEFAULT_READING) -> Node | None:
    """Parses a text to an expression tree. Returns None if the text is not one scalar expression as a whole.

    Texts that are to be compared are parsed by `letter_readings.parse_alike`.
    """
    parse = _parse_uncached if len(text) <= MAX_CACHED else _parse_uncached.__wrapped__
    return parse(text, reading)


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def _parse_uncached(text: str, reading: Reading) -> Node | None:
    """Parses a text to an expression tree without the cache that `parse_expression` adds."""
    try:
        tokens = tokenize_expression(text)
        return ExpressionParser(tokens, reading).parse_all_tokens() if tokens else None
    except NotAnExpressionError:
        return None


class ExpressionParser(TokenCursor):
    """A recursive descent parser of sums, products, powers and brackets.

    All other factors are parsed by `parse_atom_from_token`.
    """

    def parse_all_tokens(self) -> Node:
        """Parses all tokens to one expression tree.

        Raises NotAnExpressionError if tokens remain or the tree is too deep.
        """
        node = self.parse_over_or_choose()
        if self.tokens[self.position]:
            raise NotAnExpressionError(f"{self.tokens[self.position]!r} was not expected")
        if node.depth > MAX_DEPTH:
            raise NotAnExpressionError("too deep")
        return node

    def parse_over_or_choose(self) -> Node:
        r"""Parses a sum, or two sums joined by `\over` or `\choose` as in `{3 \over 2}` and `{6 \choose 3}`."""
        node = self.parse_sum()
        sign = self.peek_token()
        if sign not in {r"\over", r"\choose"}:
            return node
        self.take_token()
        denominator = self.parse_sum()
        return Node("quotient", (node, denominator)) if sign == r"\over" else make_call("binomial", node, denominator)

    def parse_sum(self) -> Node:
        """Parses the longest sum that starts at the current token."""
        terms = [self.parse_product()]
        while (sign := self.peek_token()) in {"+", "-"}:
            self.take_token()
            term = self.parse_product()
            terms.append(Node("negative", (term,)) if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def parse_product(self) -> Node:
        """Parses the longest product that starts at the current token, including quotients and `mod`."""
        factors = [self.parse_signed_factor()]
        while True:
            token = self.peek_token()
            if token == "*":
                self.take_token()
                factors.append(self.parse_signed_factor())
            elif token == "/":
                self.take_token()
                factors = [Node("quotient", (make_product(factors), self.parse_denominator()))]
            elif token == "mod":
                self.take_token()
                factors = [make_call("mod", make_product(factors), self.parse_signed_factor())]
            elif self.is_factor_ahead():
                factors.append(self.parse_power())
            else:
                return make_product(factors)

    def parse_denominator(self) -> Node:
        """Parses the denominator after a slash, which is 2 in `1/2x` and the product xy in `1/xy`."""
        factors = [self.parse_signed_factor()]
        if self.tokens[self.position - 1].isalpha() and factors[0].head in {"symbol", "power"}:
            while self.is_letter(self.peek_token()):
                factors.append(self.parse_power())
        return make_product(factors)

    def parse_signed_factor(self) -> Node:
        """Parses a factor with its leading plus and minus signs."""
        is_negative = False
        while (sign := self.peek_token()) in {"+", "-"}:
            self.take_token()
            is_negative ^= sign == "-"
        node = self.parse_power()
        return Node("negative", (node,)) if is_negative else node

    def is_factor_ahead(self) -> bool:
        """Checks whether the next token starts another factor, without a multiplication sign.

        A number may follow only a bracket: raises NotAnExpressionError for `x2`.
        """
        token = self.peek_token()
        if token[:1].isdigit() or token[:1] == ".":
            if (
                self.tokens[self.position - 1] in {")", "]", "}", ">|", r"\rfloor", r"\rceil"}
                or self.position == self.cut_position
            ):
                return True
            raise NotAnExpressionError("a number follows without a sign")
        if token == "|":
            return self.open_bars == 0
        return token in FACTOR_STARTS or self.is_letter(token)

    def parse_power(self) -> Node:
        """Parses a factor followed by its factorial signs and exponents, or a function's power such as `f^{-1}(x)`."""
        start = self.position
        base = self.parse_atom()
        if self.tokens[start] == "{" and base.head == "symbol" and self.peek_token() in {"(", "["}:
            base = parse_application(self, base) or base  # a letter in braces of its own, as `\mathbf{F}` leaves it
        node = self.parse_exponents_of(base)
        is_letter_power = base.head == "symbol" and node.head == "power" and node.args[0] is base
        if not is_letter_power or self.peek_token() not in {"(", "["} or self.tokens[start] in CLOSING_BRACKETS:
            return node
        application = parse_application(self, base, node.args[1])
        return node if application is None else self.parse_exponents_of(application)

    def parse_exponents_of(self, base: Node) -> Node:
        """Parses the factorial signs and exponents after a factor."""
        while self.peek_token() == "!":
            self.take_token()
            base = make_call("factorial", base)
            if self.peek_token() == "!":
                raise NotAnExpressionError("double factorials are not read")
        if self.peek_token() != "^":
            return base
        if self.take_degree_sign():
            return make_call("degrees", base)
        exponents = [base]
        while self.peek_token() == "^":
            self.take_token()
            exponents.append(self.parse_exponent())
        if self.peek_token() == "!":
            raise NotAnExpressionError("a factorial of a power needs brackets")
        node = exponents.pop()
        while exponents:
            node = Node("power", (exponents.pop(), node))
        return node

    def take_degree_sign(self) -> bool:
        """Consumes a degree sign if it is the next token and returns whether it was."""
        next_tokens = self.tokens[self.position : self.position + 4]
        for spelling in (["^", r"\circ"], ["^", "{", r"\circ", "}"], ["^", "degree"], ["^", "{", "degree", "}"]):
            if next_tokens[: len(spelling)] == spelling:
                self.position += len(spelling)
                return True
        return False

    def parse_exponent(self) -> Node:
        """Parses an exponent: a group, number, variable or command with arguments, with leading signs."""
        is_negative = False
        while (sign := self.peek_token()) in {"+", "-"}:
            self.take_token()
            is_negative ^= sign == "-"
        token = self.peek_token()
        if token in FUNCTION_NAMES or token in {r"\sum", r"\prod", "|"}:
            raise NotAnExpressionError(f"the exponent {token} needs brackets")
        node = make_literal(self.take_token()) if token[:1].isdigit() or token[:1] == "." else self.parse_atom()
        return Node("negative", (node,)) if is_negative else node

    def parse_argument(self) -> Node:
        """Parses the argument of a LaTeX command, which is a group or the next single character or command."""
        token = self.peek_token()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.position] = token[1:]
            self.cut_position = self.position
            return make_literal(token[0])
        if token in {"+", "-", "|", ""} or token in FUNCTION_NAMES:
            raise NotAnExpressionError("an argument is missing")
        return make_literal(self.take_token()) if token.isdigit() else self.parse_atom()

    def parse_atom(self) -> Node:
        """Parses a single factor without its exponents. Raises NotAnExpressionError if it is nested too deeply."""
        self.nesting_depth += 1
        if self.nesting_depth > MAX_NESTING:
            raise NotAnExpressionError("nested too deeply")
        token = self.take_token()
        try:
            return parse_atom_from_token(self, token)
        finally:
            self.nesting_depth -= 1

    def parse_group(self, opening: str) -> Node:
        """Parses the rest of a bracketed group after its opening bracket. A group between bars is an absolute value."""
        if opening == "|":
            self.open_bars += 1
            node = self.parse_sum()
            self.open_bars -= 1
            self.expect_token("|")
            return make_call("abs", node)
        outer_bars, self.open_bars = self.open_bars, 0
        node = self.parse_over_or_choose() if opening == "{" else self.parse_sum()
        self.open_bars = outer_bars
        self.expect_token(CLOSING_BRACKETS[opening])
        name = {"|<": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}.get(opening)
        return make_call(name, node) if name else node
