"""Converts the messages of other chat formats to our own: roles, thinking and tool calls, dropping no content."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from qwen_align.align.rows import Message, format_first_error
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.column_meanings import is_empty
from qwen_align.data_builders.json_reader import parse_json_value
from qwen_align.data_builders.tool_call_texts import split_tool_calls, unwrap_tool_results
from qwen_align.data_builders.turn_keys import NAME_KEYS, THINKING_KEYS, refuse_unknown_keys
from qwen_align.reward.thinking import CLOSE, OPEN

# ShareGPT's names for speakers, as FastChat and LLaMA-Factory write them, ms-swift's for calls and results, OpenAI's
# former name for a tool and later one for the system, OpenAssistant's, LangChain's and Gemini's.
_ROLE_OF_SPEAKER = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "function_call",
    "function": "tool",
    "tool_call": "function_call",
    "tool_response": "tool",
    "developer": "system",
    "prompter": "user",
    **dict.fromkeys(("chatgpt", "bot", "ai", "model"), "assistant"),
} | {role: role for role in ("system", "user", "assistant", "tool")}
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
Tools = list[dict[str, Any]]
_TOOL_CALLS: TypeAdapter[Tools] = TypeAdapter(Tools)


class SplitTurn(NamedTuple):
    """The thinking and the answer of an assistant turn. `thinking` is None without a block and "" with an empty one."""

    thinking: str | None
    answer: str


def split_thinking(content: str, *, needs_answer: bool = True) -> SplitTurn:
    """Splits an assistant turn into the thinking block that opens it and the answer.

    A block without its opening tag is one that the prompt opened, as for Qwen3-Thinking-2507. Line breaks around both
    go, as in Qwen's template; indentation stays. Raises BadValue if tags stand anywhere else, are unbalanced or nested,
    or if nothing follows the block: a text whose thinking cannot be told from its answer must not be trained as one.
    """
    n_open, n_close = content.count(OPEN), content.count(CLOSE)
    if not n_open and not n_close:
        return SplitTurn(None, content)
    before_close, _, answer = content.partition(CLOSE)
    before_open, _, thinking = before_close.partition(OPEN) if n_open else ("", "", before_close)
    if n_open > 1 or n_close != 1:
        problem = f"has {n_open} {OPEN} and {n_close} {CLOSE}; one of each is a thinking block"
    elif (n_open and OPEN not in before_close) or before_open.strip() or _is_quoted(before_close, answer):
        problem = f"has {OPEN if n_open else CLOSE} inside its text; a thinking block opens the turn"
    elif needs_answer and not answer.strip():
        problem = "has thinking and no answer"
    else:
        return SplitTurn(thinking.strip("\r\n") if thinking.strip() else "", answer.lstrip("\r\n"))
    raise BadValue("malformed thinking", problem)


def _is_quoted(before: str, after: str) -> bool:
    """Returns whether what stands between two texts is in quotation marks, so that the text speaks of it."""
    return before[-1:] in ("`", "'", '"') and after[:1] == before[-1:]


def convert_turns(value: Any, field: str, conversion_counts: Counter[str]) -> list[Message]:
    """Converts a text or a list of turns in any supported format to messages.

    A text becomes one user turn. `conversion_counts` counts what was converted.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadValue("wrong type", f"{field}: is {shorten_repr(value)}, neither a text nor a list of turns")
    turns = [convert_turn(item, f"{field}: {index}", conversion_counts) for index, item in enumerate(value)]
    return [part for turn in turns for part in unwrap_tool_results(turn, conversion_counts)]


def convert_reply(value: Any, field: str, conversion_counts: Counter[str]) -> Message:
    """Converts a text, one turn or a list of one turn to an assistant message."""
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    messages = convert_turns(value if isinstance(value, list) else [value], field, conversion_counts)
    if len(messages) > 1 or messages[0].role != "assistant":
        roles = ", ".join(turn.role for turn in messages)
        raise BadValue("wrong roles", f"{field}: has roles {roles}; one assistant turn is needed")
    return messages[0]


def convert_turn(value: Any, field: str, conversion_counts: Counter[str]) -> Message:
    """Converts a turn in any supported format to a message.

    Raises BadValue for a role, key or content that has no place in it.
    """
    if not isinstance(value, Mapping):
        raise BadValue(
            "wrong type", f"{field}: must be a turn, {{role: ..., content: ...}}; found {shorten_repr(value)}"
        )
    given = {key: item for key, item in value.items() if item is not None}
    if "from" in given and "role" not in given:
        given |= {"role": given.pop("from"), "content": given.pop("value", None)}
        given = {key: item for key, item in given.items() if item is not None}
    role = given.get("role")
    role_of_message = _ROLE_OF_SPEAKER.get(role, role) if isinstance(role, str) else role
    if role_of_message == "function_call":
        given |= {"role": "assistant", "content": "", "tool_calls": _parse_function_calls(given.get("content"), field)}
        conversion_counts[f"{role} turns read as tool calls"] += 1
        role_of_message = "assistant"
    if isinstance(given.get("function_call"), Mapping) and "tool_calls" not in given:  # OpenAI's former name
        given["tool_calls"] = [given.pop("function_call")]
        conversion_counts["turns' 'function_call' read as tool calls"] += 1
    refuse_unknown_keys({**given, "role": role_of_message}, field, conversion_counts)
    conversion_counts.update(f"turns' '{key}' left out" for key in NAME_KEYS if key in given)
    message: dict[str, Any] = {"role": role_of_message}
    if "content" in given or "tool_calls" not in given:
        message |= (
            {"content": _join_text_parts(given["content"], field, conversion_counts)} if "content" in given else {}
        )
    else:
        message["content"] = ""  # OpenAI's content of a turn that only calls tools is null
    if given.get("tool_calls"):
        message["tool_calls"] = convert_tool_calls(given["tool_calls"], f"{field}.tool_calls") or None
    _move_thinking(message, given, field, conversion_counts)
    if role_of_message == "assistant" and isinstance(message.get("content"), str) and not message.get("tool_calls"):
        message["content"], calls = split_tool_calls(message["content"], field)
        if calls:
            message["tool_calls"] = convert_tool_calls(calls, f"{field}.tool_calls")
            conversion_counts["<tool_call> blocks read as tool calls"] += 1
    try:
        return _MESSAGE.validate_python(message)
    except ValidationError as error:
        reason = "missing field" if error.errors()[0]["type"] == "missing" else "wrong type"
        raise BadValue(reason, f"{field}.{format_first_error(error)}") from None


def _join_text_parts(value: Any, field: str, conversion_counts: Counter[str]) -> Any:
    """Joins message content that is a list of text parts into one text.

    Returns anything else as it is, for the message's own check.
    """
    if not isinstance(value, list):
        return value
    texts = [
        part["text"]
        for part in value
        if isinstance(part, Mapping)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") == "text"
        and not {key for key, item in part.items() if item is not None} - {"type", "text"}
    ]
    if len(texts) < len(value) or not texts:
        raise BadValue("wrong type", f"{field}.content: holds parts that are no text; rows are of text alone")
    conversion_counts["turns in text parts joined"] += 1
    return "".join(texts)


def _move_thinking(
    message: dict[str, Any], given: Mapping[str, Any], field: str, conversion_counts: Counter[str]
) -> None:
    """Moves the `reasoning_content` or the think block of a turn into the message's `thinking`.

    An empty block says that the turn does not think. Raises BadValue where thinking stands in two places and differs.
    """
    thinking_keys = [key for key in THINKING_KEYS if given.get(key) not in (None, "")]
    differing_keys = [key for key in thinking_keys if str(given[key]).strip() != str(given[thinking_keys[0]]).strip()]
    if differing_keys:
        keys = f"{thinking_keys[0]} and {differing_keys[0]}"
        raise BadValue("malformed thinking", f"{field}: has both {keys}, and they differ")
    if thinking_keys:
        message["thinking"] = given[thinking_keys[0]]
        if message["role"] != "assistant":
            raise BadValue("malformed thinking", f"{field}: has {thinking_keys[0]} in a {message['role']} turn")
        if thinking_keys[0] != "thinking":
            conversion_counts[f"{thinking_keys[0]} moved to thinking"] += 1
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or not (OPEN in content or CLOSE in content):
        return
    try:
        split = split_thinking(content, needs_answer=not message.get("tool_calls"))
    except BadValue as error:
        raise BadValue(error.reason, f"{field}: {error}") from None
    if thinking_keys and split.thinking and split.thinking.strip() != str(message["thinking"]).strip():
        problem = f"has {thinking_keys[0]} and another thinking block in its content"
        raise BadValue("malformed thinking", f"{field}: {problem}")
    what = f"{OPEN} blocks moved to thinking" if OPEN in content else f"texts before {CLOSE} alone moved to thinking"
    conversion_counts[what if split.thinking else f"empty {OPEN} blocks read as no thinking"] += 1
    message["content"] = split.answer
    message["thinking"] = message.get("thinking") or split.thinking


def _parse_function_calls(value: Any, field: str) -> Any:
    """Parses the content of a ShareGPT function_call turn into a list of tool calls."""
    calls = parse_nested_json(value, field)
    return calls if isinstance(calls, list) else [calls]


def convert_tool_calls(value: Any, field: str) -> Tools:
    """Converts a list of tool calls to OpenAI's format, with arguments as objects.

    Raises BadValue where one has no name or arguments.
    """
    calls = parse_nested_json(value, field)
    if not isinstance(calls, list):
        raise BadValue("wrong type", f"{field}: is {shorten_repr(calls)}, not a list of calls")
    return [_convert_tool_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _convert_tool_call(call: Any, field: str) -> dict[str, Any]:
    """Converts one tool call to OpenAI's format. Raises BadValue if it has no name or arguments."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadValue("malformed tool call", f"{field}: is {shorten_repr(call)}; a call has name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # engines write the arguments of a call without any as an empty text
        arguments = parse_nested_json(arguments, f"{field}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        problem = f"{field}.arguments: is {shorten_repr(arguments)}; an object, or one as JSON text, is wanted"
        raise BadValue("malformed tool call", problem)
    id_field = {"id": call["id"]} if call.get("id") is not None else {}
    return {**id_field, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def convert_tool_schemas(value: Any) -> Tools | None:
    """Converts tool schemas, or their JSON text, to a list in OpenAI's format. Returns None if there are none."""
    parsed_value = None if is_empty(value) else parse_nested_json(value, "tools")
    if parsed_value in (None, [], {}, ""):
        return None
    try:
        schemas = _TOOL_CALLS.validate_python(parsed_value)
    except ValidationError as error:
        raise BadValue("wrong type", f"tools: {format_first_error(error)}") from None
    for index, schema in enumerate(schemas):
        if not isinstance(schema.get("function", schema), Mapping) or not schema.get("function", schema).get("name"):
            raise BadValue(
                "malformed tools", f"tools[{index}]: is {shorten_repr(schema)}; a function's schema has a name"
            )
    return [
        schema if "function" in schema else {"type": "function", "function": _omit_type(schema)} for schema in schemas
    ]


def _omit_type(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a function's schema without the `type: function` that OpenAI's Responses API puts beside its name."""
    return {key: item for key, item in schema.items() if (key, item) != ("type", "function")}


def parse_nested_json(value: Any, field: str) -> Any:
    """Parses a value if it is a text that holds JSON. Returns any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json_value(value)
    except BadValue as error:
        raise BadValue(error.reason, f"{field}: {error}") from None


def prepend_system_message(system: Any, messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with a system message, if one is given, before them.

    Raises BadValue where that would make two that differ.
    """
    if is_empty(system):
        return list(messages)
    if not isinstance(system, str):
        raise BadValue("wrong type", f"system: is {shorten_repr(system)}, not a text")
    if messages[0].role == "system":
        if messages[0].content == system:
            return list(messages)
        raise BadValue("wrong roles", "system: the conversation opens with a system message of its own")
    return [Message(role="system", content=system), *messages]
