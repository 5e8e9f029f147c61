"""What a tool-call gold wants: its calls, and the JSON schemas of the tools they go to."""

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

from qwen_align.reward.strict_json import canonical, read_json

Schemas = dict[str, dict[str, Any]]


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]


class Wanted(NamedTuple):
    """The calls, what each is compared by, and each tool's schema, None where the gold names no tools."""

    calls: list[Call]
    keys: list[Hashable]
    schemas: Schemas | None


def read_gold(gold: Any) -> Wanted | str:
    """What is wanted, else the short reason why the gold is unusable."""
    if not isinstance(gold, dict) or not isinstance(gold.get("calls"), list) or not set(gold) <= {"calls", "tools"}:
        return "unusable gold"
    try:
        return _read(json.dumps(gold))
    except (TypeError, ValueError, RecursionError):
        return "unusable gold"


def key_of(call: Call, schemas: Schemas | None) -> Hashable:
    """Equal for equal calls: numbers by value, keys in any order, without arguments that say their default."""
    properties = (schemas or {}).get(call.name, {}).get("properties", {})
    said = {
        name: canonical(value)
        for name, value in call.arguments.items()
        if not (name in properties and _is_default(value, properties[name]))
    }
    return call.name, frozenset(said.items())


def is_call(said: Any) -> bool:
    """Whether this has a name and arguments."""
    return isinstance(said, dict) and isinstance(said.get("name"), str) and isinstance(said.get("arguments"), dict)


def _is_default(value: Any, schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema and canonical(value) == canonical(schema["default"])


@lru_cache(maxsize=4096)  # a prompt's completions share their gold, and checking its schemas takes milliseconds
def _read(text: str) -> Wanted | str:
    gold = json.loads(text)
    tools = gold.get("tools")
    schemas = None if tools is None else _read_tools(tools)
    calls = []
    for said in gold["calls"]:
        call = said.get("function", said) if isinstance(said, dict) else said
        if isinstance(call, dict) and isinstance(call.get("arguments"), str):
            call = call | {"arguments": read_json(call["arguments"])}
        if not is_call(call):
            return "unusable gold"
        calls.append(Call(call["name"], call["arguments"]))
    if schemas is not None and not all(_fits(call, schemas) for call in calls):
        return "gold breaks its schema"
    return Wanted(calls, [key_of(call, schemas) for call in calls], schemas)


def _read_tools(tools: Any) -> Schemas:
    """The schema of each tool's arguments, by its name; raises TypeError or ValueError where there is none."""
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


def _fits(call: Call, schemas: Schemas) -> bool:
    """Whether the call is to one of the tools and its arguments are valid (JSON schema 2020-12)."""
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
