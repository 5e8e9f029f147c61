"""Reads turns that a source holds in one text, as JSON or as Anthropic's transcripts, as turns.

Else the whole would be taken for what a user says, brackets and all.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.json_reader import parse_json_value

# Begins and ends like an object or a list of objects: as JSON, as JSON in JSON, as Python or numpy print them.
_OBJECTS = re.compile(r"""\s*(?:array\(\s*)?"?\[?\s*\{\s*\\?['"].*[\]})]"?\s*""", re.DOTALL)
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}
_KEY = r"""['"]{}\\?['"]\s*:"""
_TURN_KEYS = (("role", "content"), ("role", "tool_calls"), ("from", "value"))
_TURN_KEY_PATTERNS = [[re.compile(_KEY.format(key)) for key in keys] for keys in _TURN_KEYS]


def parse_turn_texts(values: Mapping[str, Any], conversion_counts: Counter[str]) -> dict[str, Any]:
    """Returns a source row with every column that holds turns in one text replaced by the list of turns.

    Raises BadValue for a text that holds turns in a notation that is not read, such as Python's.
    """
    parsed = dict(values)
    for key, value in values.items():
        notation, turns = "JSON text", _parse_json_turns(value, key)
        if turns is None:
            notation, turns = "a transcript", _split_transcript(value)
        if turns is not None:
            parsed[key] = turns
            conversion_counts[f"'{key}' read from {notation} as turns"] += 1
    return parsed


def _split_transcript(value: Any) -> list[dict[str, str]] | None:
    """Splits a text of "\n\nHuman: ...\n\nAssistant: ...", as HH-RLHF has it, into turns.

    Returns None for any other value. An assistant's turn that is empty at the end is where the reply goes.
    """
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return None
    _, *parts = _SPEAKER.split(value)
    speakers, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if speakers[-1] == "Assistant" and not texts[-1]:
        speakers, texts = speakers[:-1], texts[:-1]
    return [{"role": _ROLE_OF_SPEAKER[speaker], "content": text} for speaker, text in zip(speakers, texts, strict=True)]


def _parse_json_turns(value: Any, key: str) -> list[Any] | None:
    """Returns the turns that a text, or a list of texts, holds as JSON. Returns None for any other value."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        turns = [_parse_json_turns(item, key) or [] for item in value]
        return [turn for one in turns for turn in one] if all(len(one) == 1 for one in turns) else None
    if not isinstance(value, str) or not _looks_like_turns(value):
        return None
    try:
        parsed = parse_json_value(value.strip())
    except BadValue as error:
        raise BadValue(
            "turns as text",
            f"{key}: holds turns as a text that is not JSON: {shorten_repr(value)} ({error}); write the file as JSON "
            "Lines or Parquet, or the turns as JSON",
        ) from None
    if isinstance(parsed, str):
        return _parse_json_turns(parsed, key)
    turns = parsed if isinstance(parsed, list) else [parsed]
    return turns if _are_turns(turns) else None


def _looks_like_turns(text: str) -> bool:
    """Returns whether a text looks like a turn or a list of turns, in whatever notation."""
    return _OBJECTS.fullmatch(text) is not None and any(
        all(pattern.search(text) for pattern in patterns) for patterns in _TURN_KEY_PATTERNS
    )


def _are_turns(turns: list[Any]) -> bool:
    """Returns whether the items of a list are turns, each with a role or speaker and a content."""
    return bool(turns) and all(
        isinstance(turn, Mapping) and any(turn.keys() >= set(keys) for keys in _TURN_KEYS) for turn in turns
    )
