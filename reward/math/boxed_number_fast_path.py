r"""The usual case, fast: a gold that is a plain number, and a text that ends on one box with a plain number in it.

Where it decides, reading the whole text would decide the same; where it is not sure, it says nothing.
"""

import re
from fractions import Fraction
from functools import lru_cache

from qwen_align.reward.thinking import CLOSE, OPEN

_PLAIN = (
    r"\s*([+-]?)(?:([0-9]{1,15}|[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3}){1,4})(?:\.([0-9]{1,4}))?"
    r"|\\[dt]?frac\{([0-9]{1,15})\}\{([1-9][0-9]{0,14})\}|([0-9]{1,15})/([1-9][0-9]{0,14}))\s*"
)
_IN_BOX = re.compile(_PLAIN + r"\}")
_ALONE = re.compile(_PLAIN)
_BOX = "\\boxed{"


@lru_cache(maxsize=8_192)
def plain_gold(gold: str) -> Fraction | None:
    """The number a gold is, if it is nothing but one written plainly."""
    found = _ALONE.fullmatch(gold)
    return None if found is None else _fraction(found)


def plain_box(text: str) -> Fraction | None:
    """The number in the only box of a text that ends its thinking, if it is written plainly: the usual case, fast."""
    place = text.find(_BOX)
    if place < 0 or text.find("boxed", place + 7) >= 0 or text.find("boxed", 0, place) >= 0 or "fbox" in text:
        return None
    if text[place - 1 : place] == "\\" or ("think>" in text and not _ends_thinking_before(text, place)):
        return None
    found = _IN_BOX.match(text, place + 7)
    return None if found is None else _fraction(found)


def _ends_thinking_before(text: str, place: int) -> bool:
    closed = text.rfind(CLOSE)
    return closed < place and text.rfind(OPEN) <= closed


def _fraction(found: re.Match[str]) -> Fraction:
    sign, whole, places, above, below, left, right = found.groups()
    if whole is not None:
        digits = whole.replace("{,}", "").replace(",", "")
        size = Fraction(int(digits)) if places is None else Fraction(int(digits + places), 10 ** len(places))
    else:
        size = Fraction(int(above or left), int(below or right))
    return -size if sign == "-" else size
