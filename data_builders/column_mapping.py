"""Rows of a kind from any mapping: our fields by their own names, or by those that `columns` says."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_align.align.rows import Chat, Labelled, Pair, Problem, Row, Text, Trace
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.format_definition import Target, Values
from qwen_align.data_builders.message_conversion import reply, tools, turns, with_system
from qwen_align.data_builders.preference_formats import label, number
from qwen_align.data_builders.problem_formats import gold_after


class Fields(NamedTuple):
    """What a row of one kind is read from; one of `needed` must be there in full."""

    needed: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*(field for way in self.needed for field in way), *self.optional, "id"]))


FIELDS = {
    "problem": Fields((("prompt", "gold"),), ("system",)),
    "trace": Fields((("prompt", "thinking", "answer"),), ("gold", "system")),
    "chat": Fields((("messages",), ("prompt", "answer")), ("system", "tools")),
    "pair": Fields((("prompt", "chosen", "rejected"),), ("margin", "system")),
    "labelled": Fields((("prompt", "completion", "label"),), ("system",)),
    "text": Fields((("text",),), ("language",)),
}


def mapped(values: Values, columns: Mapping[str, str], mark: str | None, target: Target) -> Row:
    """A row of the target's kind; with `mark` the gold is what follows its last occurrence.

    Raises BadValue for a field that is missing or of a wrong form.
    """
    found = _fields(values, columns, target.kind)
    if target.kind == "text":
        if target.meta:
            raise BadValue("no meta", "keep_columns: text rows have no meta to keep them in; leave it out")
        return Text(id=target.id, source=target.source, **found)
    asked = "messages" if "messages" in found else "prompt"
    messages = with_system(found.get("system"), turns(found[asked], asked, target.seen))
    if target.kind == "chat":
        answer = [] if asked == "messages" else [reply(found["answer"], "answer", target.seen)]
        return Chat(**target.shared, messages=[*messages, *answer], tools=tools(found.get("tools")))
    if target.kind == "pair":
        chosen, rejected = (reply(found[side], side, target.seen) for side in ("chosen", "rejected"))
        margin = number(found["margin"], "margin") if "margin" in found else None
        return Pair(**target.shared, messages=messages, chosen=chosen, rejected=rejected, margin=margin)
    if target.kind == "labelled":
        completion = reply(found["completion"], "completion", target.seen)
        return Labelled(**target.shared, messages=messages, completion=completion, label=label(found["label"], "label"))
    gold = found.get("gold")
    if mark is not None and gold is not None:
        gold = gold_after(gold, mark)
    judged: dict[str, Any] = {"gold": gold, "reward": target.reward or "math_answer"}
    if target.kind == "problem":
        return Problem(**target.shared, messages=messages, **judged)
    return Trace(**target.shared, messages=messages, thinking=found["thinking"], answer=found["answer"], **judged)


def _fields(values: Values, columns: Mapping[str, str], kind: str) -> dict[str, Any]:
    """Our fields that are there, after checking that they make a row."""
    fields = FIELDS[kind]
    keys = {field: columns.get(field, field) for field in fields.all if field != "id"}
    found = {field: values[key] for field, key in keys.items() if values.get(key) is not None}
    if not any(found.keys() >= set(way) for way in fields.needed):
        missing = next(keys[field] for way in reversed(fields.needed) for field in way if field not in found)
        ways = ", or ".join(" and ".join(way) for way in fields.needed)
        raise BadValue(
            "missing field",
            f"'{missing}' is missing; a {kind} row has {ways}; the row's keys: "
            f"{', '.join(map(str, values)) or 'none'}. If the file names it otherwise, say so in columns",
        )
    return found
