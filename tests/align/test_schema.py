"""The JSON Schema that editors use: it knows every kind and takes every shipped recipe."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align import shipped
from qwen_align.align.spec.recipe import PRODUCTS, Recipe, _read, load

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def test_every_kind_of_stage_makes_a_known_product() -> None:
    kinds = set(re.findall(r'"const": "(\w+)"', json.dumps(Recipe.model_json_schema()["$defs"])))
    assert set(PRODUCTS) <= kinds


@pytest.mark.parametrize("name", [name for name, _ in shipped.listing()])
def test_shipped_recipes_load_and_the_schema_takes_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(shipped.text(name), encoding="utf-8")
    variants = load(path)
    assert variants[0].recipe.name == name
    schema = Recipe.model_json_schema()
    raw: Any = _read(path)  # with YAML 1.2's numbers, as editors read it
    assert _faults(raw, schema, schema) == []
    raw["stages"][0]["nmae"] = "x"
    assert _faults(raw, schema, schema) != []


def test_the_schema_lists_every_kind_with_its_settings() -> None:
    schema = Recipe.model_json_schema()
    by_kind = {
        definition["properties"]["kind"]["const"]: definition["properties"]
        for definition in schema["$defs"].values()
        if "const" in definition.get("properties", {}).get("kind", {})
    }
    assert set(PRODUCTS) | {"arithmetic", "local_file", "pairs", "think_mix", "math_answer", "format"} <= set(by_kind)
    assert "learning_rate" in by_kind["sft"]
    assert "beta" in by_kind["dpo"]


def test_the_schema_uses_no_keyword_that_the_check_above_skips() -> None:
    ignored = {"title", "description", "default", "discriminator", "$defs"}
    numbers = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "minItems"}
    checked = {"$ref", "anyOf", "oneOf", "const", "enum", "type", "properties", "required", "additionalProperties"}
    known = ignored | numbers | checked | {"items", "pattern", "maxItems"}
    assert set(_keywords(Recipe.model_json_schema())) <= known


def _keywords(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for one in schema:
            yield from _keywords(one)
    if isinstance(schema, dict):
        for keyword, value in schema.items():
            yield keyword
            if keyword in ("properties", "$defs"):
                for one in value.values():
                    yield from _keywords(one)
            elif keyword in ("anyOf", "oneOf", "items", "additionalProperties"):
                yield from _keywords(value)


def _faults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
    """What JSON Schema says against the value, ranges of numbers and lengths left out."""
    if "$ref" in schema:
        return _faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options:
        tries = [_faults(value, option, root) for option in options]
        return min(tries, key=len)
    if value not in schema.get("enum", [schema.get("const", value)]):
        return [f"{value!r} is not what is allowed"]
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return [f"{value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        return _object_faults(value, schema, root)
    if isinstance(value, list):
        return [fault for item in value for fault in _faults(item, schema.get("items", {}), root)]
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return [f"{value!r} is not {schema['pattern']}"]
    return []


def _object_faults(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    faults = [f"{name} is missing" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        if name in properties:
            faults += _faults(item, properties[name], root)
        elif isinstance(rest, dict):
            faults += _faults(item, rest, root)
        elif not rest:
            faults.append(f"{name} is unknown")
    return faults
