r"""Trailing units: a closed list, so that `2h` stays a product and `3 million` is not 3."""

import re

# One unit a line, its canonical name first. A single letter is a unit only inside \text{}, \mathrm{} and the like.
_UNITS = """
percent percentage %
degree degrees ° deg
radian radians rad
dollar dollars $ usd
cent cents ¢
euro euros € eur
pound_sterling £ gbp
yuan ¥ 元 rmb cny
millimeter mm millimeters millimetre millimetres 毫米
centimeter cm centimeters centimetre centimetres 厘米
meter m meters metre metres 米
kilometer km kilometers kilometre kilometres 千米 公里
inch inches
foot feet ft
yard yards yd
mile miles mi
gram g grams 克
kilogram kg kilograms 千克 公斤
pound pounds lb lbs
ounce ounces oz
liter l liters litre litres 升
milliliter ml milliliters millilitre millilitres 毫升
second s seconds sec secs 秒
minute minutes min mins 分钟
hour h hours hr hrs 小时
day days 天
week weeks 周
month months 个月
year years 年
cup cups
unit units
piece pieces 个
person persons people 人
"""
_CANONICAL = {word: line.split()[0] for line in _UNITS.strip().splitlines() for word in line.split()}
_CANONICAL |= {"kph": "kilometer/hour", "mph": "mile/hour"}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "平方": "^2", "立方": "^3"}

_POWER = re.compile(r"\^(?:([23])|\{([23])\})$")
_WRAPPED = re.compile(r"\\(?:text|textrm|textnormal|textbf|mathrm|mbox|rm)\s*\{([^{}\\]*)\}$")
_PLAIN = re.compile(r"(?<=[0-9.})%\s])(?:[A-Za-z一-鿿/ ]+|[%°¢€£])$")
_LONGEST = 48  # characters of a unit that are looked at
_MONEY = re.compile(r"([+-]?)\s*(\\\$|[$€£¥])\s*(?=[0-9.])")


def split_unit(text: str) -> tuple[str, str]:
    """`text` without its trailing unit or leading money sign, and the unit's canonical name ("" for none)."""
    if money := _MONEY.match(text):
        rest, unit = split_unit(money[1] + text[money.end() :])
        sign = _CANONICAL[money[2].lstrip("\\")]
        return (rest, sign) if unit in ("", sign) else (text, "")
    power = _POWER.search(text)
    body = text[: power.start()].rstrip() if power else text
    exponent = f"^{power[1] or power[2]}" if power else ""
    start = max(0, len(body) - _LONGEST)
    wrapped = _WRAPPED.search(body, start)
    found = wrapped or _PLAIN.search(body, start)
    if found is None:
        return text, ""
    unit = _unit(wrapped[1] if wrapped else found[0], exponent, letters=wrapped is not None)
    return (body[: found.start()].rstrip(), unit) if unit else (text, "")


def _unit(words: str, exponent: str, *, letters: bool) -> str:
    """The canonical name of `30 miles per hour`'s words, "" if they are no unit of the list."""
    parts = [part.split() for part in words.strip(" .").lower().replace(" per ", "/").split("/")]
    names: list[str] = []
    for part in parts:
        power = "".join(_POWERS[word] for word in part[:-1] if word in _POWERS)
        word = part[-1] if part else ""
        known = word in _CANONICAL and (letters or bool(names) or len(word) > 1 or not word.isalpha() or word > "z")
        if not known or len(part) > 2 or (len(part) == 2 and not power):
            return ""
        names.append(_CANONICAL[word] + power)
    return "/".join(names) + exponent
