"""A place among the tokens of an expression, and what can be read from there."""

from abc import ABC, abstractmethod

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.expression_vocabulary import GREEK


class Cursor(ABC):
    r"""The tokens and the place of the next one.

    `bars` counts the open signs of absolute value, `bound` holds the letters bound by sum and product signs, and `cut`
    is the place of a number whose first digit was a command's argument: `\frac123` is 3/2.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.place = 0
        self.nesting = 0
        self.bars = 0
        self.bound: list[str] = []
        self.cut = -1

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

    def is_letter(self, token: str) -> bool:
        return (len(token) == 1 and token.isalpha()) or token in GREEK or token == "pi"

    @abstractmethod
    def sum(self) -> Node:
        """The longest sum from here."""

    @abstractmethod
    def product(self) -> Node:
        """The longest product from here."""

    @abstractmethod
    def power(self) -> Node:
        """A factor with its factorials and exponents."""

    @abstractmethod
    def script(self) -> Node:
        """An exponent."""

    @abstractmethod
    def argument(self) -> Node:
        """An argument of a LaTeX command."""

    @abstractmethod
    def atom(self) -> Node:
        """A factor without its exponents."""

    @abstractmethod
    def group(self, opening: str) -> Node:
        """What is in the brackets whose opening one was taken."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign."""
