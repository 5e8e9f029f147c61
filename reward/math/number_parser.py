r"""Parses plainly written numbers to their exact values, such as `-1,234.5`, `\frac{3}{4}`, `2 1/3`, 十五 or three."""

import re
from fractions import Fraction

MAX_DIGITS = 1_000  # far below CPython's own limit of 4,300 for int(); arithmetic on these takes microseconds

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN_DECIMAL = re.compile(_DECIMAL)
_FRACTION = re.compile(
    rf"\\frac ?(?:\{{ ?([+-]? ?{_DECIMAL}) ?\}}|([0-9])) ?(?:\{{ ?([+-]? ?{_DECIMAL}) ?\}}|([0-9]))"
    rf"|({_DECIMAL}) ?/ ?([+-]? ?{_DECIMAL})"
)
_MIXED_NUMBER = re.compile(
    r"([0-9]+) ?\\frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))|([0-9]+) ([0-9]+) ?/ ?([0-9]+)"
)
_ENGLISH_NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
} | {
    word: 10 * number
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_ENGLISH_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_ENGLISH_PARTS = {  # each with whether it is a plural
    word + ending: (number, bool(ending))
    for number, word in enumerate("third fourth fifth sixth seventh eighth ninth tenth".split(), start=3)
    for ending in ("", "s")
} | {"half": (2, False), "halves": (2, True), "quarter": (4, False), "quarters": (4, True)}
_TOO_LARGE = 1_000
_MAX_SPELLED_CHARS = 120
_ORDINAL_COUNTERS = frozenset("个名位项次组天年题行层排步")
_CHINESE_DIGITS = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE_NUMERAL = re.compile(r"[零〇一二两三四五六七八九十百千万亿]{1,20}")
_CHINESE_FRACTION = re.compile(rf"({_CHINESE_NUMERAL.pattern}|[0-9]+)分之({_CHINESE_NUMERAL.pattern}|[0-9]+)")


def parse_plain_number(text: str) -> Fraction | None:
    """Returns the exact value of a plainly written number in normalized LaTeX. Returns None for any other text."""
    if len(text) > MAX_DIGITS:
        return None
    sign = -1 if text[:1] == "-" else 1
    if text[:1] in ("-", "+"):
        text = text[1:].lstrip()
    magnitude = _parse_unsigned(text)
    return None if magnitude is None else sign * magnitude


def parse_spelled_number(word: str) -> Fraction | None:
    """Returns the number that English or Chinese number words mean, such as `twenty-three`, 十五 or 二又三分之一.

    Returns None for any other words.
    """
    return _parse_english_number(word) if word.isascii() else parse_chinese_number(word)


def _parse_english_number(text: str) -> Fraction | None:
    """Parses English number words, such as `seven`, `minus one hundred and five` or `two thirds`."""
    words = text.replace("-", " ").split() if text[:1].isalpha() and len(text) <= _MAX_SPELLED_CHARS else []
    if words and words[0] in ("minus", "negative"):
        magnitude = _parse_english_number(" ".join(words[1:]))
        return None if magnitude is None else -magnitude
    if len(words) > 1 and words[-1] in _ENGLISH_PARTS and "and" not in words:
        numerator = _parse_english_integer(words[:-1])
        denominator, is_plural = _ENGLISH_PARTS[words[-1]]
        return None if numerator is None or (numerator != 1) != is_plural else Fraction(numerator, denominator)
    if len(words) > 3 and words[-1] in _ENGLISH_PARTS:  # `two and a half`
        position = len(words) - 1 - words[::-1].index("and")
        part = _parse_english_number(" ".join(["one" if word == "a" else word for word in words[position + 1 :]]))
        whole = None if words[position - 1] in _ENGLISH_SCALES else _parse_english_integer(words[:position])
        return whole + part if whole is not None and part is not None and 0 < part < 1 else None
    integer = _parse_english_integer(words)
    return None if integer is None else Fraction(integer)


def _parse_english_integer(words: list[str]) -> int | None:
    """Parses the words of an English whole number. Returns None where they are not in the order of one."""
    total = group = 0
    least = _TOO_LARGE  # what the last word counted: the next has to be smaller
    for index, word in enumerate(words):
        if word == "and" and 0 < index < len(words) - 1 and words[index - 1] in ("hundred", "thousand", "million"):
            continue
        number, scale = _ENGLISH_NUMBERS.get(word), _ENGLISH_SCALES.get(word)
        if number is not None:
            size = 10 if number >= 20 else 1
            if size >= least or (least == 10 and not 0 < number < 10) or (number == 0 and len(words) > 1):
                return None
            group, least = group + number, size
        elif scale == 100 and 0 < group < 100 and least < 100:
            group, least = group * 100, 100
        elif scale is not None and scale > 100 and group and (not total or scale * 1000 <= total):
            total, group, least = total + group * scale, 0, _TOO_LARGE
        else:
            return None
    return total + group if words else None


def parse_chinese_number(word: str) -> Fraction | None:
    """Parses a number in Chinese, such as 十五, 负3, 第三 or 二又三分之一. Returns None for any other word."""
    if word.startswith("负"):
        magnitude = parse_chinese_number(word[1:])
        return None if magnitude is None or magnitude < 0 else -magnitude
    if word.startswith("第"):
        ordinal = word[1:-1] if word[-1:] in _ORDINAL_COUNTERS else word[1:]
        return parse_chinese_number(ordinal) if ordinal and "分之" not in ordinal else None
    whole, has_fraction, rest = word.partition("又")
    if has_fraction:
        parts = parse_chinese_number(whole), parse_chinese_number(rest)
        is_mixed = parts[0] is not None and parts[1] is not None and parts[0].denominator == 1 and 0 < parts[1] < 1
        return parts[0] + parts[1] if is_mixed and parts[0] is not None and parts[1] is not None else None
    if word.isascii():
        return _parse_unsigned(word) if word[:1].isdigit() or word.startswith("\\frac") else None
    integer_digits, point, decimal_digits = word.partition("点")
    if (
        point
        and _CHINESE_NUMERAL.fullmatch(integer_digits)
        and decimal_digits
        and set(decimal_digits) <= set(_CHINESE_DIGITS)
    ):
        return Fraction(_parse_chinese_integer(integer_digits)) + Fraction(
            _parse_chinese_integer(decimal_digits), 10 ** len(decimal_digits)
        )
    if match := _CHINESE_FRACTION.fullmatch(word):
        denominator, numerator = (_parse_chinese_integer(part) for part in match.groups())
        return Fraction(numerator, denominator) if denominator else None
    return Fraction(_parse_chinese_integer(word)) if _CHINESE_NUMERAL.fullmatch(word) else None


def _parse_unsigned(text: str) -> Fraction | None:
    """Parses a decimal, fraction or mixed number without a sign to its exact value."""
    if _PLAIN_DECIMAL.fullmatch(text):
        return _parse_decimal(text)
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = (_parse_signed_decimal(part) for part in match.groups() if part is not None)
        return numerator / denominator if denominator else None
    if match := _MIXED_NUMBER.fullmatch(text):
        integer_part, numerator, denominator = (_parse_decimal(part) for part in match.groups() if part is not None)
        return integer_part + numerator / denominator if numerator < denominator else None
    return None


def _parse_signed_decimal(text: str) -> Fraction:
    """Parses a decimal with an optional sign to its exact value."""
    magnitude = _parse_decimal(text.lstrip("+- "))
    return -magnitude if text.startswith("-") else magnitude


def _parse_decimal(text: str) -> Fraction:
    """Parses a decimal with or without thousands separators to its exact value."""
    integer_digits, _, decimal_digits = text.replace(",", "").partition(".")
    return (
        Fraction(int((integer_digits + decimal_digits) or "0"), 10 ** len(decimal_digits))
        if decimal_digits
        else Fraction(int(integer_digits or "0"))
    )


def _parse_chinese_integer(word: str) -> int:
    """Parses an integer in Chinese numerals or ASCII digits."""
    if word.isdigit() and word.isascii():
        return int(word)
    if not any(character in "十百千万亿" for character in word):
        return int("".join(str(_CHINESE_DIGITS[character]) for character in word))
    total = section = digit = 0
    for character in word:
        if character in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[character]
        elif character in _CHINESE_UNITS:
            section += (digit or 1) * _CHINESE_UNITS[character]
            digit = 0
        else:
            total = (total + section + digit) * (10_000 if character == "万" else 100_000_000)
            section = digit = 0
    return total + section + digit
