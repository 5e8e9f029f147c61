"""Parses numbers written as words in English and Chinese: two hundred and five, 三十五, 2.5 million, 3.5万."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from qwen_align.reward.math.number_parser import parse_spelled_number

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ENGLISH = dict(zip(_ONES, range(20), strict=True)) | dict(zip(_TENS, range(20, 100, 10), strict=True)) | _SCALES
_CHINESE_SCALES = {"百": 100, "千": 10**3, "万": 10**4, "亿": 10**8}

_WORD = rf"\b(?:{'|'.join(sorted(_ENGLISH, key=len, reverse=True))})\b"
_AFTER_SCALE = "(?:(?<=thousand)|(?<=[mbr]illion))"
_BETWEEN = rf"(?:[ \n-]|(?:(?<=hundred)|{_AFTER_SCALE}),? and |{_AFTER_SCALE}, )"
_WORDS = re.compile(rf"{_WORD}(?:{_BETWEEN}{_WORD})*", re.IGNORECASE)
_SCALED = re.compile(
    r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?(?:(hundred|thousand|million|billion|trillion)\b|([百千万亿]))", re.IGNORECASE
)
_RUN = "[零〇一二两三四五六七八九十百千万亿]{1,20}"
_CHINESE = re.compile(rf"{_RUN}(?:点[零〇一二两三四五六七八九]{{1,20}}|分之{_RUN})?")
_SIMPLIFIED = str.maketrans("兩萬億點", "两万亿点")


def find_spelled_numbers(text: str) -> Iterator[Fraction]:
    """Yields the numbers that a text writes as words, and the numbers in their parts.

    Of `two hundred and five` these are 205, 200 and 5.
    """
    for match in _WORDS.finditer(text):
        yield from map(Fraction, _read_english_words(re.findall("[a-z]+", match[0].lower())))
    text = text.translate(_SIMPLIFIED)
    for match in _SCALED.finditer(text):
        scale = _SCALES[match[2].lower()] if match[2] else _CHINESE_SCALES[match[3]]
        yield Fraction(match[1]) * scale
    for match in _CHINESE.finditer(text):
        numbers = map(parse_spelled_number, {match[0], *re.split("点|分之", match[0]), *match[0]})
        yield from (number for number in numbers if number is not None)


def _read_english_words(words: Sequence[str]) -> Iterator[int]:
    """Yields the number of each English number word in a list, and the numbers they form together.

    Of `three twenty-five` these include 3 and 25.
    """
    total = part = 0
    scale, room = 10**15, 100  # what the next scale, and the next small number, have to be below
    for word in words:
        if word == "and":
            continue
        word_value = _ENGLISH[word]
        yield word_value
        if not (word_value < scale if word_value >= 1000 else part < 100 if word_value == 100 else word_value < room):
            yield total + part
            total = part = 0
            scale = 10**15
        if word_value >= 1000:
            total, part, scale, room = total + (part or 1) * word_value, 0, word_value, 100
        elif word_value == 100:
            part, room = (part or 1) * 100, 100
        else:
            part, room = part + word_value, 10 if word_value >= 20 else 0
        yield total + part
