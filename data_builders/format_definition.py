"""Defines what a source format is, and reads typed values from a source row."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from qwen_align.align.rows import Message, Mode, Row
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.column_meanings import is_empty
from qwen_align.data_builders.message_conversion import (
    Tools,
    convert_reply,
    convert_tool_schemas,
    convert_turns,
    parse_nested_json,
    prepend_system_message,
)

Kind = Literal["problem", "trace", "chat", "pair", "labelled", "text"]
_SWITCH_OF_TEXT = {"true": True, "false": False}
Values = Mapping[str, Any]
"""A source's row. A key whose value is null tells nothing of the format."""

_LABEL_OF_TEXT = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Target:
    """The target of a row's conversion: the new row's id, kind, reward and other fields.

    `conversion_counts` counts what was converted on the way. `named_fields` are those whose column the recipe names.
    `reward` is None where the recipe names none, so that a
    format may have its own default.
    """

    id: str
    kind: Kind
    reward: str | None = None
    mode: Mode | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    calculator_marks: Literal["keep", "remove"] = "keep"
    conversion_counts: Counter[str] = field(default_factory=Counter)
    named_fields: frozenset[str] = frozenset()

    @property
    def shared_fields(self) -> dict[str, Any]:
        """Returns the fields that rows of every kind but raw texts have: id, source, meta and mode."""
        mode = {} if self.mode is None else {"mode": self.mode}
        return {"id": self.id, "source": self.source, "meta": dict(self.meta), **mode}


class RowFormat(NamedTuple):
    """A source format: its name, its keys, a test that recognises a row and a function that converts one.

    `fits` looks at keys and kinds of values, not at what a text says.

    `keys` are all the keys it reads. The first of `kinds` is what rows become unless another is asked for.
    """

    name: str
    description: str
    keys: tuple[str, ...]
    kinds: tuple[Kind, ...]
    fits: Callable[[Values], bool]
    convert: Callable[[Values, Target], Row]


def has_values(values: Values, *keys: str) -> bool:
    """Returns whether a row has a non-null value under each of the keys."""
    return all(values.get(key) is not None for key in keys)


def has_list(values: Values, key: str) -> bool:
    """Returns whether the value under a key of a row is a list."""
    return isinstance(values.get(key), list)


def parse_label(value: Any, field: str) -> bool:
    """Converts true or false, 1 or 0, or their spelling in CSV files, to a boolean. Raises BadValue for others."""
    if not is_label(value):
        raise BadValue("wrong type", f"{field}: is {shorten_repr(value)}; a label is true or false, 1 or 0")
    return _LABEL_OF_TEXT[str(value).strip().lower()]


def is_label(value: Any) -> bool:
    """Returns whether a value is true or false, 1 or 0, or their spelling in CSV files."""
    return isinstance(value, bool | int | float | str) and str(value).strip().lower() in _LABEL_OF_TEXT


def read_text(values: Values, key: str) -> str:
    """Returns the text under a key of a row. Raises BadValue if it is missing, blank or no text."""
    value = read_required(values, key)
    if not isinstance(value, str):
        raise BadValue("wrong type", f"{key}: is {shorten_repr(value)}, not a text")
    if not value.strip():
        raise BadValue("blank field", f"{key}: is blank")
    return value


def read_optional_text(values: Values, key: str) -> str:
    """Returns the text under a key of a row, or an empty text if the key is missing.

    Raises BadValue if it is no text.
    """
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadValue("wrong type", f"{key}: is {shorten_repr(value)}, not a text")
    return value


def read_required(values: Values, key: str) -> Any:
    """Returns the value under a key of a row. Raises BadValue if it is missing or null."""
    if values.get(key) is None:
        problem = "is null" if key in values else "is missing"
        raise BadValue("missing field", f"'{key}' {problem}; the row's keys: {', '.join(map(str, values)) or 'none'}")
    return values[key]


def read_turns(values: Values, key: str, target: Target) -> list[Message]:
    """Reads the conversation turns under a key of a row, with the row's own system message before them.

    Raises BadValue for a blank user turn.
    """
    value = read_required(values, key)
    if not isinstance(value, list):
        raise BadValue("wrong type", f"{key}: is {shorten_repr(value)}, not a list of turns")
    turns_read = prepend_system_message(values.get("system"), convert_turns(value, key, target.conversion_counts))
    for message in turns_read:
        if message.role == "user" and not message.content.strip():
            raise BadValue("blank field", f"{key}: a user's turn is blank")
    return turns_read


def read_prompt(values: Values, key: str, target: Target) -> list[Message]:
    """Reads the text or the list of turns under a key of a row as a prompt. Before a text comes the row's history."""
    value = read_required(values, key)
    turns_read = read_turns(values, key, target) if isinstance(value, list) else None
    if turns_read is None:
        user_turn = Message(role="user", content=read_text(values, key))
        turns_read = prepend_system_message(values.get("system"), [*read_history(values, target), user_turn])
    if turns_read[-1].role == "assistant":
        raise BadValue("wrong roles", f"{key}: ends with an assistant's turn; a prompt ends before the answer")
    return turns_read


def read_row_mode(values: Values) -> Mode | None:
    """Returns the thinking mode that a row asks of the chat template.

    It stands under `enable_thinking`, or in TRL's column `chat_template_kwargs`. Returns None if the row asks for none.
    Raises BadValue for any other argument, whose meaning is unknown, and for two that differ.
    """
    arguments = parse_nested_json(values.get("chat_template_kwargs") or {}, "chat_template_kwargs")
    items = arguments.items() if isinstance(arguments, Mapping) else ()
    given = {key: value for key, value in items if not is_empty(value)}
    asked = [
        value for value in (given.pop("enable_thinking", None), values.get("enable_thinking")) if value is not None
    ]
    switches = [_SWITCH_OF_TEXT.get(value.strip().lower()) if isinstance(value, str) else value for value in asked]
    is_known = isinstance(arguments, Mapping) and not given and all(isinstance(switch, bool) for switch in switches)
    if not is_known or len(set(switches)) > 1:
        found = shorten_repr(arguments or asked)
        problem = f"chat_template_kwargs or enable_thinking: is {found}; only enable_thinking, true or false, is read"
        raise BadValue("unknown template argument", problem)
    return None if not switches else "think" if switches[0] else "no_think"


def read_tools(values: Values, target: Target) -> Tools | None:
    """Reads the tool schemas of a row. Raises BadValue where rows of the target's kind cannot have tools."""
    schemas = convert_tool_schemas(values.get("tools"))
    if schemas and target.kind != "chat":
        raise BadValue("tools", f"tools: {target.kind} rows carry none; only chat rows do")
    return schemas


def read_history(values: Values, target: Target) -> list[Message]:
    """Reads the `history` of a row: pairs of a user's and an assistant's text, as ChatGLM and Alpaca have it, or turns.

    Raises BadValue for anything else.
    """
    history = values.get("history")
    if isinstance(history, str):  # a table's cell
        with suppress(BadValue):
            history = parse_nested_json(history, "history")
    if is_empty(history):
        return []
    if not isinstance(history, list):
        raise BadValue("wrong type", f"history: is {shorten_repr(history)}, not a list of turns")
    if any(isinstance(turn, Mapping) for turn in history):
        return convert_turns(history, "history", target.conversion_counts)
    turns: list[Message] = []
    for index, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadValue(
                "wrong type", f"history: {index}: is {shorten_repr(turn)}, not two texts: user's and assistant's"
            )
        turns.append(Message(role="user", content=turn[0]))
        turns.append(convert_reply(turn[1], f"history: {index}", target.conversion_counts))
    return turns
