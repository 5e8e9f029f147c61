"""No setting without effect: for every field of every settings class a value that changes something recorded.

tests/settings_effects.yaml maps class and field to that value and to a probe of tests/architecture/settings_probes.py,
that computes what is recorded, with the value and without it.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel

from qwen_align.align.commands.settings_reference import is_union_tag, list_settings_classes
from qwen_align.align.errors import StageError
from qwen_align.align.settings.recipe import Recipe
from qwen_align.reward.code import launch_server
from tests.architecture.settings_probes import World

TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "settings_effects.yaml").read_text(encoding="utf-8")
)


class Effect(NamedTuple):
    """One entry: `value` of the field at `place` of the probe's settings, besides those of `base`."""

    settings_class: str
    field: str
    probe: str
    base: dict[str, Any]
    place: str
    value: Any
    refused: str | None
    is_place: bool  # for something else in the file, so that no code reads it


def list_effects() -> list[pytest.param]:  # type: ignore[valid-type]
    """The table's entries; an entry of a field takes from its class what it does not say itself."""
    found = []
    for class_name, of_class in TABLE.items():
        for field, entry in of_class["fields"].items():
            own = entry if isinstance(entry, dict) and "value" in entry else {"value": entry}
            effect = Effect(
                class_name,
                field,
                own.get("probe", of_class.get("probe")),
                own["only"] if "only" in own else merge(of_class.get("base", {}), own.get("base", {})),
                own.get("at", of_class.get("at", "")),
                own["value"],
                own.get("refused"),
                own.get("is_place", False),
            )
            marks = [pytest.mark.slow(seconds=3)] if own.get("slow", of_class.get("slow")) else []
            found.append(pytest.param(effect, id=f"{class_name}.{field}", marks=marks))
    return found


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of `change` in them, at any depth; a list is replaced."""
    merged = dict(base)
    for name, value in change.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return merged


def put(settings: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The settings with one value set; numbers in the dotted `place` count the entries of a list."""
    settings = copy.deepcopy(settings)
    *path, last = place.split(".")
    holder: Any = settings
    for part in path:
        holder = holder[int(part)] if isinstance(holder, list) else holder.setdefault(part, {})
    holder[last] = value
    return settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[World]:
    """As an ordinary user has it, whom alone `isolation: process` of the code reward is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_server, "is_root", lambda: False)
        yield World(tmp_path_factory.mktemp("world"), tiny_model)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """What the probes recorded of bases, which many entries share."""
    return {}


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("effect", list_effects())
def test_a_setting_changes_something_recorded(effect: Effect, world: World, recorded: dict[str, Any]) -> None:
    probe = getattr(world, effect.probe)
    place = f"{effect.place}.{effect.field}".strip(".")
    known = json.dumps([effect.probe, effect.base], sort_keys=True)
    if known not in recorded:
        recorded[known] = probe(effect.base)
    changed = put(effect.base, place, effect.value)
    assert changed != effect.base, "the value is that of the base"
    if effect.refused:
        with pytest.raises((ValueError, StageError), match=effect.refused):
            probe(changed)
    elif effect.is_place:
        assert str(probe(changed)) == str(recorded[known])
    else:
        assert str(probe(changed)) != str(recorded[known]), (
            f"{effect.settings_class}.{effect.field}: {effect.value!r} changes nothing of what probe {effect.probe} "
            "records: let the code read it, let it be refused, or remove it"
        )


def test_every_setting_is_in_the_table_and_nothing_else_is() -> None:
    fields: dict[str, set[str]] = {}
    for settings_class in list_settings_classes(Recipe):
        for owner in settings_class.__mro__:
            if issubclass(owner, BaseModel) and owner is not BaseModel:
                declared = {name for name in owner.__annotations__ if name in owner.model_fields and name != "kind"}
                abstract = {
                    name for name in declared if owner.model_fields[name].annotation is str and name == "method"
                }
                chosen = {name for name in declared if is_union_tag(owner.model_fields[name])}
                if declared - chosen - abstract:
                    fields[owner.__name__] = declared - chosen - abstract
    listed = {name: set(of_class["fields"]) for name, of_class in TABLE.items()}
    missing = {
        name: sorted(own - listed.get(name, set())) for name, own in fields.items() if own - listed.get(name, set())
    }
    gone = {
        name: sorted(own - fields.get(name, set())) for name, own in listed.items() if own - fields.get(name, set())
    }
    assert not missing, f"without an effect in tests/settings_effects.yaml: {missing}"
    assert not gone, f"in tests/settings_effects.yaml, and no setting: {gone}"
