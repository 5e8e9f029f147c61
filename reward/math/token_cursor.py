"""A cursor over the tokens of an expression, with the interface that the parsers share."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.expression_vocabulary import GREEK_LETTERS


class Reading(NamedTuple):
    """How the parts of an expression are read that its text alone leaves open.

    `factors` holds the letters that are factors before a bracket, as in `k(a+b)`; all others are functions there.
    `has_names` says that a run of capitals such as `AB` is one name (of a segment), not a product.
    """

    factors: frozenset[str] = frozenset()
    has_names: bool = True


DEFAULT_READING = Reading()


class TokenCursor(ABC):
    r"""A cursor over the tokens of an expression, at the position of the next token.

    `open_bars` counts the open signs of absolute value, `bound_letters` holds the letters bound by sum and product
    signs, and `cut_position` is the position of a number whose first digit was a command's argument: `\frac123` is 3/2.
    """

    def __init__(self, tokens: list[str], reading: Reading) -> None:
        self.tokens = [*tokens, ""]
        self.reading = reading
        self.position = 0
        self.nesting_depth = 0
        self.open_bars = 0
        self.bound_letters: list[str] = []
        self.cut_position = -1

    def take_token(self) -> str:
        """Returns the next token and moves the cursor past it. Returns "" at the end."""
        token = self.tokens[self.position]
        self.position += 1 if token else 0
        return token

    def peek_token(self, ahead: int = 0) -> str:
        """Returns the token `ahead` positions after the next one, without moving the cursor.

        Returns "" past the end.
        """
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def expect_token(self, token: str) -> None:
        """Consumes the next token, which must equal the given token. Raises NotAnExpressionError otherwise."""
        if self.take_token() != token:
            raise NotAnExpressionError(f"{token!r} was expected")

    def is_letter(self, token: str) -> bool:
        """Checks whether a token is a Latin or Greek letter."""
        return (len(token) == 1 and token.isalpha()) or token in GREEK_LETTERS or token == "pi"

    @abstractmethod
    def parse_sum(self) -> Node:
        """Parses the longest sum that starts at the current token."""

    @abstractmethod
    def parse_product(self) -> Node:
        """Parses the longest product that starts at the current token."""

    @abstractmethod
    def parse_power(self) -> Node:
        """Parses a factor followed by its factorial signs and exponents."""

    @abstractmethod
    def parse_exponent(self) -> Node:
        """Parses the exponent of a power."""

    @abstractmethod
    def parse_argument(self) -> Node:
        """Parses the argument of a LaTeX command."""

    @abstractmethod
    def parse_atom(self) -> Node:
        """Parses a single factor without its exponents."""

    @abstractmethod
    def parse_group(self, opening: str) -> Node:
        """Parses the rest of a bracketed group after its opening bracket."""

    @abstractmethod
    def is_factor_ahead(self) -> bool:
        """Checks whether the next token starts another factor, without a multiplication sign."""
