"""Defines the base class of all settings read from a file, which refuses unknown keys with a suggestion."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.fault_wording import find_near_word
from qwen_align.align.settings.foreign_names import explain_foreign_name
from qwen_align.align.settings.renamed import RENAMED_VALUES, get_old_field_names, get_old_field_values

# Marks a field (`Annotated[..., ALWAYS_IN_KEY]`) that stands in a stage's key also at its default: one whose default is
# to change. Of other fields a new default asks for a new code version of every kind of stage that has them.
ALWAYS_IN_KEY = "always in key"


class Strict(BaseModel):
    """A settings base class that is frozen, converts no types and refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    # Installed packages that make the rows or verdicts of these settings: their versions are in a stage's key.
    key_packages: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Raises an error for keys that the settings class does not have, with what to write instead of each.

        Raises one for what is no group of settings at all, too.
        """
        if not isinstance(data, Mapping):
            if isinstance(data, cls):
                return data
            wanted = f"a group of settings, {cls._show_form()}"
            raise PydanticCustomError(
                "not_settings", "must be {wanted}", {"wanted": wanted, "suggestion": cls._suggest_settings(data)}
            )
        known = _list_keys(cls)
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            said = "; ".join(cls._explain_unknown_key(key) for key in unknown)
            raise PydanticCustomError("unknown_key", "{said}", {"said": said})
        return data

    @classmethod
    def _explain_unknown_key(cls, key: str) -> str:
        """Returns what to write instead of a key that the class does not have."""
        new_names = {old: new for new, old in get_old_field_names(cls).items()}
        if key in new_names:
            return f"'{key}' is now called '{new_names[key]}'"
        known = _list_keys(cls)
        if (said := explain_foreign_name(key, cls.__name__, known)) is not None:
            return said
        return f"'{key}' is no setting here{format_suggestion(key, known)}"

    @classmethod
    def _suggest_settings(cls, found: Any) -> str:
        """Returns what to write in place of a value that is no group of settings, as text that ends a message."""
        return ""

    @classmethod
    def _show_form(cls) -> str:
        """Returns how a group of these settings is written: those that are required, or else the first two."""
        fields = cls.model_fields
        shown = [name for name, field in fields.items() if field.is_required()] or list(fields)[:2]
        values = {name: get_args(fields[name].annotation)[:1] for name in ("kind",) if name in fields}
        items = [f"{name}: {values[name][0] if values.get(name) else '...'}" for name in shown]
        return f"{{{', '.join(items)}}}"

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_values(cls, data: Any) -> Any:
        """Raises an error for a renamed value of a setting, with the new value."""
        if not isinstance(data, Mapping) or _list_class_names(cls).isdisjoint(RENAMED_VALUES):
            return data
        for field, old_values in get_old_field_values(cls).items():
            new_values = {old: new for new, old in old_values.items()}
            given = data.get(field)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str) and value in new_values:
                    new = new_values[value]
                    said = json.dumps(new) if isinstance(new, bool) else repr(new)
                    raise ValueError(f"{field}: '{value}' is now called {said}")
        return data


@cache  # rows are checked as settings are, and there are many of them
def _list_keys(settings_class: type[Strict]) -> dict[str, None]:
    """Returns the keys that a settings class accepts, in order."""
    return {field.alias or name: None for name, field in settings_class.model_fields.items()}


@cache
def _list_class_names(settings_class: type[Strict]) -> frozenset[str]:
    """Returns the names of a settings class and of its base classes."""
    return frozenset(parent.__name__ for parent in settings_class.__mro__)


def format_suggestion(word: str, known: Iterable[str]) -> str:
    """Returns `. Did you mean 'x'?` for the known word nearest to a given one, as text that ends a message.

    Where none is near it lists the known words; where none is known it is empty.
    """
    known = list(known)
    near = find_near_word(word, known)
    if near:
        return f". Did you mean '{near}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
