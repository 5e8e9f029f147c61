"""Selects the settings that make a stage's key: those not at their defaults, under their first names."""

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qwen_align.align.references import find_settings, walk_settings
from qwen_align.align.settings.base import ALWAYS_IN_KEY, Strict
from qwen_align.align.settings.renamed import get_old_field_names, get_old_field_values
from qwen_align.align.store.python_imports import find_version
from qwen_align.reward.settings import REWARDS_BY_KIND


def list_key_fields(settings: BaseModel) -> list[tuple[str, Any]]:
    """Returns (name in keys, value) of the settings fields that are part of a stage's key.

    A field at its default is left out, so that a new setting leaves all keys as they were; required fields, `kind` and
    fields that are marked `ALWAYS_IN_KEY` stay. A renamed field has its old name, a renamed value its old value.
    """
    old_names, old_values = get_old_field_names(type(settings)), get_old_field_values(type(settings))
    return [
        (old_names.get(name, name), _to_old_value(getattr(settings, name), old_values.get(name, {})))
        for name, field in type(settings).model_fields.items()
        if is_always_in_key(name, field) or getattr(settings, name) != field.get_default(call_default_factory=True)
    ]


def list_key_packages(settings: Any) -> dict[str, str | None]:
    """Returns the versions of the installed packages on which the result of settings depends.

    They are those of the settings themselves, at any depth, and of the rewards that settings give to their rows.
    """
    names = {name for part in find_settings(settings) if isinstance(part, Strict) for name in part.key_packages}
    for dotted_path, value in walk_settings(settings):
        if dotted_path.rpartition(".")[2] == "reward" and value in REWARDS_BY_KIND:
            names.update(REWARDS_BY_KIND[value].key_packages)
    return {name: find_version(name) for name in sorted(names)}


def is_always_in_key(name: str, field: FieldInfo) -> bool:
    """Returns whether a settings field is part of keys even at its default. Then another default is another key."""
    return name == "kind" or field.is_required() or ALWAYS_IN_KEY in field.metadata


def _to_old_value(value: Any, old_values: dict[Any, Any]) -> Any:
    """Returns the old value of a renamed setting value, as keys have it. Of a list each value is replaced."""
    if not old_values:
        return value
    if isinstance(value, list):
        return [old_values.get(item, item) for item in value]
    return old_values.get(value, value)
