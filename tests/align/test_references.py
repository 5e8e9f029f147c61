"""References and outside files are found at any depth of a stage's settings."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from qwen_align.align.references import (
    DataRef,
    ModelRef,
    OutsideFile,
    find_outside_files,
    find_references,
    walk_settings,
)
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.evaluate import Evaluate


class Inner(Strict):
    data: DataRef
    file: OutsideFile


class Outer(Strict):
    model: ModelRef
    inner: list[Inner]
    by_name: dict[str, DataRef]
    nothing: DataRef | None = None


OUTER = {
    "model": "sft",
    "inner": [{"data": "a", "file": "x.json"}, {"data": "b", "file": "y.json"}],
    "by_name": {"first": "c"},
}


def test_references_say_where_they_stand_and_what_they_want() -> None:
    found = [(place, str(ref), ref.product) for place, ref in find_references(Outer.model_validate(OUTER))]
    assert found == [
        ("model", "sft", "model"),
        ("inner[0].data", "a", "data"),
        ("inner[1].data", "b", "data"),
        ("by_name.first", "c", "data"),
    ]


def test_leaves_are_everything_in_order() -> None:
    places = [place for place, _ in walk_settings(Outer.model_validate(OUTER))]
    assert places == [
        "model",
        "inner[0].data",
        "inner[0].file",
        "inner[1].data",
        "inner[1].file",
        "by_name.first",
        "nothing",
    ]


def test_references_of_a_builder_are_the_stages() -> None:
    stage = BuildData.model_validate(
        {
            "kind": "build_data",
            "name": "mix",
            "builder": {"kind": "think_mix", "from_rollout": "rollouts", "from_chats": "chats"},
        }
    )
    assert [(place, str(ref)) for place, ref in find_references(stage)] == [
        ("builder.from_rollout", "rollouts"),
        ("builder.from_chats", "chats"),
    ]


@pytest.mark.parametrize("wrong", ["", 3, None, ["sft"]])
def test_a_reference_is_a_name(wrong: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ModelRef).validate_python(wrong)


def test_references_survive_the_way_to_the_worker() -> None:
    settings = {
        "kind": "evaluate",
        "name": "e",
        "from_model": "m",
        "from_data": ["d"],
        "completions_per_prompt": 1,
        "sampling": {"max_tokens": 4},
    }
    stage = Evaluate.model_validate(settings)
    again = Evaluate.model_validate_json(stage.model_dump_json(exclude_unset=True))
    assert again == stage
    assert [type(ref) for _, ref in find_references(again)] == [ModelRef, DataRef]


def test_outside_files_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    context = {"folder": str(tmp_path / "recipes")}

    def read(path: str) -> str:
        return str(TypeAdapter(OutsideFile).validate_python(path, context=context))

    assert read("rows.jsonl") == str(tmp_path / "recipes" / "rows.jsonl")
    assert read("../rows.jsonl") == str(tmp_path / "rows.jsonl")
    assert read("/data/rows.jsonl") == "/data/rows.jsonl"
    assert read("~/rows.jsonl") == str(tmp_path / "home" / "rows.jsonl")


def test_outside_files_without_a_recipe_stay_as_they_are() -> None:
    outer = Outer.model_validate(OUTER)
    assert [(place, str(path)) for place, path in find_outside_files(outer)] == [
        ("inner[0].file", "x.json"),
        ("inner[1].file", "y.json"),
    ]
