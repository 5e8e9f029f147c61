"""Defines typed references between stages and to the user's files, and finds them at any depth of settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

Product = Literal["data", "model", "scorer", "evaluation"]


class Ref(str):
    """A reference to the product of a stage, or to an entry of the recipe's `models`, by name."""

    product: ClassVar[Product]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        named = core_schema.str_schema(min_length=1, strict=True)
        return core_schema.no_info_after_validator_function(cls._from_name, named)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": f"name of an earlier stage that makes a {cls.product}"}

    @classmethod
    def _from_name(cls, name: str) -> Self:
        """Builds a reference from a validated name."""
        return cls(name)


class ModelRef(Ref):
    """A reference to a model, by the name of the stage that makes it or of an entry of `models`."""

    product = "model"


class DataRef(Ref):
    """A reference to rows, by the name of the stage that makes them."""

    product = "data"


class ScorerRef(Ref):
    """A reference to a reward model, by the name of the stage that makes it."""

    product = "scorer"


def find_references(settings: Any) -> Iterator[tuple[str, Ref]]:
    """Yields (dotted path, reference) for every reference inside nested settings, lists and mappings, in order."""
    for dotted_path, leaf in walk_settings(settings):
        if isinstance(leaf, Ref):
            yield dotted_path, leaf


def walk_settings(settings: Any, *, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) for every leaf value of nested settings, lists and mappings, in order."""
    if isinstance(settings, BaseModel):
        for field in type(settings).model_fields:
            yield from walk_settings(getattr(settings, field), at=f"{at}.{field}" if at else field)
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from walk_settings(value, at=f"{at}.{key}" if at else str(key))
    elif isinstance(settings, list | tuple):
        for index, value in enumerate(settings):
            yield from walk_settings(value, at=f"{at}[{index}]")
    else:
        yield at, settings


def find_settings(settings: Any) -> Iterator[BaseModel]:
    """Yields a settings object and every one inside it, through lists and mappings, in order."""
    if isinstance(settings, BaseModel):
        yield settings
        for field in type(settings).model_fields:
            yield from find_settings(getattr(settings, field))
    elif isinstance(settings, Mapping):
        for value in settings.values():
            yield from find_settings(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from find_settings(value)


class OutsideFile(str):
    """A path to a user's own file. Relative paths start at the recipe's folder. The file's sha256 is in the key."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        named = core_schema.str_schema(min_length=1, strict=True)
        return core_schema.with_info_after_validator_function(cls._from_recipe, named)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": "path, relative to the recipe"}

    @classmethod
    def _from_recipe(cls, path: str, info: core_schema.ValidationInfo) -> Self:
        """Resolves a relative path against the recipe's folder, if the validation context names one."""
        folder = (info.context or {}).get("folder")
        return cls(Path(folder, Path(path).expanduser()).resolve() if folder else path)


class PythonFile(OutsideFile):
    """A path to a user's own Python file. What it imports from the user's folders is in the key with it."""


def find_outside_files(settings: Any) -> Iterator[tuple[str, OutsideFile]]:
    """Yields (dotted path, file) for every user's file inside nested settings, lists and mappings, in order."""
    for dotted_path, leaf in walk_settings(settings):
        if isinstance(leaf, OutsideFile):
            yield dotted_path, leaf


def list_fields(settings: BaseModel) -> list[tuple[str, Any]]:
    """Returns (name, value) of every field of a settings object, in order."""
    return [(name, getattr(settings, name)) for name in type(settings).model_fields]


def to_plain_value(
    value: Any,
    *,
    ref: Callable[[Ref], Any],
    file: Callable[[OutsideFile], Any],
    fields: Callable[[BaseModel], Iterable[tuple[str, Any]]] = list_fields,
) -> Any:
    """Converts settings to JSON values, replacing references by `ref(reference)` and files by `file(path)`.

    `fields`: which fields of each settings object are taken, and under which names.
    """
    if isinstance(value, Ref):
        return ref(value)
    if isinstance(value, OutsideFile):
        return file(value)
    if isinstance(value, BaseModel):
        return {name: to_plain_value(item, ref=ref, file=file, fields=fields) for name, item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain_value(item, ref=ref, file=file, fields=fields) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_value(item, ref=ref, file=file, fields=fields) for item in value]
    return value
