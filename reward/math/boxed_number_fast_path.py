"""A fast path for the usual case: the gold is a plain number and the completion has one box with a plain number.

Where this decides, the full parsers would decide the same; where it is not sure, it returns None.
"""

import re
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.thinking import CLOSE, MAY_END_TURN, OPEN

_PLAIN_NUMBER = (
    r"\s*([+-]?)(?:([0-9]{1,15}|[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3}){1,4})(?:\.([0-9]{1,4}))?"
    r"|\\[dt]?frac\{([0-9]{1,15})\}\{([1-9][0-9]{0,14})\}|([0-9]{1,15})/([1-9][0-9]{0,14}))\s*"
)
_NUMBER_THEN_BRACE = re.compile(_PLAIN_NUMBER + r"\}")
_NUMBER_ALONE = re.compile(_PLAIN_NUMBER)
_MIN_DOUBT_CHARS = 3  # characters after a box that takes its answer back
_DOUBT = re.compile(  # what may take the answer back, which the full parsers read
    r"wait|hold on|oops|correct|actually|sorry|scratch|second thought|let me|mistake|error|wrong|not right|no,"
    r"|等等|不对|更正|错了|抱歉",
    re.IGNORECASE,
)
_BOX_OPENING = "\\boxed{"


@lru_cache(maxsize=8_192)
def parse_plain_gold(gold: str) -> Fraction | None:
    """Returns the number of a gold that is only a plainly written number. Returns None for any other gold."""
    match = _NUMBER_ALONE.fullmatch(gold)
    return None if match is None else _to_fraction(match)


def parse_plain_box(text: str) -> Fraction | None:
    r"""Returns the plainly written number in the only `\boxed{}` of a completion.

    Returns None if there is no such number, or if the box is inside the thinking or the thinking never ends.
    """
    box_position = text.find(_BOX_OPENING)
    if (
        box_position < 0
        or text.find("boxed", box_position + 7) >= 0
        or text.find("boxed", 0, box_position) >= 0
        or "fbox" in text
    ):
        return None
    if text[box_position - 1 : box_position] == "\\" or (
        "think>" in text and not _is_after_thinking(text, box_position)
    ):
        return None
    match = _NUMBER_THEN_BRACE.match(text, box_position + 7)
    if match is None or MAY_END_TURN.search(text, 0, box_position):
        return None
    end = match.end()
    return None if len(text) > end + _MIN_DOUBT_CHARS and _DOUBT.search(text, end) else _to_fraction(match)


def _is_after_thinking(text: str, box_position: int) -> bool:
    """Checks whether the last thinking section of a text ends before the position of its box."""
    close_position = text.rfind(CLOSE)
    return close_position < box_position and text.rfind(OPEN) <= close_position


def _to_fraction(match: re.Match[str]) -> Fraction:
    """Converts a regex match of a plain number to its exact value."""
    sign, integer_digits, decimal_digits, numerator, denominator, slash_numerator, slash_denominator = match.groups()
    if integer_digits is not None:
        digits = integer_digits.replace("{,}", "").replace(",", "")
        magnitude = (
            Fraction(int(digits))
            if decimal_digits is None
            else Fraction(int(digits + decimal_digits), 10 ** len(decimal_digits))
        )
    else:
        magnitude = Fraction(int(numerator or slash_numerator), int(denominator or slash_denominator))
    return -magnitude if sign == "-" else magnitude
