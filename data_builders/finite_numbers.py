"""Numbers that a row may hold: those that a float can hold, so that they can be compared, averaged and written."""

import re
from math import isfinite
from typing import Any

_WRITTEN = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*", re.ASCII)


def finite(value: Any) -> float | None:
    """The number as a float; None for anything else: true and false, NaN, what is too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def finite_in(value: Any) -> float | None:
    """As `finite`, and of a text, which is all that a CSV file holds, the number that it writes."""
    if isinstance(value, str):
        return finite(float(value)) if _WRITTEN.fullmatch(value) else None
    return finite(value)
