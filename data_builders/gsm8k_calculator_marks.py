"""The calculator marks of GSM8K, `<<48/2=24>>`: what they say, and whether it is so, in exact arithmetic."""

import re
from fractions import Fraction
from typing import NamedTuple

MARK = re.compile(r"<<([^<>]*)>>")
_TOKEN = re.compile(r"\s*(?:([0-9]{1,40}(?:,[0-9]{3})*(?:\.[0-9]{0,40})?|\.[0-9]{1,40})|(//|[-+*/()]))")
_DEEPEST = 50  # brackets within brackets; no sum of a person has five

_FLOAT_DIGITS = 15  # a binary float of 64 bits is good for so many; calculators print two more, which are noise


class UnreadableMarkError(ValueError):
    """A mark that is no sum of numbers."""


class Mark(NamedTuple):
    """A mark in a text: where it stands, its sides, and whether they are equal."""

    start: int
    end: int
    sides: tuple[str, ...]
    is_right: bool


def marks(text: str, *, may_round: bool = True) -> list[Mark]:
    """The marks of a text in order; raises UnreadableMarkError for one that is no sum of numbers.

    A mark is right if every side equals the first. With `may_round` a side with decimals may be the first one rounded,
    or cut, to as many: `<<1/3=0.33>>`, `<<2/3=0.66>>`, `<<4.2*7=29.400000000000002>>`; a whole number has to be exact.
    """
    found = [read_mark(found, may_round) for found in MARK.finditer(text)]
    if "<<" in without_marks(text):
        raise UnreadableMarkError("a mark is not closed")
    return found


def read_mark(found: re.Match[str], may_round: bool) -> Mark:
    sides = tuple(side.strip() for side in found[1].split("="))
    if len(sides) < 2:
        raise UnreadableMarkError(f"{found[0]!r} has no '='")
    try:
        exact, *others = [value(side) for side in sides]
    except UnreadableMarkError as error:
        raise UnreadableMarkError(f"{found[0]!r}: {error}") from None
    is_right = all(
        other == exact or (may_round and _is_rounded(exact, other, side))
        for other, side in zip(others, sides[1:], strict=True)
    )
    return Mark(found.start(), found.end(), sides, is_right)


def without_marks(text: str) -> str:
    """The text as a person would have written it."""
    return MARK.sub("", text)


def value(expression: str) -> Fraction:
    """The exact value of a sum of numbers with + - * / and brackets; raises UnreadableMarkError."""
    tokens = _tokens(expression)
    reader = _Reader(tokens)
    found = reader.sum(0)
    if reader.place < len(tokens):
        raise UnreadableMarkError(f"'{tokens[reader.place]}' is out of place in {expression!r}")
    return found


def _tokens(expression: str) -> list[str]:
    tokens, place = [], 0
    while expression[place:].strip():
        found = _TOKEN.match(expression, place)
        if found is None:
            raise UnreadableMarkError(f"{expression[place:].strip()[0]!r} is no number or sign")
        number, sign = found.groups()
        tokens.append(sign or number.replace(",", ""))
        place = found.end()
    return tokens


class _Reader:
    """Recursive descent over tokens: sums of products of numbers, signs and brackets."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place = tokens, 0

    def sum(self, depth: int) -> Fraction:
        total = self.product(depth)
        while self._next() in ("+", "-"):
            sign = self._take()
            term = self.product(depth)
            total = total + term if sign == "+" else total - term
        return total

    def product(self, depth: int) -> Fraction:
        total = self.signed(depth)
        while self._next() in ("*", "/", "//", "("):  # 2(3+4) is a product
            sign = "*" if self._next() == "(" else self._take()
            factor = self.signed(depth)
            if sign != "*" and not factor:
                raise UnreadableMarkError("divides by zero")
            total = total * factor if sign == "*" else total / factor if sign == "/" else Fraction(total // factor)
        return total

    def signed(self, depth: int) -> Fraction:
        is_minus = False
        while self._next() in ("+", "-"):
            is_minus ^= self._take() == "-"
        found = self.single(depth)
        return -found if is_minus else found

    def single(self, depth: int) -> Fraction:
        token = self._take()
        if token == "(":
            if depth == _DEEPEST:
                raise UnreadableMarkError("has too many brackets")
            found = self.sum(depth + 1)
            if self._take() != ")":
                raise UnreadableMarkError("a bracket is not closed")
            return found
        if not token or token in ("*", "/", "//", ")"):
            raise UnreadableMarkError(f"a number is missing before '{token}'" if token else "a number is missing")
        return Fraction(token.removesuffix("."))

    def _next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1] if self.place <= len(self.tokens) else ""


def _is_rounded(exact: Fraction, said: Fraction, written: str) -> bool:
    """Whether a plain decimal is the exact value, rounded (a half either way) or cut to its places."""
    found = re.fullmatch(r"-?[0-9,]*\.([0-9]+)", written)
    if found is None:
        return False
    if len(written.strip("-0.").replace(".", "")) >= _FLOAT_DIGITS:
        return abs(said - exact) <= abs(exact) * Fraction(1, 10 ** (_FLOAT_DIGITS - 1))
    unit = Fraction(1, 10 ** len(found[1]))
    return abs(said - exact) <= unit / 2 or (abs(said) <= abs(exact) and abs(said - exact) < unit)
