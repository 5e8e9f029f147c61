"""Converts values to finite floats, which can be compared, averaged and written as JSON."""

import re
from math import isfinite
from typing import Any

_DECIMAL_TEXT = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*", re.ASCII)


def to_finite_float(value: Any) -> float | None:
    """Converts a number to a finite float.

    Returns None for anything else: booleans, NaN, numbers too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def parse_finite_float(value: Any) -> float | None:
    """Converts a number, or a text such as "0.5", to a finite float.

    Returns None for anything else. Texts are all that a CSV file holds.
    """
    if isinstance(value, str):
        return to_finite_float(float(value)) if _DECIMAL_TEXT.fullmatch(value) else None
    return to_finite_float(value)
