"""What a format is: how a row of it is told, what rows it can be made into, and how."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from qwen_align.align.rows import Message, Mode, Row
from qwen_align.data_builders.bad_row_errors import BadValue, quoted
from qwen_align.data_builders.message_conversion import Tools, tools, turns, with_system

Kind = Literal["problem", "trace", "chat", "pair", "labelled", "text"]
Values = Mapping[str, Any]
"""A source's row. A key whose value is null tells nothing of the format."""


@dataclass(frozen=True)
class Target:
    """What the row is to become; `seen` counts what was converted on the way.

    `reward` is None where the recipe names none, so that a format may have its own default.
    """

    id: str
    kind: Kind
    reward: str | None = None
    mode: Mode | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    calculator_marks: Literal["keep", "remove"] = "keep"
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that every row but a text has."""
        mode = {} if self.mode is None else {"mode": self.mode}
        return {"id": self.id, "source": self.source, "meta": dict(self.meta), **mode}


class RowFormat(NamedTuple):
    """A format by name; `fits` looks at keys and kinds of values, not at what a text says.

    `keys` are all the keys it reads. The first of `kinds` is what rows become unless another is asked for.
    """

    name: str
    says: str
    keys: tuple[str, ...]
    kinds: tuple[Kind, ...]
    fits: Callable[[Values], bool]
    convert: Callable[[Values, Target], Row]


def has(values: Values, *keys: str) -> bool:
    """Whether all the keys are there; a null value is no value."""
    return all(values.get(key) is not None for key in keys)


def has_list(values: Values, key: str) -> bool:
    return isinstance(values.get(key), list)


def text(values: Values, key: str) -> str:
    """The text under a key; raises BadValue if it is missing, blank or no text."""
    value = wanted(values, key)
    if not isinstance(value, str):
        raise BadValue("wrong type", f"{key}: is {quoted(value)}, not a text")
    if not value.strip():
        raise BadValue("blank field", f"{key}: is blank")
    return value


def optional_text(values: Values, key: str) -> str:
    """The text under a key, empty if there is none; raises BadValue if it is no text."""
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadValue("wrong type", f"{key}: is {quoted(value)}, not a text")
    return value


def wanted(values: Values, key: str) -> Any:
    """The value under a key; raises BadValue if it is missing or null."""
    if values.get(key) is None:
        what = "is null" if key in values else "is missing"
        raise BadValue("missing field", f"'{key}' {what}; the row's keys: {', '.join(map(str, values)) or 'none'}")
    return values[key]


def turn_list(values: Values, key: str, target: Target) -> list[Message]:
    """The turns under a key, after the row's own system message; raises BadValue for a blank user turn."""
    value = wanted(values, key)
    if not isinstance(value, list):
        raise BadValue("wrong type", f"{key}: is {quoted(value)}, not a list of turns")
    said = with_system(values.get("system"), turns(value, key, target.seen))
    for message in said:
        if message.role == "user" and not message.content.strip():
            raise BadValue("blank field", f"{key}: a user's turn is blank")
    return said


def prompt_turns(values: Values, key: str, target: Target) -> list[Message]:
    """A text or a list of turns under a key, as what comes before the answer."""
    value = wanted(values, key)
    said = turn_list(values, key, target) if isinstance(value, list) else None
    if said is None:
        said = with_system(values.get("system"), [Message(role="user", content=text(values, key))])
    if said[-1].role == "assistant":
        raise BadValue("wrong roles", f"{key}: ends with an assistant's turn; a prompt ends before the answer")
    return said


def schemas(values: Values, target: Target) -> Tools | None:
    """The row's tools; raises BadValue where rows of the kind cannot carry them."""
    found = tools(values.get("tools"))
    if found and target.kind != "chat":
        raise BadValue("tools", f"tools: {target.kind} rows carry none; only chat rows do")
    return found
