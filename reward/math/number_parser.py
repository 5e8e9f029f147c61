r"""Numbers written plainly, read exactly and without a parser: `-1,234.5`, `\frac{3}{4}`, `2 1/3`, 十五, three."""

import re
from fractions import Fraction

MAX_DIGITS = 1_000  # far below CPython's own limit of 4,300 for int(); arithmetic on these takes microseconds

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(_DECIMAL)
_FRACTION = re.compile(
    rf"\\frac ?(?:\{{ ?([+-]? ?{_DECIMAL}) ?\}}|([0-9])) ?(?:\{{ ?([+-]? ?{_DECIMAL}) ?\}}|([0-9]))"
    rf"|({_DECIMAL}) ?/ ?([+-]? ?{_DECIMAL})"
)
_MIXED = re.compile(
    r"([0-9]+) ?\\frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))|([0-9]+) ([0-9]+) ?/ ?([0-9]+)"
)
_ENGLISH = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_CHINESE_DIGITS = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(r"[零〇一二两三四五六七八九十百千万亿]{1,20}")
_CHINESE_FRACTION = re.compile(rf"({_CHINESE.pattern}|[0-9]+)分之({_CHINESE.pattern}|[0-9]+)")


def plain_number(text: str) -> Fraction | None:
    """The exact number written plainly in `text` (in layout form), else None."""
    if len(text) > MAX_DIGITS:
        return None
    sign = -1 if text[:1] == "-" else 1
    if text[:1] in ("-", "+"):
        text = text[1:].lstrip()
    size = _unsigned(text)
    return None if size is None else sign * size


def spelled_number(word: str) -> Fraction | None:
    """The number a word says: `seven`, 十五, 三分之一."""
    if word in _ENGLISH:
        return Fraction(_ENGLISH[word])
    if word.startswith("负"):
        size = spelled_number(word[1:])
        return None if size is None else -size
    whole, point, places = word.partition("点")
    if point and _CHINESE.fullmatch(whole) and places and set(places) <= set(_CHINESE_DIGITS):
        return Fraction(_chinese(whole)) + Fraction(_chinese(places), 10 ** len(places))
    if found := _CHINESE_FRACTION.fullmatch(word):
        below, above = (_chinese(part) for part in found.groups())
        return Fraction(above, below) if below else None
    return Fraction(_chinese(word)) if _CHINESE.fullmatch(word) else None


def _unsigned(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return _decimal(text)
    if found := _FRACTION.fullmatch(text):
        above, below = (_signed(part) for part in found.groups() if part is not None)
        return above / below if below else None
    if found := _MIXED.fullmatch(text):
        whole, above, below = (_decimal(part) for part in found.groups() if part is not None)
        return whole + above / below if above < below else None
    return None


def _signed(text: str) -> Fraction:
    size = _decimal(text.lstrip("+- "))
    return -size if text.startswith("-") else size


def _decimal(text: str) -> Fraction:
    whole, _, places = text.replace(",", "").partition(".")
    return Fraction(int((whole + places) or "0"), 10 ** len(places)) if places else Fraction(int(whole or "0"))


def _chinese(word: str) -> int:
    if word.isdigit() and word.isascii():
        return int(word)
    if not any(sign in "十百千万亿" for sign in word):
        return int("".join(str(_CHINESE_DIGITS[sign]) for sign in word))
    total = section = digit = 0
    for sign in word:
        if sign in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[sign]
        elif sign in _CHINESE_UNITS:
            section += (digit or 1) * _CHINESE_UNITS[sign]
            digit = 0
        else:
            total = (total + section + digit) * (10_000 if sign == "万" else 100_000_000)
            section = digit = 0
    return total + section + digit
