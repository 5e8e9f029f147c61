"""Explains what is wrong with a recipe's settings: file, stage, field, the value found and what would be right."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import format_suggestion


def explain_error(error: ValidationError, raw: dict[str, Any], path: Path) -> RecipeError:
    """Converts a pydantic validation error to a RecipeError that says where in the recipe file what is wrong."""
    details = error.errors(include_url=False)
    message = "\n".join(f"{path}: {_explain_detail(detail, raw)}" for detail in details[:5])
    return RecipeError(message + (f"\n... and {len(details) - 5} more" if len(details) > 5 else ""))


def _explain_detail(detail: Mapping[str, Any], raw: dict[str, Any]) -> str:
    """Returns the stage, field and fault of one pydantic validation error as text."""
    where, field = "", ""
    value: Any = raw
    for depth, part in enumerate(detail["loc"], start=1):
        is_absent = detail["type"] == "missing" and depth == len(detail["loc"])
        if not is_absent and not _has_item(value, part):
            continue  # no setting, but pydantic's name for a member of a union
        value = None if is_absent else value[part]
        field += f"[{part}]" if isinstance(part, int) else f".{part}"
        if field in (f".stages[{part}]", f".repeat.stages[{part}]"):
            name = value.get("name") if isinstance(value, dict) else None
            where, field = f"stage '{name}': " if name else f"{where}{field[1:]}: ", ""
    return f"{where}{field[1:] + ': ' if field else ''}{_describe_fault(detail)}"


def _has_item(value: Any, part: Any) -> bool:
    """Returns whether a mapping has a key or a list has an index."""
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _describe_fault(detail: Mapping[str, Any]) -> str:
    """Returns the value found and the value expected of one pydantic validation error as text."""
    if detail["type"] == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", str(detail["ctx"]["expected_tags"]))
        return f"kind '{detail['ctx']['tag']}' is unknown{format_suggestion(str(detail['ctx']['tag']), known)}"
    if detail["type"] == "union_tag_not_found":
        return "'kind' is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("missing", "unknown_key", "value_error"):
        return message
    given = repr(detail["input"])
    return f"{message}; found {given if len(given) < 80 else given[:77] + '...'}"
