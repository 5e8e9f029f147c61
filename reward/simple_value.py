r"""What a short answer says: an exact number with its unit, or a text in normal form.

No floats, no evaluation, no algebra: what is not plainly a number is compared as text, so `2^{10}` is not 1024.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from qwen_align.reward.normal_text import fold_word, has_list_comma, normal_layout, normal_text
from qwen_align.reward.units import split_unit

MAX_DIGITS = 1_000  # far below CPython's own limit of 4,300 for int(); arithmetic on these takes microseconds
_MAX_CHARS = 2_000  # longer answers are compared as they are

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[+-]?{_DECIMAL}"
_SIGN = re.compile(r"[+-]")
_PLAIN = re.compile(_DECIMAL)
_FRACTION = re.compile(rf"\\frac\{{({_SIGNED})\}}\{{({_SIGNED})\}}|({_DECIMAL})/({_SIGNED})")
_MIXED = re.compile(r"([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+) ([0-9]+)/([0-9]+)")
_NAMED = re.compile(r"([A-Za-z]|\\[A-Za-z]+)=([^=]+)")


class Value(NamedTuple):
    """`number` is None for a text; `unit` and `name` ("x" of `x = 5`) are "" where none is given."""

    number: Fraction | None
    text: str
    unit: str = ""
    name: str = ""


def equal(one: Value, other: Value) -> bool:
    """The same number or the same text; a unit or a name counts only where both have one."""
    if (one.number is None) != (other.number is None):
        return False
    if one.number != other.number or (one.number is None and one.text != other.text):
        return False
    return _agree(one.unit, other.unit) and _agree(one.name, other.name)


def _agree(one: str, other: str) -> bool:
    return not one or not other or one == other


@lru_cache(maxsize=4_096)  # the completions of a group repeat their answers and share one gold
def parse(answer: str) -> Value | None:
    """The value an answer states, None if it states nothing."""
    if len(answer) > _MAX_CHARS:
        return Value(None, " ".join(answer.split()))
    text = normal_layout(answer)
    if not text:
        return None
    named = _NAMED.fullmatch(text.replace(" ", ""))
    name, body = (named[1], text.partition("=")[2].strip()) if named else ("", text)
    bare, unit = split_unit(body)
    number = _number(bare)
    if number is not None:
        return Value(number, str(number), unit, name)
    if not bare or not body.removeprefix(bare).lstrip().startswith("\\"):
        bare, unit = text, ""  # after a formula only `\text{cm}` is surely a unit
    plain = normal_text(bare)
    return Value(None, fold_word(plain), unit) if plain else None


def _number(text: str) -> Fraction | None:
    """The exact number written plainly in `text` (layout removed, single spaces), else None."""
    if has_list_comma(text) or sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    body = normal_text(text)
    if body.startswith("(") and body.endswith(")") and "," not in body:  # `(1,200)` is a pair
        body = body[1:-1]
    sign = 1
    if _SIGN.match(body):
        sign, body = (-1 if body[0] == "-" else 1), body[1:]
    size = _unsigned(body)
    return None if size is None else sign * size


def _unsigned(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return _decimal(text)
    if found := _FRACTION.fullmatch(text):
        above, below = (_decimal(part) for part in found.groups() if part is not None)
        return above / below if below else None
    if found := _MIXED.fullmatch(text):
        whole, above, below = (_decimal(part) for part in found.groups() if part is not None)
        return whole + above / below if above < below else None
    return None


def _decimal(text: str) -> Fraction:
    whole, _, places = text.replace(",", "").partition(".")
    return Fraction(int((whole + places) or "0"), 10 ** len(places))
