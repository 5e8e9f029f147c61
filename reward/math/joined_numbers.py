"""Recognizes numbers joined by hyphens or slashes that are no calculation: dates, scores, ranges, telephone numbers."""

import re
from typing import NamedTuple

_GROUP = r"[0-9]+(?:\.[0-9]+)?"
_DEGREES = r"(?: ?(?:°|\^ ?\{? ?\\circ ?\}?))?"
_HYPHENATED = re.compile(rf"{_GROUP}{_DEGREES}(?: ?- ?{_GROUP}{_DEGREES})+")
_SLASHED = re.compile(r"[0-9]{1,4}(?:/[0-9]{1,4}){2}")
_NUMBER = re.compile(_GROUP)
_LARGEST_SCORE = 150
_SHORT_GROUP = 2  # digits of a day or month, where a leading zero changes nothing


class JoinedNumbers(NamedTuple):
    """Numbers joined by a sign, with leading zeros stripped from days and months. `is_date`: it is no calculation."""

    sign: str
    groups: tuple[str, ...]
    is_date: bool


def parse_joined_numbers(text: str) -> JoinedNumbers | None:
    """Parses `3-2`, `2024-01-05` or `1/2/2020`.

    Returns None for any other text, such as `1/2`, `3-x` or the difference `1000-7`, which is no score and no range.
    """
    if _SLASHED.fullmatch(text):
        groups = text.split("/")
        return JoinedNumbers("/", _strip_zeros(groups), 4 in (len(groups[0]), len(groups[2])))
    if "-" not in text or not _HYPHENATED.fullmatch(text):
        return None
    groups = _NUMBER.findall(text)
    if len(groups) == 2 and float(groups[0]) > max(_LARGEST_SCORE, 10 * float(groups[1])):
        return None
    has_leading_zero = any(len(group) > 1 and group[0] == "0" and group[1] != "." for group in groups)
    is_date = len(groups) == 3 and [len(groups[0]) > 2, len(groups[2]) > 2].count(True) == 1 and len(groups[1]) < 3
    return JoinedNumbers("-", _strip_zeros(groups), has_leading_zero or is_date)


def _strip_zeros(groups: list[str]) -> tuple[str, ...]:
    """Returns groups of digits with the leading zeros of the short ones stripped."""
    return tuple((group.lstrip("0") or "0") if len(group) <= _SHORT_GROUP else group for group in groups)
