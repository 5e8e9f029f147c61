"""Words the faults that pydantic finds in settings and rows: what is wanted, what was found, what to write instead."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

_MAX_FOUND = 80  # characters of a wrong value that are quoted

# What a text must look like, by the pattern that it has to match.
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, _ and -, a letter or digit first",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, _, . and -, a letter or digit first",
    r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$": "letters, digits, _, ., = and -, a letter or digit first",
    r"^[\w.-]+/[\w.-]+$": "OWNER/NAME",
    r"^[A-Za-z_][A-Za-z_0-9]*$": "the name of a Python function",
}
# What is wanted, by pydantic's kind of fault; {} are the numbers that pydantic says.
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping (name: value)",
    "mapping_type": "a mapping (name: value)",
    "model_attributes_type": "a group of settings with its kind, {{kind: ...}}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_long": "at most {max_length} characters long",
    "multiple_of": "a multiple of {multiple_of}",
}

# Words elsewhere for a value here, of which the nearest in spelling would be another.
_SAME_WORDS = {"gpu": "cuda", "bfloat16": "bf16", "float32": "fp32"}


def describe_faults(details: Iterable[Mapping[str, Any]]) -> str:
    """Describes the faults that pydantic found in one place: several where a setting may be one thing or another."""
    details = list(details)
    wanted = [text for detail in details if (text := _describe_wanted(detail)) is not None]
    if len(wanted) < len(details):
        return "; ".join(dict.fromkeys(_describe_message(one) for one in details if _describe_wanted(one) is None))
    found = details[0]["input"]
    hints = dict.fromkeys(filter(None, (_suggest(detail) for detail in details)))
    return f"must be {', or '.join(dict.fromkeys(wanted))}; found {shorten(found)}{''.join(hints)}"


def describe_error(error: ValidationError, *, n_outer: int = 0) -> str:
    """Describes all faults of settings that stand in no recipe file, each with its field, on one line.

    `n_outer`: how many parts at the beginning of each place are pydantic's own, such as the name of a union's member.
    """
    places: dict[str, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        places.setdefault(".".join(map(str, detail["loc"][n_outer:])), []).append(detail)
    return "; ".join(f"{place}{': ' if place else ''}{describe_faults(faults)}" for place, faults in places.items())


def is_wrong_value(detail: Mapping[str, Any]) -> bool:
    """Returns whether a fault is a value of a wrong type or size, not something missing, unknown or contradictory."""
    return _describe_wanted(detail) is not None


def shorten(value: Any) -> str:
    """Returns a value as text, cut to what a message can quote."""
    given = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # as YAML has them
    return given if len(given) < _MAX_FOUND else given[: _MAX_FOUND - 3] + "..."


def find_near_word(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word nearest to a misspelt one. Returns None if none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def _describe_wanted(detail: Mapping[str, Any]) -> str | None:
    """Returns what a setting must be, as text after `must be`. Returns None for a fault that has a message instead."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind].format(**{name: _format_bound(value) for name, value in context.items()})
    if kind == "not_settings":
        return str(context["wanted"])
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"a text of the form {context['pattern']}")
    if kind == "string_too_short":
        least = context["min_length"]
        return "a text, not an empty one" if least == 1 else f"at least {least} characters long"
    if kind in ("too_short", "too_long"):
        bound = context["min_length" if kind == "too_short" else "max_length"]
        return f"{_name_collection(detail['input'])} of at {'least' if kind == 'too_short' else 'most'} {bound}"
    return None


def _format_bound(bound: Any) -> Any:
    """Returns a whole number without its decimal point, and anything else as it is."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _name_collection(value: Any) -> str:
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _describe_message(detail: Mapping[str, Any]) -> str:
    """Returns the message of a fault that is no wrong value: a setting that is missing, unknown or does not fit."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "is missing"
    tag = str(context.get("discriminator", "'kind'")).strip("'")
    tag = tag if tag.isidentifier() else "kind"
    if kind == "union_tag_invalid":
        found, known = str(context["tag"]), re.findall(r"'([^']+)'", str(context["expected_tags"]))
        near = find_near_word(found, known)
        return f"{tag} '{found}' is unknown" + (f". Did you mean '{near}'?" if near else f"; known: {', '.join(known)}")
    if kind == "union_tag_not_found":
        if not isinstance(detail["input"], Mapping):
            return f"must be a group of settings with its {tag}, {{{tag}: ...}}; found {shorten(detail['input'])}"
        return f"'{tag}' is missing"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    reworded = re.sub(r"^[A-Z]\w+ should", "must", message)
    return message if reworded == message else f"{reworded}; found {shorten(detail['input'])}"


def _suggest(detail: Mapping[str, Any]) -> str:
    """Returns what to write in place of a wrong value, as text that ends a message, or an empty text."""
    kind, found = detail["type"], detail["input"]
    if kind == "not_settings":
        return str(detail["ctx"]["suggestion"])
    if kind == "list_type" and isinstance(found, str | int | float):
        return f"; write [{found}]"
    if kind == "list_type" and isinstance(found, Mapping) and found:
        return "; begin its entry with a dash, or write [{...}]"
    if kind == "string_type" and isinstance(found, list) and len(found) == 1:
        return f"; write {found[0]}, without brackets"
    if kind == "string_type" and isinstance(found, int | float) and not isinstance(found, bool):
        return f"; write it in quotes, '{found}'"
    if kind == "model_attributes_type" and isinstance(found, str):
        return f"; write {{kind: {found}}} if that is its kind"
    if kind in ("int_type", "float_type") and isinstance(found, str) and _is_number(found):
        return "; write it without quotes"
    if kind == "literal_error" and isinstance(found, str):
        known = re.findall(r"'([^']+)'", str(detail["ctx"]["expected"]))
        same = _SAME_WORDS.get(found.lower())
        near = same if same in known else find_near_word(found, known)
        return f". Did you mean '{near}'?" if near else ""
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
