"""Parses the gold of the `tool_calls` reward: the expected tool calls and the JSON schemas of the tools."""

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

from qwen_align.reward.strict_json import parse_json, to_comparable

Schemas = dict[str, dict[str, Any]]


class ToolCall(NamedTuple):
    """A tool call, with the tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


class ToolCallGold(NamedTuple):
    """A parsed tool-call gold, with the expected calls, their comparison keys and the tools' JSON schemas.

    The schemas are None if the gold names no tools.
    """

    calls: list[ToolCall]
    keys: list[Hashable]
    schemas: Schemas | None


def parse_tool_gold(gold: Any) -> ToolCallGold | str:
    """Parses a gold into the tool calls it expects. Returns the reason as text if the gold is unusable."""
    if not isinstance(gold, dict) or not isinstance(gold.get("calls"), list) or not set(gold) <= {"calls", "tools"}:
        return "unusable gold"
    try:
        return _parse_gold_json(json.dumps(gold))
    except (TypeError, ValueError, RecursionError):
        return "unusable gold"


def make_call_key(call: ToolCall, schemas: Schemas | None) -> Hashable:
    """Returns a hashable key of a tool call that is equal for equal calls.

    Numbers are compared by value, keys in any order, without arguments that say their default.
    """
    properties = (schemas or {}).get(call.name, {}).get("properties", {})
    arguments = {
        name: to_comparable(value)
        for name, value in call.arguments.items()
        if not (name in properties and _is_default(value, properties[name]))
    }
    return call.name, frozenset(arguments.items())


def is_tool_call(value: Any) -> bool:
    """Returns whether a JSON value has the form of a tool call, with a name and arguments."""
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def _is_default(value: Any, schema: Any) -> bool:
    """Returns whether an argument's value equals the default in its JSON schema."""
    return isinstance(schema, dict) and "default" in schema and to_comparable(value) == to_comparable(schema["default"])


@lru_cache(maxsize=4096)  # a prompt's completions share their gold, and checking its schemas takes milliseconds
def _parse_gold_json(text: str) -> ToolCallGold | str:
    """Parses a tool-call gold written as JSON. Returns the reason as text if it is unusable."""
    gold = json.loads(text)
    tools = gold.get("tools")
    schemas = None if tools is None else _parse_tool_schemas(tools)
    calls = []
    for item in gold["calls"]:
        call = item.get("function", item) if isinstance(item, dict) else item
        if isinstance(call, dict) and isinstance(call.get("arguments"), str):
            call = call | {"arguments": parse_json(call["arguments"])}
        if not is_tool_call(call):
            return "unusable gold"
        calls.append(ToolCall(call["name"], call["arguments"]))
    if schemas is not None and not all(_fits_schema(call, schemas) for call in calls):
        return "gold breaks its schema"
    return ToolCallGold(calls, [make_call_key(call, schemas) for call in calls], schemas)


def _parse_tool_schemas(tools: Any) -> Schemas:
    """Returns the JSON schema of each tool's arguments by the tool's name.

    Raises TypeError or ValueError if one is missing.
    """
    schemas: Schemas = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        schema = function.get("parameters") or {}
        if not isinstance(function.get("name"), str) or not isinstance(schema, dict):
            raise ValueError("a tool has a name, and parameters that are a JSON schema")
        if not isinstance(schema.get("properties", {}), dict):
            raise ValueError("properties are an object")
        schemas[function["name"]] = {key: value for key, value in schema.items() if key != "$schema"}
    return schemas


def _fits_schema(call: ToolCall, schemas: Schemas) -> bool:
    """Returns whether a tool call names a known tool and its arguments are valid by the tool's JSON schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if call.name not in schemas:
        return False
    schema = schemas[call.name]
    try:
        Draft202012Validator.check_schema(schema)
        # An empty registry: a schema may point into itself, but nothing is fetched.
        return bool(Draft202012Validator(schema, registry=Registry()).is_valid(call.arguments))
    except (SchemaError, Unresolvable):
        return False
