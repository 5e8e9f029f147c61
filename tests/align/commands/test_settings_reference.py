"""docs/reference.md says what the settings classes say, and says something of every setting."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from qwen_align.align.commands.settings_reference import is_union_tag, list_settings_classes, render_reference
from qwen_align.align.settings.recipe import Recipe

REFERENCE = Path(__file__).parents[3] / "docs" / "reference.md"
CLASSES = list_settings_classes(Recipe)


def test_the_reference_is_that_of_the_settings() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render_reference(), (
        "docs/reference.md is not what the settings say: write it anew with `make generated`"
    )


@pytest.mark.parametrize("settings_class", CLASSES, ids=lambda settings_class: settings_class.__name__)
def test_every_setting_has_a_description(settings_class: type[BaseModel]) -> None:
    without = [
        name
        for name, field in settings_class.model_fields.items()
        if name != "kind" and not is_union_tag(field) and not field.description
    ]
    assert not without, f"{settings_class.__module__}: {settings_class.__name__}: Field(description=...) is missing"
    assert settings_class.__doc__, f"{settings_class.__name__} has no docstring, which docs/reference.md shows"


def test_a_class_that_is_reached_through_any_field_has_its_section() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert {"Recipe", "Lora", "Kl", "Watch", "Sieve", "SamplingSettings"} <= {one.__name__ for one in CLASSES}
    for heading in (
        "### Stage `grpo`",
        "### Builder `local_file`",
        "### Reward `math_answer`",
        "### Kl",
        "### Runtime",
    ):
        assert f"\n{heading}\n" in text
