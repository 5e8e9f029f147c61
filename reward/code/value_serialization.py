"""Serialises plain values to bytes and back, for processes that do not trust each other.

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
    """Serialises a plain value to bytes. Raises NotPlainError if the value is not plain.

    `special` gives the tree of a value that is not plain, or None.
    """
    data = write_json(Encoder(special).encode_value(value, 0))
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    return data


def deserialize_value(data: bytes, special: Special | None = None) -> Any:
    """Deserialises bytes to a value of built-in types. Raises NotPlainError if the bytes are invalid."""
    return decode_value(read_json(data), special)


def encode_value(value: Any, special: Special | None = None) -> Any:
    """Encodes a value as a JSON tree for use in a larger message. Raises NotPlainError if the value is not plain."""
    return Encoder(special).encode_value(value, 0)


def decode_value(tree: Any, special: Special | None = None) -> Any:
    """Decodes a JSON tree to the value it stands for. Raises NotPlainError if it stands for none.

    `special` gives the value of an unknown tag's object.
    """
    return Decoder(special).decode_value(tree, 0)


def write_json(tree: Any) -> bytes:
    """Writes a JSON tree as bytes."""
    return json.dumps(tree, separators=(",", ":"), check_circular=False).encode("ascii")


def read_json(data: bytes) -> Any:
    """Parses a JSON tree from untrusted bytes. Raises NotPlainError if they are invalid."""
    if len(data) > MAX_BYTES:
        raise NotPlainError("too large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NotPlainError("no JSON") from None
