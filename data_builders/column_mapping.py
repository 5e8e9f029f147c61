"""Converts a row with any columns to a data row by a mapping from field names to column names."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_align.align.rows import Chat, Labelled, Pair, Problem, Row, Text, Trace
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.format_definition import Target, Values, parse_label, read_history
from qwen_align.data_builders.message_conversion import (
    convert_reply,
    convert_tool_schemas,
    convert_turns,
    prepend_system_message,
)
from qwen_align.data_builders.preference_formats import parse_number
from qwen_align.data_builders.problem_formats import extract_gold_after
from qwen_align.reward.settings import OWN_REWARD


class Fields(NamedTuple):
    """The names of the fields that a data row of one kind is made of. One group of `needed` must be there in full."""

    needed: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def all_names(self) -> list[str]:
        """Lists the names of all fields that a data row of this kind is read from, the id last."""
        return list(dict.fromkeys([*(field for way in self.needed for field in way), *self.optional, "id"]))


FIELDS = {
    "problem": Fields((("prompt", "gold"),), ("history", "system")),
    "trace": Fields((("prompt", "thinking", "answer"),), ("gold", "history", "system")),
    "chat": Fields((("messages",), ("prompt", "answer")), ("history", "system", "tools")),
    "pair": Fields((("prompt", "chosen", "rejected"),), ("margin", "history", "system")),
    "labelled": Fields((("prompt", "completion", "label"),), ("history", "system")),
    "text": Fields((("text",),), ("language",)),
}


def convert_by_columns(values: Values, columns: Mapping[str, str], gold_mark: str | None, target: Target) -> Row:
    """Converts a source row to a data row of the target's kind by the given column mapping.

    With `gold_mark` the gold is what follows its last occurrence.

    Raises BadValue for a field that is missing or of a wrong form.
    """
    fields = _collect_fields(values, columns, target)
    if target.kind == "text":
        if target.meta:
            raise BadValue("no meta", "keep_columns: text rows have no meta to keep them in; leave it out")
        return Text(id=target.id, source=target.source, **fields)
    prompt_field = "messages" if "messages" in fields else "prompt"
    history = read_history(fields, target)
    if history and not isinstance(fields[prompt_field], str):
        raise BadValue(
            "two values", f"history: goes before a {prompt_field} that is a text; here it is a list of turns"
        )
    turns = convert_turns(fields[prompt_field], prompt_field, target.conversion_counts)
    messages = prepend_system_message(fields.get("system"), [*history, *turns])
    if target.kind == "chat":
        answer = (
            [] if prompt_field == "messages" else [convert_reply(fields["answer"], "answer", target.conversion_counts)]
        )
        return Chat(
            **target.shared_fields, messages=[*messages, *answer], tools=convert_tool_schemas(fields.get("tools"))
        )
    if target.kind == "pair":
        chosen, rejected = (
            convert_reply(fields[side], side, target.conversion_counts) for side in ("chosen", "rejected")
        )
        margin = parse_number(fields["margin"], "margin") if "margin" in fields else None
        return Pair(**target.shared_fields, messages=messages, chosen=chosen, rejected=rejected, margin=margin)
    if target.kind == "labelled":
        completion = convert_reply(fields["completion"], "completion", target.conversion_counts)
        return Labelled(
            **target.shared_fields,
            messages=messages,
            completion=completion,
            label=parse_label(fields["label"], "label"),
        )
    gold = fields.get("gold")
    if gold_mark is not None and gold is not None:
        gold = extract_gold_after(gold, gold_mark)
    gold_fields: dict[str, Any] = {"gold": gold, "reward": target.reward or "math_answer"}
    if target.kind == "problem":
        return Problem(**target.shared_fields, messages=messages, **gold_fields)
    return Trace(
        **target.shared_fields, messages=messages, thinking=fields["thinking"], answer=fields["answer"], **gold_fields
    )


def _collect_fields(values: Values, columns: Mapping[str, str], target: Target) -> dict[str, Any]:
    """Collects the values of the fields that a source row has, by field name.

    Raises BadValue if they do not make a data row.
    """
    kind = target.kind
    known_fields = FIELDS[kind]
    if kind == "problem" and target.reward == OWN_REWARD:
        known_fields = Fields((("prompt",),), ("gold", *known_fields.optional))  # which may need no gold
    keys = {field: columns.get(field, field) for field in known_fields.all_names if field != "id"}
    given_fields = {field: values[key] for field, key in keys.items() if values.get(key) is not None}
    if not any(given_fields.keys() >= set(required_fields) for required_fields in known_fields.needed):
        missing = next(
            keys[field]
            for required_fields in reversed(known_fields.needed)
            for field in required_fields
            if field not in given_fields
        )
        alternatives = ", or ".join(" and ".join(required_fields) for required_fields in known_fields.needed)
        raise BadValue(
            "missing field",
            f"'{missing}' is missing; a {kind} row has {alternatives}; the row's keys: "
            f"{', '.join(map(str, values)) or 'none'}. If the file names it otherwise, say so in columns",
        )
    return given_fields
