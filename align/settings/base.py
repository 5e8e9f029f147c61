"""The base class of everything read from a file: unknown keys are refused, with a suggestion."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.renamed import old_field_names, old_field_values

# Marks a field (`Annotated[..., ALWAYS_IN_KEY]`) that stands in a stage's key also at its default: one whose default is
# to change. Of other fields a new default asks for a new code version of every kind of stage that has them.
ALWAYS_IN_KEY = "always in key"


class Strict(BaseModel):
    """Frozen, no conversion between types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            new_names = {old: new for new, old in old_field_names(cls).items()}
            said = "; ".join(
                f"'{key}' is now called '{new_names[key]}'"
                if key in new_names
                else f"'{key}' is no setting here{did_you_mean(key, known)}"
                for key in unknown
            )
            raise PydanticCustomError("unknown_key", "{said}", {"said": said})
        return data

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_values(cls, data: Any) -> Any:
        for field, old_values in old_field_values(cls).items() if isinstance(data, Mapping) else ():
            new_values = {old: new for new, old in old_values.items()}
            given = data.get(field)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str) and value in new_values:
                    new = new_values[value]
                    said = json.dumps(new) if isinstance(new, bool) else repr(new)
                    raise ValueError(f"{field}: '{value}' is now called {said}")
        return data


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`". Did you mean 'x'?"` for the nearest known word, else the list of known words, if there are any."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f". Did you mean '{near[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
