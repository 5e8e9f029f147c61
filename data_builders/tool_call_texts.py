"""Reads calls of tools and their results that stand in a turn's text between tags, as in Hermes' data."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qwen_align.align.rows import Chat, Message, Row
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


def read_bare_calls(row: Row, conversion_counts: Counter[str]) -> Row:
    """Returns a chat whose answers that are nothing but calls of its tools, as xLAM's JSON lists, call them.

    Any other row, and JSON that names none of the row's tools, is returned as it is.
    """
    if not isinstance(row, Chat) or not row.tools:
        return row
    names = {schema.get("function", schema).get("name") for schema in row.tools}
    messages = [_read_bare_call(turn, names) for turn in row.messages]
    n_read = sum(read is not turn for read, turn in zip(messages, row.messages, strict=True))
    conversion_counts.update({"answers that are calls in JSON read as tool calls": n_read} if n_read else {})
    return row.model_copy(update={"messages": messages}) if n_read else row


def _read_bare_call(turn: Message, names: set[Any]) -> Message:
    """Returns an assistant's turn whose text is a JSON list of calls of the named tools as one that calls them."""
    if turn.role != "assistant" or turn.tool_calls or not turn.content.lstrip().startswith("[{"):
        return turn
    with suppress(BadValue):
        calls = parse_json_value(turn.content.strip())
        if all(
            isinstance(call, Mapping)
            and call.keys() <= {"name", "arguments", "id"}
            and call.get("name") in names
            and isinstance(call.get("arguments"), Mapping)
            for call in calls
        ):
            functions = [{"name": call["name"], "arguments": dict(call["arguments"])} for call in calls]
            tool_calls = [{"type": "function", "function": function} for function in functions]
            return turn.model_copy(update={"content": "", "tool_calls": tool_calls})
    return turn
