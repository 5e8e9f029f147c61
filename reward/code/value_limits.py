"""Limits on the types and sizes of values that processes which do not trust each other exchange."""

import datetime
from collections.abc import Callable
from typing import Any

MAX_BYTES = 2 << 20  # of one encoded value: 100,000 integers of 20 digits
MAX_ITEMS = 400_000  # containers and their elements, of one value
MAX_DEPTH = 100  # well under the interpreter's 1,000 frames, in JSON's parser and in comparisons
MAX_BITS = 1 << 18  # of an integer: 10,000! has 118,458 bits, and division stays under 0.1 s
MAX_ITERATED = 10_000  # taken from a generator, which may be endless
MAX_EXPONENT = 10_000  # of a Decimal, which would be written out as an integer when compared with a Fraction
NATIVE_BITS = 4_096  # JSON's decimal integers; Python refuses more than 4,300 digits, and long ones are slow
BUILD_LIMIT_S = (
    0.2  # CPU seconds for the hash tables of one value: far more than honest keys take, cut for colliding ones
)

Special = Callable[[Any], Any]


class NotPlainError(Exception):
    """Raised for a value that may not be sent between processes. The message says why."""


CROSSING_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (int, float, bool, str, list, tuple, dict, set, frozenset, bytes, complex, type(None), object, range)
}
DATE_PARSERS: dict[type, Callable[[str], Any]] = {
    kind: kind.fromisoformat for kind in (datetime.datetime, datetime.date, datetime.time)
}
