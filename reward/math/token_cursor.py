"""A position among the tokens of an expression, and what the parsers ask of it."""

from abc import ABC, abstractmethod

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.expression_vocabulary import GREEK_LETTERS


class TokenCursor(ABC):
    r"""The tokens of an expression and the position of the next one.

    `open_bars` counts the open signs of absolute value, `bound_letters` holds the letters bound by sum and product
    signs, and `cut_position` is the position of a number whose first digit was a command's argument: `\frac123` is 3/2.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.position = 0
        self.nesting_depth = 0
        self.open_bars = 0
        self.bound_letters: list[str] = []
        self.cut_position = -1

    def take_token(self) -> str:
        """Returns the next token and moves behind it; "" at the end."""
        token = self.tokens[self.position]
        self.position += 1 if token else 0
        return token

    def peek_token(self, ahead: int = 0) -> str:
        """Returns the next token, or one further `ahead`, without moving; "" behind the end."""
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def expect_token(self, token: str) -> None:
        """Moves behind the next token, which must be this one; raises NotAnExpressionError otherwise."""
        if self.take_token() != token:
            raise NotAnExpressionError(f"{token!r} was expected")

    def is_letter(self, token: str) -> bool:
        """Checks whether a token is a Latin or Greek letter."""
        return (len(token) == 1 and token.isalpha()) or token in GREEK_LETTERS or token == "pi"

    @abstractmethod
    def parse_sum(self) -> Node:
        """Parses the longest sum from here."""

    @abstractmethod
    def parse_product(self) -> Node:
        """Parses the longest product from here."""

    @abstractmethod
    def parse_power(self) -> Node:
        """Parses a factor with its factorials and exponents."""

    @abstractmethod
    def parse_exponent(self) -> Node:
        """Parses an exponent."""

    @abstractmethod
    def parse_argument(self) -> Node:
        """Parses an argument of a LaTeX command."""

    @abstractmethod
    def parse_atom(self) -> Node:
        """Parses a factor without its exponents."""

    @abstractmethod
    def parse_group(self, opening: str) -> Node:
        """Parses what is in the brackets whose opening one was taken."""

    @abstractmethod
    def is_factor_ahead(self) -> bool:
        """Checks whether a factor follows without a sign of multiplication."""
