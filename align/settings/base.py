"""Defines the base class of all settings read from a file, which refuses unknown keys with a suggestion."""

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.renamed import RENAMED_VALUES, get_old_field_names, get_old_field_values

# Marks a field (`Annotated[..., ALWAYS_IN_KEY]`) that stands in a stage's key also at its default: one whose default is
# to change. Of other fields a new default asks for a new code version of every kind of stage that has them.
ALWAYS_IN_KEY = "always in key"


class Strict(BaseModel):
    """A settings base class that is frozen, converts no types and refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Raises an error for keys that the settings class does not have, with a suggestion for each."""
        if not isinstance(data, Mapping):
            return data
        known = _list_keys(cls)
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            new_names = {old: new for new, old in get_old_field_names(cls).items()}
            said = "; ".join(
                f"'{key}' is now called '{new_names[key]}'"
                if key in new_names
                else f"'{key}' is no setting here{format_suggestion(key, known)}"
                for key in unknown
            )
            raise PydanticCustomError("unknown_key", "{said}", {"said": said})
        return data

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
    """Returns `".

    Did you mean 'x'?"` for the known word nearest to a misspelt word. Returns the list of known words if none is near,
    "" if there is none.

    Did you mean 'x'?"` for the known word nearest to a given word. Returns the list of known words if none is near, ""
    if none is known.
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f". Did you mean '{near[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
