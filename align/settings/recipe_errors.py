"""Explains what is wrong with a recipe's settings: file, stage, field, the value found and what would be right."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.fault_wording import describe_faults, is_wrong_value


def explain_error(error: ValidationError, raw: dict[str, Any], path: Path) -> RecipeError:
    """Converts a pydantic validation error to a RecipeError that says where in the recipe file what is wrong."""
    messages = [f"{path}: {said}" for said in _explain_details(error.errors(include_url=False), raw)]
    more = f"\n... and {len(messages) - 5} more" if len(messages) > 5 else ""
    return RecipeError("\n".join(messages[:5]) + more)


def _explain_details(details: Sequence[Mapping[str, Any]], raw: Any) -> list[str]:
    """Returns where each fault is and what it is.

    Of a setting that may be one thing or another, pydantic reports what each of them would have wanted: that is one
    fault, and where the value fits one of them but for something inside it, that alone is told.
    """
    places: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for detail in details:
        places.setdefault(_drop_member_names(detail, raw), []).append(detail)
    return [
        f"{_describe_place(place, raw)}{describe_faults(faults)}"
        for place, faults in places.items()
        if not (all(map(is_wrong_value, faults)) and _has_inner_place(place, places))
    ]


def _has_inner_place(place: tuple[str | int, ...], places: Iterable[tuple[str | int, ...]]) -> bool:
    """Returns whether one of the places lies inside the given one."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _drop_member_names(detail: Mapping[str, Any], raw: Any) -> tuple[str | int, ...]:
    """Returns the path of a fault in the settings as they are written, without pydantic's names for union members."""
    path: list[str | int] = []
    value = raw
    for depth, part in enumerate(detail["loc"], start=1):
        is_absent = detail["type"] == "missing" and depth == len(detail["loc"])
        if is_absent:
            path.append(part)
        elif _has_item(value, part):
            path.append(part)
            value = value[part]
    return tuple(path)


def _describe_place(path: Sequence[str | int], raw: Any) -> str:
    """Returns stage and field of a path in the settings as the beginning of a message."""
    where, field = "", ""
    value = raw
    for part in path:
        value = value[part] if _has_item(value, part) else None
        field += f"[{part}]" if isinstance(part, int) else f".{part}"
        if field in (f".stages[{part}]", f".repeat.stages[{part}]"):
            name = value.get("name") if isinstance(value, dict) else None
            where, field = f"stage '{name}': " if name else f"{where}{field[1:]}: ", ""
    return f"{where}{field[1:] + ': ' if field else ''}"


def _has_item(value: Any, part: Any) -> bool:
    """Returns whether a mapping has a key or a list has an index."""
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)
