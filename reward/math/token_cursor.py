"""A place among the tokens of an expression, and what can be read from there."""

from abc import ABC, abstractmethod

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.expression_vocabulary import GREEK_LETTERS


class TokenCursor(ABC):
    r"""The tokens and the place of the next one.

    `bars` counts the open signs of absolute value, `bound` holds the letters bound by sum and product signs, and `cut`
    is the place of a number whose first digit was a command's argument: `\frac123` is 3/2.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.position = 0
        self.nesting_depth = 0
        self.open_bars = 0
        self.bound_letters: list[str] = []
        self.cut_position = -1

    def take_token(self) -> str:
        token = self.tokens[self.position]
        self.position += 1 if token else 0
        return token

    def peek_token(self, ahead: int = 0) -> str:
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def expect_token(self, token: str) -> None:
        if self.take_token() != token:
            raise NotAnExpressionError(f"{token!r} was expected")

    def is_letter(self, token: str) -> bool:
        return (len(token) == 1 and token.isalpha()) or token in GREEK_LETTERS or token == "pi"

    @abstractmethod
    def parse_sum(self) -> Node:
        """The longest sum from here."""

    @abstractmethod
    def parse_product(self) -> Node:
        """The longest product from here."""

    @abstractmethod
    def parse_power(self) -> Node:
        """A factor with its factorials and exponents."""

    @abstractmethod
    def parse_exponent(self) -> Node:
        """An exponent."""

    @abstractmethod
    def parse_argument(self) -> Node:
        """An argument of a LaTeX command."""

    @abstractmethod
    def parse_atom(self) -> Node:
        """A factor without its exponents."""

    @abstractmethod
    def parse_group(self, opening: str) -> Node:
        """What is in the brackets whose opening one was taken."""

    @abstractmethod
    def is_factor_ahead(self) -> bool:
        """Whether a factor follows without a sign."""
