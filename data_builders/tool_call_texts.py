"""Reads calls of tools and their results that stand in a turn's text between tags, as in Hermes' data."""

import re
from collections import Counter
from typing import Any

from qwen_align.align.rows import Message
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.json_reader import parse_json_value

# Calls end a turn in Qwen's template: tags in the middle of a text, or quoted in one, are spoken of.
_CALLS = re.compile(r"(.*?)\s*((?:<tool_call>[^<]*\{.*?\}\s*</tool_call>\s*)+)", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULTS = re.compile(r"\s*(?:<tool_response>.*?</tool_response>\s*)+", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


def split_tool_calls(content: str, field: str) -> tuple[str, list[Any]]:
    """Splits an assistant's text into what comes before its blocks of <tool_call> and the calls in them.

    The calls are empty where the text does not end with such blocks. Raises BadValue for a block that is not JSON.
    """
    match = _CALLS.fullmatch(content) if "<tool_call>" in content else None
    if match is None:
        return content, []
    try:
        return match[1], [parse_json_value(text.strip()) for text in _CALL.findall(match[2])]
    except BadValue as error:
        raise BadValue("malformed tool call", f"{field}: a <tool_call> block {error}") from None


def unwrap_tool_results(turn: Message, conversion_counts: Counter[str]) -> list[Message]:
    """Returns the blocks of <tool_response> that a tool's or a user's turn consists of, each as a tool turn.

    Any other turn is returned as it is. The template puts the tags around results itself.
    """
    if turn.role not in ("tool", "user") or not _RESULTS.fullmatch(turn.content):
        return [turn]
    conversion_counts["turns of <tool_response> blocks read as results of tools"] += 1
    return [Message(role="tool", content=text) for text in _RESULT.findall(turn.content)]
