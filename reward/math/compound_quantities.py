"""Adds up quantities in several units of one kind, such as `2 hours 30 minutes`, `5 feet 6 inches` or `30°15'`."""

import re
from fractions import Fraction
from itertools import pairwise

from qwen_align.reward.math.unit_table import UNITS, Unit, find_unit_name

_COMPOUND_PART = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)[ -]?(?:\\text\{ *([A-Za-z.]+|[一-鿿]+) *(?:and|,)? *\}"
    r"|([A-Za-z]{1,8}\.?(?![A-Za-z])|[一-鿿]{1,3}|°|''?))"
    r" ?(?:,? ?(?:and|\\text\{ *and *\})?|又|零) ?"
)
_COMPOUND_QUANTITY = re.compile(rf"(?:{_COMPOUND_PART.pattern}){{2,4}}")
_ARC_MARKS = {"'": "arcminute", "''": "arcsecond", "分": "分", "秒": "秒"}


def sum_compound_quantity(text: str) -> tuple[Fraction, Unit] | None:
    """Adds up a quantity in several units of one kind, such as `2 hours 30 minutes`, and returns it in the last unit.

    Returns None for any other text, such as two quantities of different kinds or in rising units.
    """
    if not text[:1].isdigit() or not _COMPOUND_QUANTITY.fullmatch(text):
        return None
    parts = [(Fraction(match[1]), match[2] or match[3]) for match in _COMPOUND_PART.finditer(text)]
    names = [_ARC_MARKS.get(word, word) for _, word in parts]
    if parts[0][1] not in ("°", "度", "degrees", "degree") and {"'", "''"} & {word for _, word in parts}:
        return None
    if names[0] in ("h", "hr", "hrs", "hour", "hours", "d") or "s" in names[1:]:
        names = ["min" if name == "m" else name for name in names]
    found = [find_unit_name(name) for name in names]
    units = [UNITS[name] for name in found if name is not None]
    is_falling = all(first.factor > second.factor for first, second in pairwise(units))
    if len(units) != len(parts) or not is_falling or len({unit.dimensions for unit in units}) != 1:
        return None
    last = units[-1]
    total = sum((number * unit.factor for (number, _), unit in zip(parts, units, strict=True)), Fraction(0))
    return total / last.factor, last
