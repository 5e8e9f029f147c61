"""The JSON Schema that editors use: it knows every kind and takes every shipped recipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qwen_align.align.commands import shipped_recipes
from qwen_align.align.settings.recipe import Recipe
from qwen_align.align.settings.recipe_file import load_variants, parse_yaml
from qwen_align.align.stages.registry import STAGE_KINDS


def test_every_kind_of_stage_makes_a_known_product() -> None:
    kinds = set(re.findall(r'"const": "(\w+)"', json.dumps(Recipe.model_json_schema()["$defs"])))
    assert set(STAGE_KINDS) <= kinds


@pytest.mark.parametrize("name", [name for name, _ in shipped_recipes.list_recipes()])
def test_shipped_recipes_load_and_the_schema_takes_them(name: str, tmp_path: Path) -> None:
    for each, _ in shipped_recipes.list_recipes():  # one may extend another
        (tmp_path / f"{each}.yaml").write_text(shipped_recipes.read_recipe(each), encoding="utf-8")
    path = tmp_path / f"{name}.yaml"
    variants = load_variants(path)
    assert variants[0].recipe.name == name
    raw: Any = parse_yaml(path.read_text(encoding="utf-8"), where=name)  # with YAML 1.2's numbers, as editors read it
    schema = Draft202012Validator(Recipe.model_json_schema())
    assert list(schema.iter_errors(raw)) == []
    raw["stages"][0]["nmae"] = "x"
    assert list(schema.iter_errors(raw)) != []


def test_the_schema_lists_every_kind_with_its_settings() -> None:
    schema = Recipe.model_json_schema()
    by_kind = {
        definition["properties"]["kind"]["const"]: definition["properties"]
        for definition in schema["$defs"].values()
        if "const" in definition.get("properties", {}).get("kind", {})
    }
    assert set(STAGE_KINDS) | {"arithmetic", "local_file", "pairs", "think_mix", "math_answer", "format"} <= set(
        by_kind
    )
    assert "learning_rate" in by_kind["sft"]
    assert "beta" in by_kind["dpo"]
