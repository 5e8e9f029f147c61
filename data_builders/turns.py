"""Conversations of other formats as our messages: roles, thinking, tool calls; nothing a turn says is left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from qwen_align.align.rows import Message, format_first_error
from qwen_align.data_builders.bad_row import BadValue, quoted
from qwen_align.data_builders.json_file import parsed
from qwen_align.reward.thinking import CLOSE, OPEN

# ShareGPT's names for speakers, as FastChat and LLaMA-Factory write them, and OpenAI's former name for a tool.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "function_call",
    "function": "tool",
} | {role: role for role in ("system", "user", "assistant", "tool")}
_THINKING = ("thinking", "reasoning_content", "reasoning")
_NAMES = ("name", "tool_call_id", "id")  # who said it; Qwen's templates have no place for it
_READ = {"role", "content", "tool_calls", *_THINKING, *_NAMES}
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
Tools = list[dict[str, Any]]
_TOOL_CALLS: TypeAdapter[Tools] = TypeAdapter(Tools)


class Split(NamedTuple):
    """What an assistant thinks and then says; `thinking` is None without a block and with an empty one."""

    thinking: str | None
    answer: str


def split_thinking(content: str, *, needs_answer: bool = True) -> Split:
    """The thinking block that opens an assistant's turn, and what follows it; white space around both goes.

    Raises BadValue if tags stand anywhere else, are unbalanced or nested, or if nothing follows the block: a text
    whose thinking cannot be told from its answer must not be trained as an answer.
    """
    n_open, n_close = content.count(OPEN), content.count(CLOSE)
    if not n_open and not n_close:
        return Split(None, content)
    head, foot, answer = content.partition(CLOSE)
    before, _, thinking = head.partition(OPEN)
    if (n_open, n_close) != (1, 1) or not foot:
        said = f"has {n_open} {OPEN} and {n_close} {CLOSE}; one of each is a thinking block"
    elif OPEN not in head or before.strip():
        said = f"has {OPEN} inside its text; a thinking block opens the turn"
    elif needs_answer and not answer.strip():
        said = "has thinking and no answer"
    else:
        return Split(thinking.strip() or None, answer.lstrip())
    raise BadValue("malformed thinking", said)


def turns(value: Any, field: str, seen: Counter[str]) -> list[Message]:
    """A text as one user turn, or a list of turns of any of the formats; `seen` counts what was converted."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadValue("wrong type", f"{field}: is {quoted(value)}, neither a text nor a list of turns")
    return [turn(one, f"{field}: {place}", seen) for place, one in enumerate(value)]


def reply(value: Any, field: str, seen: Counter[str]) -> Message:
    """A text, one turn, or a list of one turn, as the assistant's."""
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    said = turns(value if isinstance(value, list) else [value], field, seen)
    if len(said) > 1 or said[0].role != "assistant":
        roles = ", ".join(turn.role for turn in said)
        raise BadValue("wrong roles", f"{field}: has roles {roles}; one assistant turn is needed")
    return said[0]


def turn(value: Any, field: str, seen: Counter[str]) -> Message:
    """One turn as a message; raises BadValue for a role, key or content that has no place in it."""
    if not isinstance(value, Mapping):
        raise BadValue("wrong type", f"{field}: Input should be a valid dictionary; found {quoted(value)}")
    said = {key: item for key, item in value.items() if item is not None}
    if "from" in said and "role" not in said:
        said |= {"role": said.pop("from"), "content": said.pop("value", None)}
        said = {key: item for key, item in said.items() if item is not None}
    role = said.get("role")
    ours = _ROLES.get(role, role) if isinstance(role, str) else role
    if ours == "function_call":
        said |= {"role": "assistant", "content": "", "tool_calls": _function_calls(said.get("content"), field)}
        seen["function_call turns read as tool calls"] += 1
        ours = "assistant"
    _refuse_unread(said, field)
    seen.update(f"turns' '{key}' left out" for key in _NAMES if key in said)
    message: dict[str, Any] = {"role": ours}
    if "content" in said or "tool_calls" not in said:
        message |= {"content": _content(said["content"], field, seen)} if "content" in said else {}
    else:
        message["content"] = ""  # OpenAI's content of a turn that only calls tools is null
    if said.get("tool_calls"):
        message["tool_calls"] = tool_calls(said["tool_calls"], f"{field}.tool_calls")
    _put_thinking(message, said, field, seen)
    try:
        return _MESSAGE.validate_python(message)
    except ValidationError as error:
        wrong = "missing field" if error.errors()[0]["type"] == "missing" else "wrong type"
        raise BadValue(wrong, f"{field}.{format_first_error(error)}") from None


def _refuse_unread(said: Mapping[str, Any], field: str) -> None:
    """Raises BadValue for a key whose meaning we do not know, such as a weight of 0 that says `not to be trained`."""
    for key in said:
        if key not in _READ:
            known = "role and content, or from and value; thinking, reasoning_content, tool_calls beside them"
            raise BadValue("unknown key of a turn", f"{field}: has '{key}', which no turn has: {known}")


def _content(value: Any, field: str, seen: Counter[str]) -> Any:
    """The text, or that of a list of text parts; anything else as it is, for the message's own check."""
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
    seen["turns in text parts joined"] += 1
    return "".join(texts)


def _put_thinking(message: dict[str, Any], said: Mapping[str, Any], field: str, seen: Counter[str]) -> None:
    """Moves reasoning_content, or a block in the content, to `thinking`; raises BadValue where there are two."""
    given = [key for key in _THINKING if said.get(key) not in (None, "")]
    if len(given) > 1:
        raise BadValue("malformed thinking", f"{field}: has both {' and '.join(given)}")
    if given:
        message["thinking"] = said[given[0]]
        if message["role"] != "assistant":
            raise BadValue("malformed thinking", f"{field}: has {given[0]} in a {message['role']} turn")
        if given[0] != "thinking":
            seen[f"{given[0]} moved to thinking"] += 1
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or not (OPEN in content or CLOSE in content):
        return
    try:
        split = split_thinking(content, needs_answer=not message.get("tool_calls"))
    except BadValue as error:
        raise BadValue(error.reason, f"{field}: {error}") from None
    if given and split.thinking:
        raise BadValue("malformed thinking", f"{field}: has {given[0]} and a thinking block in its content")
    seen[f"{OPEN} blocks moved to thinking" if split.thinking else f"empty {OPEN} blocks left out"] += 1
    message["content"] = split.answer
    if split.thinking:
        message["thinking"] = split.thinking


def _function_calls(value: Any, field: str) -> Any:
    calls = nested(value, field)
    return calls if isinstance(calls, list) else [calls]


def tool_calls(value: Any, field: str) -> Tools:
    """Calls in OpenAI's wrapping, their arguments as objects; raises BadValue where one has no name or arguments."""
    calls = nested(value, field)
    if not isinstance(calls, list):
        raise BadValue("wrong type", f"{field}: is {quoted(calls)}, not a list of calls")
    return [_call(call, f"{field}[{place}]") for place, call in enumerate(calls)]


def _call(call: Any, field: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise BadValue("malformed tool call", f"{field}: is {quoted(call)}; a call has name and arguments")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = nested(arguments, f"{field}.arguments")
    if not isinstance(arguments, Mapping):
        said = f"{field}.arguments: is {quoted(arguments)}; an object, or one as JSON text, is wanted"
        raise BadValue("malformed tool call", said)
    named = {"id": call["id"]} if call.get("id") is not None else {}
    return {**named, "type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}


def tools(value: Any) -> Tools | None:
    """A list of function schemas, or one as JSON text, in OpenAI's wrapping; None if there are none."""
    found = nested(value, "tools") if isinstance(value, str) and value.strip() else value or None
    if found in (None, [], ""):
        return None
    try:
        schemas = _TOOL_CALLS.validate_python(found)
    except ValidationError as error:
        raise BadValue("wrong type", f"tools: {format_first_error(error)}") from None
    for place, schema in enumerate(schemas):
        if not isinstance(schema.get("function", schema), Mapping) or not schema.get("function", schema).get("name"):
            raise BadValue("malformed tools", f"tools[{place}]: is {quoted(schema)}; a function's schema has a name")
    return [schema if "function" in schema else {"type": "function", "function": schema} for schema in schemas]


def nested(value: Any, field: str) -> Any:
    """The value of a JSON text, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except BadValue as error:
        raise BadValue(error.reason, f"{field}: {error}") from None


def with_system(system: Any, said: Sequence[Message]) -> list[Message]:
    """The messages after a system message, if there is one to add; raises BadValue where that would make two."""
    if system in (None, ""):
        return list(said)
    if not isinstance(system, str):
        raise BadValue("wrong type", f"system: is {quoted(system)}, not a text")
    if said[0].role == "system":
        raise BadValue("wrong roles", "system: the conversation opens with a system message of its own")
    return [Message(role="system", content=system), *said]
