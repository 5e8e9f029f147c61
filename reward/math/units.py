r"""Trailing units: a closed list with exact factors, so that `2h` stays a product and 1 m is 100 cm."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from qwen_align.reward.math.unit_table import POWER_WORDS, SCALES, UNITS, Unit, known_word

ANY_WORD = "*"  # among `letters`: the text is a gold, whose unit may be any word
_NO_UNITS = frozenset("squared cubed factorial mod over plus minus times divided root not none half double".split())
_ASIDES = frozenset(
    "of the a an each total different distinct possible old long tall high wide deep away more fewer new red blue "
    "green yellow black white".split()
)
_SPEEDS = frozenset({"m/s", "m/s^2", "m/s^{2}"})  # the one compound of single letters that is read without \\text
_SIGN_UNITS = {name: name.lower() for name in ("USD", "RMB", "CNY", "EUR", "GBP", "Rs")} | {
    r"\$": "$",
    "$": "$",
    "€": "€",
    "£": "£",
    "¥": "¥",
    "₹": "₹",
}


class Measured(NamedTuple):
    """`text` is what is left before the unit; it is to be multiplied by `scale` (of `million`, `dozen`)."""

    text: str
    unit: Unit | None = None
    scale: int = 1


_TAIL = re.compile(
    r"(?:\\text\{[^{}\\]*\}|\\%|\\Omega(?![A-Za-z])|(?<![A-Za-z\\_])[A-Za-z]+\.?(?![A-Za-z])|°[CF]?|[%¢€£¥₹一-鿿]"
    r"|\^(?:-?[1-4]|\{-?[1-4]\})|\\cdot ?|[/ ]|(?<=[0-9}])-(?=[a-z]))+$"
)
_PIECE = re.compile(r"\\text\{([^{}\\]*)\}|\^\{?(-?[1-4])\}?|(\\%|°[CF]?|[%¢€£¥₹])|([A-Za-z.]+|\\Omega)|([一-鿿]+)|(/)")
_WORDS_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z.]*|°[CF]?|[%¢€£¥$]|[一-鿿]+)|\^\{?(-?[1-4])\}?|(/)|[ \-(),·⋅*]+|\\?\$")
_CLASSIFIERS = frozenset("个人只本张支棵条头匹辆台件朵颗粒名位盒箱袋瓶杯碗盘枝把间道题次种组架艘套岁倍")
_LONGEST_COUNTED = 5  # characters of a Chinese classifier with what is counted
_LONGEST_TAIL = 96  # characters of a unit that are looked at
_LEADING_MONEY = re.compile(
    r"([+-]?)\s*(?:US)?\s*(\\\$|[$€£¥₹]|(?:USD|RMB|CNY|EUR|GBP|Rs\.?) )\s*([+-]?)\s*(?=[0-9.\\])"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_INCHES = re.compile(r"([0-9./]+) ?(?:''|\"|\^ ?\{ ?(?:''|\\prime ?\\prime) ?\})")
_RATE = re.compile(r"([0-9.,]+) ?(?:\\text\{ ?)?(?:per |/ ?|an? |each )(?:\\text\{ ?)?([A-Za-z]{2,}) ?\}?")
_PERCENT_OF_PERCENT = (("percent", 2),)
_ENDS_A_VALUE = re.compile(r"(?:[0-9.})\]!|]|\\[A-Za-z]+|[A-Za-z])$")


@lru_cache(maxsize=4_096)
def measured(text: str, letters: frozenset[str] = frozenset()) -> Measured:
    """`text` (in layout form) without its trailing unit or leading money sign.

    Single bare letters are units only if in `letters`, and words outside the list as well.
    """
    if (inches := _INCHES.fullmatch(text)) is not None:
        return Measured(inches[1], UNITS["inch"])
    if money := _LEADING_MONEY.match(text):
        money_word = _SIGN_UNITS[money[2].rstrip(". ")]
        if (rate := _RATE.fullmatch(text, money.end())) and known_word(rate[2]):
            return Measured(money[1] + money[3] + rate[1], _unit_of([(money_word, 1), (rate[2], -1)]))
        rest = measured(money[1] + money[3] + text[money.end() :], letters)
        unit = _unit_of([(money_word, 1)])
        return rest._replace(unit=unit) if rest.unit is None or rest.unit == unit else Measured(text)
    start = max(0, len(text) - _LONGEST_TAIL)
    tail = _TAIL.search(text, start)
    if tail is None:
        return Measured(text)
    for piece in _PIECE.finditer(text, tail.start()):
        body = text[: piece.start()].rstrip()
        if piece[4] and body.endswith("-"):  # `5-inch`
            body = body[:-1]
        if piece[6] or piece[2] or not _ENDS_A_VALUE.search(body):
            continue
        found = _read_unit(text[piece.start() :], letters, _follows_number(body))
        if found is not None and found.unit is not None and found.unit.dimensions == _PERCENT_OF_PERCENT:
            return Measured(text)
        if found is not None and not (_is_angle(found.unit) and _TRIGONOMETRY.search(body)):
            return found._replace(text=body)
    return Measured(text)


def agree(one: Unit, other: Unit) -> Fraction | None:
    """How many of `other` one of `one` is, None where they measure different things."""
    if {name for unit in (one, other) for name, _ in unit.dimensions} >= {"celsius", "fahrenheit"}:
        return None
    if one.dimensions == other.dimensions or _alike(one) == _alike(other):
        return one.factor / other.factor
    ones, others = dict(one.dimensions), dict(other.dimensions)
    if "unit" in ones or "unit" in others:  # `units^2` agrees with any area
        return Fraction(1) if sorted(ones.values()) == sorted(others.values()) or not ones or not others else None
    return None


def letters_of(unit: Unit | None) -> frozenset[str]:
    """The single letters that may stand for the parts of a gold's unit in an answer."""
    if unit is None:
        return frozenset()
    wanted = {dimension for dimension, _ in unit.dimensions}
    named = (name for name, one in UNITS.items() if len(name) == 1 and one.dimensions[0][0] in wanted)
    return frozenset([*named, *(dimension for dimension in wanted if dimension not in UNITS)])


def _alike(unit: Unit) -> tuple[tuple[str, int], ...]:
    """The dimensions with degrees of an angle and of a temperature told by one name: `37 degrees` may be either."""
    return tuple(("degree" if name in ("celsius", "fahrenheit") else name, power) for name, power in unit.dimensions)


def _is_angle(unit: Unit | None) -> bool:
    return unit is not None and unit.dimensions == (("degree", 1),)


def _follows_number(body: str) -> bool:
    return body[-1:].isdigit() or body.endswith((".", "}", r"\pi"))


def _read_unit(tail: str, letters: frozenset[str], after_number: bool) -> Measured | None:
    """The unit that all of `tail` is, with the scale words before it."""
    words: list[tuple[str, int]] = []
    scale, power, sign = 1, 1, 1
    is_speed = after_number and tail.replace(" ", "") in _SPEEDS
    for said, exponent, is_text in _pieces(tail):
        word = said.rstrip(".") if said.rstrip(".") in POWER_WORDS else said
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
        elif word in _ASIDES:
            continue
        elif _is_unit(word, letters, is_text or sign < 0 or is_speed) and (after_number or is_text or len(word) > 1):
            words.append((word, sign * power))
            power = 1
        else:
            return None
    if not words:
        return Measured("", None, scale) if scale != 1 else None
    return Measured("", _unit_of(words), scale)


def _pieces(tail: str) -> list[tuple[str, int, bool]]:
    """The words and powers of a unit's text: word, exponent (0 for a word), whether it stood in \\text."""
    pieces: list[tuple[str, int, bool]] = []
    for found in _PIECE.finditer(tail):
        if found[1] is not None:
            end = 0
            for inner in _WORDS_IN_TEXT.finditer(found[1]):
                if inner.start() != end:
                    return [("?", 0, True)]
                end = inner.end()
                if inner[1] or inner[3]:
                    pieces += [(word, 0, True) for word in _chinese(inner[1] or inner[3])]
                elif inner[2]:
                    pieces.append(("", int(inner[2]), True))
            if end != len(found[1]):
                return [("?", 0, True)]
        elif found[2]:
            pieces.append(("", int(found[2]), False))
        elif found[3]:
            pieces.append((found[3].lstrip("\\"), 0, False))
        elif found[4]:
            pieces.append((found[4], 0, False))
        elif found[5]:
            pieces += [(word, 0, False) for word in _chinese(found[5])]
        else:
            pieces.append(("/", 0, False))
    return pieces


def _chinese(word: str) -> list[str]:
    """平方厘米 is 平方 and 厘米, 名学生 is 名 with what is counted; other words stay whole."""
    if word not in UNITS and word[0] in _CLASSIFIERS and len(word) <= _LONGEST_COUNTED:
        return [word[0]]
    for head in ("平方", "立方", "万", "亿", "千", "百"):
        if word.startswith(head) and word != head and word not in UNITS:
            return [head, *_chinese(word[len(head) :])]
    return [word]


def _is_unit(word: str, letters: frozenset[str], is_text: bool) -> bool:
    if word in letters or _singular(word) in letters:
        return True
    if len(word) == 1 and word.isascii() and word.isalpha():
        return is_text and word in UNITS
    if (
        ANY_WORD in letters
        and len(word) > 2
        and word.isalpha()
        and not word.isupper()
        and word.lower() not in _NO_UNITS
    ):
        return True
    return known_word(word) is not None


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")


def _unit_of(words: list[tuple[str, int]]) -> Unit:
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    for word, power in words:
        known = known_word(word)
        one = UNITS[known] if known else Unit(Fraction(1), ((_singular(word), 1),))
        factor *= one.factor**power
        for dimension, exponent in one.dimensions:
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * power
    return Unit(factor, tuple(sorted((name, exponent) for name, exponent in dimensions.items() if exponent)))
