"""Splits the unit off an answer and converts units exactly. `2h` stays a product; 1 m is 100 cm."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from qwen_align.reward.math.unit_table import POWER_WORDS, SCALES, UNITS, Unit, find_unit_name

ANY_WORD = "*"  # among `unit_letters`: the text is a gold, whose unit may be any word
_NON_UNIT_WORDS = frozenset(
    "squared cubed factorial mod over plus minus times divided root not none half double".split()
)
_IGNORED_WORDS = frozenset("of the a an each total different distinct possible away".split())
_QUALIFIERS = frozenset(
    "old new long tall high wide deep thick short small large big little empty full more fewer less red blue green "
    "yellow black white purple brown pink gray grey".split()
)
_SPEED_UNITS = frozenset({"m/s", "m/s^2", "m/s^{2}"})  # the only compound of single letters accepted outside \text
_CURRENCY_UNITS = {name: name.lower() for name in ("USD", "RMB", "CNY", "EUR", "GBP", "Rs")} | {
    r"\$": "$",
    "$": "$",
    "€": "€",
    "£": "£",
    "¥": "¥",
    "₹": "₹",
}


class MeasuredText(NamedTuple):
    """The text of a quantity split from its unit.

    `text` is the part before the unit, to be multiplied by `scale` (for `million`, `dozen`).
    """

    text: str
    unit: Unit | None = None
    scale: int = 1


_UNIT_TAIL = re.compile(
    r"(?:\\text\{[^{}\\]*\}|\\%|\\Omega(?![A-Za-z])|(?<![A-Za-z\\_])[A-Za-z]+\.?(?![A-Za-z])|°[CF]?|[%¢€£¥₹一-鿿]"
    r"|\^(?:-?[1-4]|\{-?[1-4]\})|\\cdot ?|[/ ]|(?<=[0-9}])-(?=[a-z]))+$"
)
_UNIT_PIECE = re.compile(
    r"\\text\{([^{}\\]*)\}|\^\{?(-?[1-4])\}?|(\\%|°[CF]?|[%¢€£¥₹])|([A-Za-z.]+|\\Omega)|([一-鿿]+)|(/)"
)
_WORDS_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z.]*|°[CF]?|[%¢€£¥$]|[一-鿿]+)|\^\{?(-?[1-4])\}?|(/)|[ \-(),·⋅*]+|\\?\$")
_CHINESE_CLASSIFIERS = frozenset("个人只本张支棵条头匹辆台件朵颗粒名位盒箱袋瓶杯碗盘枝把间道题次种组架艘套岁倍")
_COUNTED_MARK = "*"  # before what a Chinese classifier counts
_MAX_COUNTED_CHARS = 5  # characters of a Chinese classifier with what is counted
_MAX_TAIL_CHARS = 96  # characters at the end of a text in which a unit is looked for
_LEADING_MONEY = re.compile(
    r"([+-]?)\s*(?:US)?\s*(\\\$|[$€£¥₹]|(?:USD|RMB|CNY|EUR|GBP|Rs\.?) )\s*([+-]?)\s*(?=[0-9.\\])"
)
_TRIGONOMETRIC_COMMAND = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_INCH_MARK = re.compile(r"([0-9./]+) ?(?:''|\"|\^ ?\{ ?(?:''|\\prime ?\\prime) ?\})")
_CURRENCY_RATE = re.compile(r"([0-9.,]+) ?(?:\\text\{ ?)?(?:per |/ ?|an? |each )(?:\\text\{ ?)?([A-Za-z]{2,}) ?\}?")
_PERCENT_OF_PERCENT = (("percent", 2),)
_VALUE_END = re.compile(r"(?:[0-9.})\]!|]|\\[A-Za-z]+|[A-Za-z])$")


@lru_cache(maxsize=4_096)
def split_off_unit(text: str, unit_letters: frozenset[str] = frozenset()) -> MeasuredText:
    """Splits a quantity in normalized LaTeX into its expression and its trailing unit or leading currency sign.

    Single bare letters are units only if they are in `unit_letters`, and words outside the list as well.
    """
    if (inch_match := _INCH_MARK.fullmatch(text)) is not None:
        return MeasuredText(inch_match[1], UNITS["inch"])
    if currency := _LEADING_MONEY.match(text):
        currency_word = _CURRENCY_UNITS[currency[2].rstrip(". ")]
        if (rate_match := _CURRENCY_RATE.fullmatch(text, currency.end())) and find_unit_name(rate_match[2]):
            return MeasuredText(
                currency[1] + currency[3] + rate_match[1], _combine_units([(currency_word, 1), (rate_match[2], -1)])
            )
        rest = split_off_unit(currency[1] + currency[3] + text[currency.end() :], unit_letters)
        unit = _combine_units([(currency_word, 1)])
        return rest._replace(unit=unit) if rest.unit is None or rest.unit == unit else MeasuredText(text)
    start = max(0, len(text) - _MAX_TAIL_CHARS)
    tail = _UNIT_TAIL.search(text, start)
    if tail is None:
        return MeasuredText(text)
    for piece in _UNIT_PIECE.finditer(text, tail.start()):
        body = text[: piece.start()].rstrip()
        if piece[4] and body.endswith("-") and body[-2:-1].isdigit():  # `5-inch`
            body = body[:-1]
        if piece[6] or piece[2] or not _VALUE_END.search(body):
            continue
        measured = _parse_unit(text[piece.start() :], unit_letters, _ends_with_number(body))
        if measured is not None and measured.unit is not None and measured.unit.dimensions == _PERCENT_OF_PERCENT:
            return MeasuredText(text)
        if measured is not None and not (_is_angle_unit(measured.unit) and _TRIGONOMETRIC_COMMAND.search(body)):
            return measured._replace(text=body)
    return MeasuredText(text)


def get_conversion_factor(first: Unit, second: Unit) -> Fraction | None:
    """Returns how many of the second unit equal one of the first. Returns None if they measure different quantities."""
    if {name for unit in (first, second) for name, _ in unit.dimensions} >= {"celsius", "fahrenheit"}:
        return None
    if first.qualifiers and second.qualifiers and first.qualifiers != second.qualifiers:
        return None
    if first.dimensions == second.dimensions or _merge_degree_dimensions(first) == _merge_degree_dimensions(second):
        return first.factor / second.factor
    first_powers, second_powers = dict(first.dimensions), dict(second.dimensions)
    if "unit" in first_powers or "unit" in second_powers:  # `units^2` agrees with any area
        return (
            Fraction(1)
            if sorted(first_powers.values()) == sorted(second_powers.values()) or not first_powers or not second_powers
            else None
        )
    return None


def get_unit_letters(unit: Unit | None) -> frozenset[str]:
    """Returns the single letters that an answer may use as unit symbols, given the gold's unit."""
    if unit is None:
        return frozenset()
    dimensions = {dimension for dimension, _ in unit.dimensions}
    names = (name for name, listed in UNITS.items() if len(name) == 1 and listed.dimensions[0][0] in dimensions)
    return frozenset([*names, *(dimension for dimension in dimensions if dimension not in UNITS)])


def _merge_degree_dimensions(unit: Unit) -> tuple[tuple[str, int], ...]:
    """Returns the dimensions of a unit, with degrees of angle and of temperature as the same dimension.

    `37 degrees` may be either.
    """
    return tuple(("degree" if name in ("celsius", "fahrenheit") else name, power) for name, power in unit.dimensions)


def _is_angle_unit(unit: Unit | None) -> bool:
    """Checks whether a unit is the degree of an angle."""
    return unit is not None and unit.dimensions == (("degree", 1),)


def _ends_with_number(body: str) -> bool:
    """Checks whether the text before a unit ends with a number."""
    return body[-1:].isdigit() or body.endswith((".", "}", r"\pi"))


def _parse_unit(tail: str, unit_letters: frozenset[str], is_after_number: bool) -> MeasuredText | None:
    """Parses a text that consists only of a unit, with scale words such as "million" before it.

    Returns None for any other text.
    """
    words: list[tuple[str, int]] = []
    qualifiers: set[str] = set()
    scale, power, sign = 1, 1, 1
    is_speed = is_after_number and tail.replace(" ", "") in _SPEED_UNITS
    for raw_word, exponent, is_text in _split_unit_words(tail):
        word = raw_word.rstrip(".") if raw_word.rstrip(".") in POWER_WORDS else raw_word
        if word == "/" or word == "per":
            if not words:
                return None
            sign = -1
        elif exponent:
            if not words:
                return None
            words[-1] = (words[-1][0], words[-1][1] * exponent)
        elif word in SCALES and not words:
            scale *= SCALES[word]
        elif word in POWER_WORDS:
            power = POWER_WORDS[word]
        elif word in ("squared", "cubed") and words:
            words[-1] = (words[-1][0], words[-1][1] * (2 if word == "squared" else 3))
        elif word in _IGNORED_WORDS or word in _QUALIFIERS or word[0] == _COUNTED_MARK:
            qualifiers |= set() if word in _IGNORED_WORDS else {word}
        elif _is_unit_word(word, unit_letters, is_text or sign < 0 or is_speed) and (
            is_after_number or is_text or (len(word) > 1 and not word.isupper())
        ):
            words.append((word, sign * power))
            power = 1
        else:
            return None
    if not words:
        return MeasuredText("", None, scale) if scale != 1 else None
    return MeasuredText("", _combine_units(words)._replace(qualifiers=frozenset(qualifiers)), scale)


def _split_unit_words(tail: str) -> list[tuple[str, int, bool]]:
    r"""Splits the text of a unit into triples of word, exponent and whether the word was inside `\text`.

    The exponent of a word is 0.
    """
    pieces: list[tuple[str, int, bool]] = []
    for match in _UNIT_PIECE.finditer(tail):
        if match[1] is not None:
            end = 0
            for inner_match in _WORDS_IN_TEXT.finditer(match[1]):
                if inner_match.start() != end:
                    return [("?", 0, True)]
                end = inner_match.end()
                if inner_match[1] or inner_match[3]:
                    pieces += [(word, 0, True) for word in _split_chinese_unit(inner_match[1] or inner_match[3])]
                elif inner_match[2]:
                    pieces.append(("", int(inner_match[2]), True))
            if end != len(match[1]):
                return [("?", 0, True)]
        elif match[2]:
            pieces.append(("", int(match[2]), False))
        elif match[3]:
            pieces.append((match[3].lstrip("\\"), 0, False))
        elif match[4]:
            pieces.append((match[4], 0, False))
        elif match[5]:
            pieces += [(word, 0, False) for word in _split_chinese_unit(match[5])]
        else:
            pieces.append(("/", 0, False))
    return pieces


def _split_chinese_unit(word: str) -> list[str]:
    """Splits a Chinese unit into its prefix and its base unit, so 平方厘米 becomes 平方 and 厘米.

    名学生 becomes 名 and, marked, what is counted; other words are not split.
    """
    if word not in UNITS and word[0] in _CHINESE_CLASSIFIERS and len(word) <= _MAX_COUNTED_CHARS:
        return [word[0], *([_COUNTED_MARK + word[1:]] if word[1:] else [])]
    for head in ("平方", "立方", "万", "亿", "千", "百"):
        if word.startswith(head) and word != head and word not in UNITS:
            return [head, *_split_chinese_unit(word[len(head) :])]
    return [word]


def _is_unit_word(word: str, unit_letters: frozenset[str], is_text: bool) -> bool:
    """Checks whether a word is the name of a unit, given the letters that are allowed as unit symbols."""
    if word in unit_letters or _to_singular(word) in unit_letters:
        return True
    if len(word) == 1 and word.isascii() and word.isalpha():
        return is_text and word in UNITS
    if (
        ANY_WORD in unit_letters
        and len(word) > 2
        and word.isalpha()
        and not word.isupper()
        and word.lower() not in _NON_UNIT_WORDS
    ):
        return True
    return find_unit_name(word) is not None


def _to_singular(word: str) -> str:
    """Returns a word in lower case without its plural ending."""
    return word.lower().removesuffix("s")


def _combine_units(words: list[tuple[str, int]]) -> Unit:
    """Multiplies named units, each raised to a power, into one unit."""
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    for word, power in words:
        listed_word = find_unit_name(word)
        unit = UNITS[listed_word] if listed_word else Unit(Fraction(1), ((_to_singular(word), 1),))
        factor *= unit.factor**power
        for dimension, exponent in unit.dimensions:
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * power
    return Unit(factor, tuple(sorted((name, exponent) for name, exponent in dimensions.items() if exponent)))
