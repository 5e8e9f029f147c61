"""Generates docs/reference.md, the reference of all recipe settings, from the settings classes.

See `make generated`.
"""

import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qwen_align.align.references import OutsideFile, Ref, list_fields, to_plain_value
from qwen_align.align.reporting.markdown import format_markdown_table
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.recipe import Recipe, StageSpec
from qwen_align.data_builders import Builder
from qwen_align.reward.settings import Reward

HEAD = """# Reference of settings

Every setting that a recipe can have. `make generated` writes this page from the classes in `align/settings/`,
`data_builders/` and `reward/`; `qwen-align schema` prints the same as a JSON schema for editors. Stages, builders and
rewards are named by their `kind`. `null` is YAML's word for nothing.
"""
CHAPTERS: dict[str, tuple[type[BaseModel], ...]] = {
    "Stage": get_args(StageSpec),
    "Builder": get_args(Builder),
    "Reward": get_args(Reward),
}
_CONSTRAINTS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_PLAIN_TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true` or `false`",
    Any: "anything",
    type(None): "null",
}


def render_reference() -> str:
    """Renders the settings reference (docs/reference.md) as Markdown text."""
    classes = list_settings_classes(Recipe)
    shared = [*_list_parents(classes), *(one for one in classes if one is not Recipe and _find_chapter(one) is None)]
    chapters = {f"{chapter}s": list(members) for chapter, members in CHAPTERS.items()} | {"Shared settings": shared}
    sections = [HEAD, _render_section(Recipe, 2, classes)]
    for title, members in chapters.items():
        sections.append(f"## {title}\n\n{', '.join(_format_link(member) for member in members)}\n")
        sections += [_render_section(member, 3, classes) for member in members]
    return "\n".join(sections)


def list_settings_classes(root: type[BaseModel]) -> list[type[BaseModel]]:
    """Returns every settings class reachable through the fields of `root`, with `root` first."""
    waiting: list[Any] = [root]
    found: list[type[BaseModel]] = []
    while waiting:
        annotation = waiting.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found.append(annotation)
                waiting += [field.annotation for field in annotation.model_fields.values()]
        else:
            waiting += get_args(annotation)
    return found


def get_kind(settings_class: type[BaseModel]) -> str | None:
    """Returns the `kind` value that a recipe writes for a settings class. Returns None if the class has none."""
    field = settings_class.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else None


def is_union_tag(field: FieldInfo) -> bool:
    """Returns whether a field only selects its settings class in a union, as `kind` does.

    Such a field has one value.
    """
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _list_parents(classes: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Returns the base classes whose fields are shared by several settings classes, the most general last."""
    parents: list[type[BaseModel]] = []
    for settings_class in classes:
        for parent in settings_class.__mro__[1:]:
            if issubclass(parent, Strict) and _list_own_fields(parent) and parent not in (*classes, *parents):
                parents.append(parent)
    return parents


def _list_own_fields(settings_class: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns the fields that a settings class itself declares. A `kind: str` that subclasses fill in is left out."""
    return {
        name: field
        for name, field in settings_class.model_fields.items()
        if name in settings_class.__annotations__ and not (name in ("kind", "method") and field.annotation is str)
    }


def _find_chapter(settings_class: type[BaseModel]) -> str | None:
    """Returns the chapter of the reference that lists a settings class among its kinds. Returns None if none does."""
    return next((chapter for chapter, members in CHAPTERS.items() if settings_class in members), None)


def _render_section(settings_class: type[BaseModel], level: int, classes: list[type[BaseModel]]) -> str:
    """Renders the reference section of a settings class: its docstring, field table and the settings that use it."""
    chapter = _find_chapter(settings_class)
    title = f"{chapter} `{get_kind(settings_class)}`" if chapter else _get_class_name(settings_class)
    lines = [f"{'#' * level} {title}", "", *_render_docstring(settings_class)]
    fields = {name: field for name, field in _list_own_fields(settings_class).items() if name != "kind" or not chapter}
    rows = [
        (f"`{field.alias or name}`", describe_type(field), describe_default(field), field.description or "")
        for name, field in fields.items()
    ]
    if rows:
        lines += [format_markdown_table(("setting", "type", "default", ""), rows), ""]
    parents = [
        parent
        for parent in settings_class.__mro__[1:]
        if issubclass(parent, Strict) and parent is not settings_class and _list_own_fields(parent)
    ]
    if parents:
        lines += [f"It also has the settings of {_join_words(map(_format_link, parents), last='and')}.", ""]
    if users := sorted(set(_list_using_settings(settings_class, classes))):
        lines += [f"In {', '.join(users)}.", ""]
    return "\n".join(lines)


def _render_docstring(settings_class: type[BaseModel]) -> list[str]:
    """Returns a settings class's docstring as Markdown lines, each paragraph on one line."""
    paragraphs = (settings_class.__doc__ or "").strip().split("\n\n")
    return [line for text in paragraphs for line in (" ".join(text.split()), "")] if paragraphs != [""] else []


def _list_using_settings(settings_class: type[BaseModel], classes: list[type[BaseModel]]) -> Iterator[str]:
    """Yields the settings fields that hold a settings class, as `grpo.kl`. Classes listed by a chapter get none."""
    for owner in [*classes, *_list_parents(classes)] if _find_chapter(settings_class) is None else ():
        for name, field in _list_own_fields(owner).items():
            if settings_class in _walk_annotation(field.annotation):
                yield f"`{name}` of {_format_link(owner)}"


def _walk_annotation(annotation: Any) -> Iterator[Any]:
    """Yields a type annotation and all type annotations nested inside it."""
    yield annotation
    for argument in get_args(annotation):
        yield from _walk_annotation(argument)


def describe_type(field: FieldInfo) -> str:
    """Describes the type of a settings field in words, with its numeric bounds."""
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in _CONSTRAINTS.items()
        if getattr(bound, name, None) is not None
    ]
    words = _describe_annotation(field.annotation)
    is_optional = words.endswith(" or null")
    return " ".join([words.removesuffix(" or null"), *bounds]) + (" or null" if is_optional else "")


def _describe_annotation(annotation: Any) -> str:
    """Describes a type annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_annotation(arguments[0])
    if origin is Literal:
        return _join_words(f"`{_to_yaml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return _describe_union(arguments)
    if origin is list:
        return f"list: {_describe_annotation(arguments[0])}"
    if origin is dict:
        return f"mapping, name: {_describe_annotation(arguments[1])}"
    if annotation in _PLAIN_TYPES:
        return _PLAIN_TYPES[annotation]
    if issubclass(annotation, Ref):
        return f"a stage that makes {annotation.product}" if annotation.product == "data" else f"a {annotation.product}"
    if issubclass(annotation, OutsideFile):
        return "path"
    return _format_link(annotation)


def _describe_union(members: tuple[Any, ...]) -> str:
    """Describes the member types of a union in words. All kinds of a chapter become one link to it."""
    plain = [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]
    for chapter, settings_classes in CHAPTERS.items():
        if set(settings_classes) <= set(plain):
            others = [_describe_annotation(member) for member in plain if member not in settings_classes]
            return _join_words([f"[a {chapter.lower()}](#{chapter.lower()}s)", *others])
    return _join_words(_describe_annotation(member) for member in plain)


def describe_default(field: FieldInfo) -> str:
    """Returns the default of a settings field as YAML, or that the field is required."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) and default == type(default).model_construct():
        return "its defaults"
    plain = to_plain_value(default, ref=str, file=str, fields=_list_changed_fields)
    return f"`{_to_yaml(plain)}`"


def _list_changed_fields(settings: BaseModel) -> list[tuple[str, Any]]:
    """Returns (name, value) of the settings fields that are not at their default, and of the first field.

    The first field is often the kind.
    """
    fields = type(settings).model_fields
    return [
        (name, value)
        for position, (name, value) in enumerate(list_fields(settings))
        if position == 0 or value != fields[name].get_default(call_default_factory=True)
    ]


def _to_yaml(value: Any) -> str:
    """Formats a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _format_link(settings_class: type[BaseModel]) -> str:
    """Formats a Markdown link to the reference section of a settings class."""
    chapter = _find_chapter(settings_class)
    if chapter:
        return f"[{get_kind(settings_class)}](#{chapter.lower()}-{get_kind(settings_class)})"
    return f"[{_get_class_name(settings_class)}](#{_get_class_name(settings_class).lower()})"


def _get_class_name(settings_class: type[BaseModel]) -> str:
    """Returns the name of a settings class without a leading underscore."""
    return settings_class.__name__.removeprefix("_")


def _join_words(words: Iterable[str], last: str = "or") -> str:
    """Joins words with commas, with `last` before the last word. Each word appears once."""
    *first, end = list(dict.fromkeys(words))
    return f"{', '.join(first)} {last} {end}" if first else end


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_reference(), encoding="utf-8")
