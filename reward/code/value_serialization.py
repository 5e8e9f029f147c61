"""Serialises plain values to bytes and back: how values cross between processes that do not trust each other.

Only exact types of the standard library cross, by their contents; no class, method or pickle of the sender
reaches the receiver, so a value cannot say of itself that it is equal to something.
The bytes are JSON: None, bool, int, float, str and list stand for themselves, all else is an object of one tag.
"""

import json
from typing import Any

from qwen_align.reward.code.value_decoding import Decoder, build_dict, build_set
from qwen_align.reward.code.value_encoding import Encoder
from qwen_align.reward.code.value_limits import MAX_BITS, MAX_BYTES, MAX_ITEMS, NotPlainError, Special

__all__ = ["MAX_BITS", "MAX_BYTES", "MAX_ITEMS", "NotPlainError", "build_dict", "build_set"]


def serialize_value(value: Any, special: Special | None = None) -> bytes:
    """Returns the value's bytes; raises NotPlainError.

    `special` gives the tree of a value that is not plain, or None.
    """
    data = write_json(Encoder(special).encode_value(value, 0))
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    return data


def deserialize_value(data: bytes, special: Special | None = None) -> Any:
    """Returns the value whose bytes these are, of builtin types only; raises NotPlainError on any other bytes."""
    return decode_value(read_json(data), special)


def encode_value(value: Any, special: Special | None = None) -> Any:
    """Returns the value's tree, to be part of a larger message; raises NotPlainError."""
    return Encoder(special).encode_value(value, 0)


def decode_value(tree: Any, special: Special | None = None) -> Any:
    """Returns the value of a tree; raises NotPlainError.

    `special` gives the value of an unknown tag's object.
    """
    return Decoder(special).decode_value(tree, 0)


def write_json(tree: Any) -> bytes:
    """Returns the JSON bytes of a tree."""
    return json.dumps(tree, separators=(",", ":"), check_circular=False).encode("ascii")


def read_json(data: bytes) -> Any:
    """Returns the tree of JSON bytes, whoever wrote them; raises NotPlainError."""
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NotPlainError("no JSON") from None
