r"""Trailing units: a closed list with exact factors, so that `2h` stays a product and 1 m is 100 cm."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

# dimension: factor name other-names ...; exact by definition (SI brochure; international yard and pound, 1959).
_MEASURES = """
length 1/1000000000 nanometer nanometre nm
length 1/1000000 micrometer micrometre micron um
length 1/1000 millimeter millimetre mm 毫米
length 1/100 centimeter centimetre cm 厘米
length 1/10 decimeter decimetre dm 分米
length 1 meter metre m 米
length 1000 kilometer kilometre km kms 千米 公里
length 127/5000 inch inches in
length 381/1250 foot feet ft
length 1143/1250 yard yd yds
length 201168/125 mile mi 英里
length 1852 nautical_mile
mass 1/1000000 milligram mg 毫克
mass 1/1000 gram gramme g gm gms gr 克
mass 1 kilogram kg kgs 千克 公斤
mass 45359237/100000000 pound lb lbs 磅
mass 45359237/1600000000 ounce oz
mass 1/2 斤
mass 1000 tonne 吨
mass-ton 1 ton
time 1/1000 millisecond ms
time 1 second sec secs s 秒 秒钟
time 60 minute min mins 分钟
time 3600 hour hr hrs h 小时
time 86400 day d 天 日
time 604800 week wk wks 周 星期
month 1 month 个月 月
month 12 year yr yrs 年
month 120 decade
month 1200 century centuries
volume 1/1000 liter litre l L 升
volume 1/1000000 milliliter millilitre ml mL 毫升
volume-us 1 cup
volume-us 2 pint
volume-us 4 quart qt
volume-us 16 gallon gal
teaspoon 1 teaspoon tsp
teaspoon 3 tablespoon tbsp
area 10000 hectare ha 公顷
area-us 1 acre
degree 1 degree deg ° 度
degree 1/60 arcminute
radian 1 radian rad
celsius 1 °C C celsius 摄氏度
fahrenheit 1 °F F fahrenheit 华氏度
kelvin 1 K kelvin
percent 1 % percent percentage pct
money-usd 1 $ dollar usd bucks 美元
money-usd 1/100 cent ¢
money-usd 1/100 penny pennies
money-usd 1/20 nickel
money-usd 1/10 dime
money-eur 1 euro € eur 欧元
money-gbp 1 £ gbp pound_sterling 英镑
money-cny 1 yuan ¥ 元 rmb cny 块 块钱 人民币 圆
money-cny 1/10 jiao 角
money-cny 1/100 fen 分
money-inr 1 rupee rs ₹ inr
money-jpy 1 yen 日元
money-peso 1 peso
newton 1 newton N 牛 牛顿
joule 1 joule J
joule 1000 kilojoule kJ
watt 1 watt W
watt 1000 kilowatt kW
volt 1 volt V
ampere 1 ampere amp A
ohm 1 ohm \\Omega
hertz 1 hertz Hz
pascal 1 pascal Pa
mole 1 mole mol
unit 1 unit 单位
clock-am 1 am a.m. a.m
clock-pm 1 pm p.m. p.m
byte 1 byte
bit 1 bit
"""
# Counted things: a unit only after a number. A word that changes the number (dozen, pair, half) must not be here.
_COUNTED = """
apple orange banana pear peach plum mango grape lemon melon watermelon strawberry cherry berry pineapple tomato potato
carrot onion cabbage vegetable fruit nut egg cookie cake pie cupcake brownie muffin donut doughnut candy chocolate
lollipop sweet biscuit cracker pizza slice sandwich burger hamburger taco bagel bread loaf meal snack drink bottle can
jar box bag basket bucket crate case carton pack packet package container tray plate bowl glass pot pan spoon fork
knife napkin towel blanket pillow sheet shirt sock shoe hat coat jacket dress skirt glove scarf button coin stamp card
marble ball balloon toy doll block bead sticker book page chapter word letter notebook magazine newspaper pencil pen
crayon marker eraser ruler paper envelope photo picture painting poster ticket token point goal game match round inning
player team member student pupil teacher child children kid boy girl man men woman women people person adult friend
guest visitor passenger customer worker employee soldier doctor nurse farmer driver animal dog cat puppy kitten bird
chicken hen duck goose geese turkey cow horse pig sheep goat rabbit mouse mice fish shark whale frog turtle snake
lizard bee butterfly ant spider insect bug tree plant flower rose tulip daisy seed leaf leaves branch bush garden field
farm house home room floor door window wall tile brick chair table desk bed sofa lamp shelf shelves car truck bus
buses bike bicycle motorcycle train plane airplane boat ship trip lap mile_marker step stair block_of_flats street
store shop school class classroom group row column line segment side edge face vertex vertices corner diagonal angle
triangle square rectangle circle cube sphere polygon digit number integer solution root value factor divisor multiple
prime term element subset set function way arrangement permutation combination outcome possibility choice option
sequence path route color colour pair_of_shoes chip disk disc lamp_post bulb light battery machine computer phone
device problem question answer song movie show video call message email vote piece item object thing unit part time
hit run mark score grade pebble rock stone shell seashell crystal gem diamond ring bracelet necklace feather stick log
board pole post flag sign rope string ribbon bale sack barrel tank pool lake river island city town state country
night evening morning shift session lesson practice minute_hand squirrel monkey lion tiger elephant bear camel
penguin dinosaur dragon handshake scoop serving portion dish spool toothpick straw lily pad kilocalorie calorie
个 人 只 本 张 支 棵 条 头 匹 辆 台 件 块 朵 颗 粒 名 位 盒 箱 袋 瓶 杯 碗 盘 枝 把 间 层 页 道 题 次
种 组 排 行 列 座 架 艘 套 双 对 岁 倍 分 个人 种方法 个苹果
"""
ANY_WORD = "*"  # among `letters`: the text is a gold, whose unit may be any word
_NO_UNITS = frozenset("squared cubed factorial mod over plus minus times divided root not none half double".split())
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
_ASIDES = frozenset(
    "of the a an each total different distinct possible old long tall high wide deep away more fewer new red blue "
    "green yellow black white".split()
)
_SPEEDS = frozenset({"m/s", "m/s^2", "m/s^{2}"})  # the one compound of single letters that is read without \\text
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "百": 10**2,
    "千": 10**3,
    "万": 10**4,
    "亿": 10**8,
}
_SIGN_UNITS = {name: name.lower() for name in ("USD", "RMB", "CNY", "EUR", "GBP", "Rs")} | {
    r"\$": "$",
    "$": "$",
    "€": "€",
    "£": "£",
    "¥": "¥",
    "₹": "₹",
}


class Unit(NamedTuple):
    """`factor` base units of the dimensions; two units agree when their dimensions do."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


class Measured(NamedTuple):
    """`text` is what is left before the unit; it is to be multiplied by `scale` (of `million`, `dozen`)."""

    text: str
    unit: Unit | None = None
    scale: int = 1


_NAMED_DIMENSIONS = {"volume": ("length", 3), "area": ("length", 2)}


def _listed() -> dict[str, Unit]:
    speed = (("length", 1), ("time", -1))
    units = {"mph": Unit(Fraction(201168, 125 * 3600), speed), "kph": Unit(Fraction(1000, 3600), speed)}
    for line in _MEASURES.strip().splitlines():
        dimension, factor, *names = line.split()
        for name in names:
            units[name] = Unit(Fraction(factor), (_NAMED_DIMENSIONS.get(dimension, (dimension, 1)),))
    for word in _COUNTED.split():
        units.setdefault(word, Unit(Fraction(1), ((word, 1),)))
    return units


_UNITS = _listed()
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
_ENDS_A_VALUE = re.compile(r"(?:[0-9.})\]!|]|\\[A-Za-z]+|[A-Za-z])$")


@lru_cache(maxsize=8_192)
def measured(text: str, letters: frozenset[str] = frozenset()) -> Measured:
    """`text` (in layout form) without its trailing unit or leading money sign.

    Single bare letters are units only if in `letters`, and words outside the list as well.
    """
    if money := _LEADING_MONEY.match(text):
        rest = measured(money[1] + money[3] + text[money.end() :], letters)
        unit = _unit_of([(_SIGN_UNITS[money[2].rstrip(". ")], 1)])
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
        if found is not None and not (_is_angle(found.unit) and _TRIGONOMETRY.search(body)):
            return found._replace(text=body)
    return Measured(text)


def agree(one: Unit, other: Unit) -> Fraction | None:
    """How many of `other` one of `one` is, None where they measure different things."""
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
    named = (name for name, one in _UNITS.items() if len(name) == 1 and one.dimensions[0][0] in wanted)
    return frozenset([*named, *(dimension for dimension in wanted if dimension not in _UNITS)])


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
        word = said.rstrip(".") if said.rstrip(".") in _POWER_WORDS else said
        if word == "/" or word == "per":
            if not words:
                return None
            sign = -1
        elif exponent:
            if not words:
                return None
            words[-1] = (words[-1][0], words[-1][1] * exponent)
        elif word in _SCALES and not words:
            scale *= _SCALES[word]
        elif word in _POWER_WORDS:
            power = _POWER_WORDS[word]
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
    if word not in _UNITS and word[0] in _CLASSIFIERS and len(word) <= _LONGEST_COUNTED:
        return [word[0]]
    for head in ("平方", "立方", "万", "亿", "千", "百"):
        if word.startswith(head) and word != head and word not in _UNITS:
            return [head, *_chinese(word[len(head) :])]
    return [word]


def _is_unit(word: str, letters: frozenset[str], is_text: bool) -> bool:
    if word in letters or _singular(word) in letters:
        return True
    if len(word) == 1 and word.isascii() and word.isalpha():
        return is_text and word in _UNITS
    if (
        ANY_WORD in letters
        and len(word) > 2
        and word.isalpha()
        and not word.isupper()
        and word.lower() not in _NO_UNITS
    ):
        return True
    return _known(word) is not None


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")


def _known(word: str) -> str | None:
    """The listed form of a word: as it is, in lower case, without its full stop or its plural ending."""
    lower = word.lower()
    forms = [word, word.rstrip("."), lower, lower.rstrip(".")]
    bare = lower.rstrip(".")
    if bare.endswith("s") and len(bare) > 3:
        forms += [bare[:-1]]
        if bare.endswith("es"):
            forms += [bare[:-2]]
        if bare.endswith("ies"):
            forms += [bare[:-3] + "y"]
    return next((form for form in forms if form in _UNITS and (len(form) > 1 or form == word)), None)


def _unit_of(words: list[tuple[str, int]]) -> Unit:
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    for word, power in words:
        known = _known(word)
        one = _UNITS[known] if known else Unit(Fraction(1), ((_singular(word), 1),))
        factor *= one.factor**power
        for dimension, exponent in one.dimensions:
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * power
    return Unit(factor, tuple(sorted((name, exponent) for name, exponent in dimensions.items() if exponent)))
