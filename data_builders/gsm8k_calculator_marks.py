"""Parses GSM8K's calculator annotations, such as `<<48/2=24>>`, and checks them in exact arithmetic."""

import re
from fractions import Fraction
from typing import NamedTuple

MARK = re.compile(r"<<([^<>]*)>>")
_TOKEN = re.compile(r"\s*(?:([0-9]{1,40}(?:,[0-9]{3})*(?:\.[0-9]{0,40})?|\.[0-9]{1,40})|(//|[-+*/()]))")
_MAX_BRACKET_DEPTH = 50  # brackets within brackets; people rarely nest five

_N_FLOAT_DIGITS = 15  # a binary float of 64 bits is good for so many; calculators print two more, which are noise


class UnreadableMarkError(ValueError):
    """An error for a calculator annotation that is no arithmetic expression over numbers."""


class Mark(NamedTuple):
    """A calculator annotation (mark): its position in the text, its sides, and whether they are equal."""

    start: int
    end: int
    sides: tuple[str, ...]
    is_right: bool


def parse_calculator_marks(text: str, *, may_round: bool = True) -> list[Mark]:
    """Parses the calculator annotations of a text in order, and checks whether their sides are equal.

    Raises UnreadableMarkError for a mark that is no arithmetic expression over numbers.

    A mark is right if every side equals the first. With `may_round` a side with decimals may be the first one rounded,
    or cut, to as many: `<<1/3=0.33>>`, `<<2/3=0.66>>`, `<<4.2*7=29.400000000000002>>`; a whole number has to be exact.
    """
    parsed_marks = [parse_mark(match, may_round) for match in MARK.finditer(text)]
    if "<<" in remove_calculator_marks(text):
        raise UnreadableMarkError("a mark is not closed")
    return parsed_marks


def parse_mark(match: re.Match[str], may_round: bool) -> Mark:
    """Parses one calculator annotation and checks whether its sides are equal."""
    sides = tuple(side.strip() for side in match[1].split("="))
    if len(sides) < 2:
        raise UnreadableMarkError(f"{match[0]!r} has no '='")
    try:
        exact, *other_values = [evaluate_expression(side) for side in sides]
    except UnreadableMarkError as error:
        raise UnreadableMarkError(f"{match[0]!r}: {error}") from None
    is_right = all(
        other == exact or (may_round and _is_rounded_value(exact, other, side))
        for other, side in zip(other_values, sides[1:], strict=True)
    )
    return Mark(match.start(), match.end(), sides, is_right)


def remove_calculator_marks(text: str) -> str:
    """Removes the calculator annotations (`<<...>>`) from a text."""
    return MARK.sub("", text)


def evaluate_expression(expression: str) -> Fraction:
    """Evaluates an arithmetic expression of numbers, + - * / // and brackets exactly.

    Raises UnreadableMarkError for any other text.
    """
    tokens = _tokenize_expression(expression)
    parser = _ExpressionParser(tokens)
    result = parser.parse_sum(0)
    if parser.position < len(tokens):
        raise UnreadableMarkError(f"'{tokens[parser.position]}' is out of place in {expression!r}")
    return result


def _tokenize_expression(expression: str) -> list[str]:
    """Splits an arithmetic expression into numbers, signs and brackets."""
    tokens, position = [], 0
    while expression[position:].strip():
        match = _TOKEN.match(expression, position)
        if match is None:
            raise UnreadableMarkError(f"{expression[position:].strip()[0]!r} is no number or sign")
        number, sign = match.groups()
        tokens.append(sign or number.replace(",", ""))
        position = match.end()
    return tokens


class _ExpressionParser:
    """A recursive-descent parser that evaluates the tokens of an arithmetic expression.

    It reads sums of products of numbers, signs and brackets.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position = tokens, 0

    def parse_sum(self, depth: int) -> Fraction:
        """Parses and evaluates a sum or difference of products."""
        total = self.parse_product(depth)
        while self._peek_token() in ("+", "-"):
            sign = self._take_token()
            term = self.parse_product(depth)
            total = total + term if sign == "+" else total - term
        return total

    def parse_product(self, depth: int) -> Fraction:
        """Parses and evaluates a product or quotient of signed operands."""
        total = self.parse_signed(depth)
        while self._peek_token() in ("*", "/", "//", "("):  # 2(3+4) is a product
            sign = "*" if self._peek_token() == "(" else self._take_token()
            factor = self.parse_signed(depth)
            if sign != "*" and not factor:
                raise UnreadableMarkError("divides by zero")
            total = total * factor if sign == "*" else total / factor if sign == "/" else Fraction(total // factor)
        return total

    def parse_signed(self, depth: int) -> Fraction:
        """Parses and evaluates an operand with any number of signs before it."""
        is_minus = False
        while self._peek_token() in ("+", "-"):
            is_minus ^= self._take_token() == "-"
        result = self.parse_operand(depth)
        return -result if is_minus else result

    def parse_operand(self, depth: int) -> Fraction:
        """Parses and evaluates a number or an expression in brackets."""
        token = self._take_token()
        if token == "(":
            if depth == _MAX_BRACKET_DEPTH:
                raise UnreadableMarkError("has too many brackets")
            result = self.parse_sum(depth + 1)
            if self._take_token() != ")":
                raise UnreadableMarkError("a bracket is not closed")
            return result
        if not token or token in ("*", "/", "//", ")"):
            raise UnreadableMarkError(f"a number is missing before '{token}'" if token else "a number is missing")
        return Fraction(token.removesuffix("."))

    def _peek_token(self) -> str:
        """Returns the next token without consuming it. The token is empty at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take_token(self) -> str:
        """Consumes and returns the next token. The token is empty at the end."""
        self.position += 1
        return self.tokens[self.position - 1] if self.position <= len(self.tokens) else ""


def _is_rounded_value(exact: Fraction, stated: Fraction, stated_text: str) -> bool:
    """Returns whether a plain decimal is an exact value, rounded or cut to the decimal's digits.

    A half may be rounded either way.
    """
    decimals = re.fullmatch(r"-?[0-9,]*\.([0-9]+)", stated_text)
    if decimals is None:
        return False
    if len(stated_text.strip("-0.").replace(".", "")) >= _N_FLOAT_DIGITS:
        return abs(stated - exact) <= abs(exact) * Fraction(1, 10 ** (_N_FLOAT_DIGITS - 1))
    unit = Fraction(1, 10 ** len(decimals[1]))
    return abs(stated - exact) <= unit / 2 or (abs(stated) <= abs(exact) and abs(stated - exact) < unit)
