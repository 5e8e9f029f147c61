"""Numbers that a row may hold: those that a float can hold, so that they can be compared, averaged and written."""

import re
from math import isfinite
from typing import Any

_DECIMAL_TEXT = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*", re.ASCII)


def to_finite_float(value: Any) -> float | None:
    """The number as a float; None for anything else: true and false, NaN, what is too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def parse_finite_float(value: Any) -> float | None:
    """As `finite`, and of a text, which is all that a CSV file holds, the number that it writes."""
    if isinstance(value, str):
        return to_finite_float(float(value)) if _DECIMAL_TEXT.fullmatch(value) else None
    return to_finite_float(value)
