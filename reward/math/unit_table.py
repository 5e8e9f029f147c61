"""The table of all known units of measurement, with exact conversion factors."""

from fractions import Fraction
from typing import NamedTuple

# dimension: factor name other-names ...; exact by definition (SI brochure; international yard and pound, 1959).
MEASUREMENT_UNITS = """
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
degree 1/60 arcminute arcmin
degree 1/3600 arcsecond arcsec
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
COUNTED_THINGS = """
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
POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
SCALES = {
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


class Unit(NamedTuple):
    """A unit of measurement, as `factor` times the base units of its dimensions.

    Two units can be compared when their dimensions are the same. `qualifiers` are words beside a unit that tell what is
    counted, as "red" in "3 red balls".
    """

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]
    qualifiers: frozenset[str] = frozenset()


_DERIVED_DIMENSIONS = {"volume": ("length", 3), "area": ("length", 2)}


def _build_unit_table() -> dict[str, Unit]:
    """Builds the table that maps each name of a unit to its factor and dimensions."""
    speed = (("length", 1), ("time", -1))
    units = {"mph": Unit(Fraction(201168, 125 * 3600), speed), "kph": Unit(Fraction(1000, 3600), speed)}
    for line in MEASUREMENT_UNITS.strip().splitlines():
        dimension, factor, *names = line.split()
        for name in names:
            units[name] = Unit(Fraction(factor), (_DERIVED_DIMENSIONS.get(dimension, (dimension, 1)),))
    for word in COUNTED_THINGS.split():
        units.setdefault(word, Unit(Fraction(1), ((word, 1),)))
    return units


UNITS = _build_unit_table()


def find_unit_name(word: str) -> str | None:
    """Returns the form of a word that the table of units contains.

    Returns None if there is none. Tried as it is, in lower case, without its full stop and without its plural ending.
    """
    lower = word.lower()
    forms = [word, word.rstrip("."), lower, lower.rstrip(".")]
    stem = lower.rstrip(".")
    if stem.endswith("s") and len(stem) > 3:
        forms += [stem[:-1]]
        if stem.endswith("es"):
            forms += [stem[:-2]]
        if stem.endswith("ies"):
            forms += [stem[:-3] + "y"]
    return next((form for form in forms if form in UNITS and (len(form) > 1 or form == word)), None)
