"""Rows from a file of the user's own: our typed rows, or any JSON objects with a mapping of their keys."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from qwen_align.align.references import OutsideFile
from qwen_align.align.rows import Chat, Message, Mode, Pair, Problem, Row, RowError, Text, Trace, first_error, parse_row
from qwen_align.align.strict import Strict, did_you_mean
from qwen_align.data_builders.json_file import SUFFIXES, read_values
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.settings import RewardName

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


class Fields(NamedTuple):
    """What a row of one kind is read from; one of `needed` must be there in full."""

    needed: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*(field for way in self.needed for field in way), *self.optional, "id"]))


FIELDS = {
    "problem": Fields((("prompt", "gold"),)),
    "trace": Fields((("prompt", "thinking", "answer"),), ("gold",)),
    "chat": Fields((("messages",), ("prompt", "answer"))),
    "pair": Fields((("prompt", "chosen", "rejected"),)),
    "text": Fields((("text",),), ("language",)),
}


class LocalFile(Strict):
    """A JSON Lines file or a JSON list, packed with gzip or not.

    `rows: typed` reads our own `rows.jsonl`. The others read JSON objects whose keys `columns` maps: `prompt` is a
    text (one user turn) or a list of turns, `chosen` and `rejected` are texts or single turns, turns have role and
    content, or ShareGPT's from and value. With `gold_after` the gold is what follows the mark's last occurrence:
    `"####"` for GSM8K. Keys that no field names are left alone. A row without an id is called after the file and
    its place in it.
    """

    kind: Literal["local_file"] = "local_file"
    path: OutsideFile
    rows: Literal["typed", "problem", "trace", "chat", "pair", "text"]
    columns: dict[str, str] = Field(default_factory=dict, description="our field: the file's key, where they differ")
    gold_after: str | None = Field(default=None, min_length=1)
    reward: RewardName = Field(default="math_answer", description="the reward that judges against the gold")
    mode: Mode | None = None
    source: str = ""

    @model_validator(mode="after")
    def _check_columns(self) -> "LocalFile":
        if not self.path.endswith(SUFFIXES):
            raise ValueError(f"path: {self.path}: is none of {', '.join(SUFFIXES)}; convert the file")
        if self.rows == "typed":
            said = sorted({"columns", "gold_after", "reward", "mode", "source"} & self.model_fields_set)
            if said:
                raise ValueError(f"{', '.join(said)}: typed rows say everything themselves; leave it out")
            return self
        known = FIELDS[self.rows].all
        for field in self.columns:
            if field not in known:
                raise ValueError(f"columns: '{field}' is no field of a {self.rows} row{did_you_mean(field, known)}")
        if self.gold_after is not None and "gold" not in known:
            raise ValueError(f"gold_after: a {self.rows} row has no gold; leave it out")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """The file's rows in order.

        Raises ValueError if there is no such file, RowError naming file and line for the first row that is wrong.
        """
        path = Path(self.path)
        taken: dict[str, str] = {}
        for number, (where, value) in enumerate(read_values(path), start=1):
            if self.rows == "typed":
                row = parse_row(json.dumps(value), where=where)
            else:
                row = self._row(value, where, new_id=f"{path.name.partition('.')[0]}:{number}")
            if row.id in taken:
                raise RowError(f"{where}: id '{row.id}' is that of {taken[row.id]} too; every row needs its own")
            taken[row.id] = where
            yield row

    def _row(self, value: Any, where: str, *, new_id: str) -> Row:
        if not isinstance(value, dict):
            raise RowError(f"{where}: is {type(value).__name__} {value!r:.40}, not an object with keys")
        found = self._fields(value, where)
        shared: dict[str, Any] = {"id": str(found.pop("id", new_id))}
        if self.rows != "text":
            shared["source"] = self.source
            if self.mode is not None:
                shared["mode"] = self.mode
        try:
            return self._typed(found, shared)
        except ValidationError as error:
            raise RowError(f"{where}: {first_error(error)}") from None
        except _FieldError as error:
            raise RowError(f"{where}: {error}") from None

    def _fields(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        """Our fields that are there, after checking that they make a row."""
        fields = FIELDS[self.rows]
        keys = {field: self.columns.get(field, field) for field in fields.all}
        found = {field: value[key] for field, key in keys.items() if value.get(key) is not None}
        if not any(found.keys() >= set(way) for way in fields.needed):
            missing = next(keys[field] for way in reversed(fields.needed) for field in way if field not in found)
            ways = ", or ".join(" and ".join(way) for way in fields.needed)
            raise RowError(
                f"{where}: '{missing}' is missing; a {self.rows} row has {ways}; the row's keys: "
                f"{', '.join(map(str, value)) or 'none'}. If the file names it otherwise, say so in columns"
            )
        return found

    def _typed(self, found: dict[str, Any], shared: dict[str, Any]) -> Row:
        if self.rows == "text":
            return Text(**shared, **found)
        if self.rows == "chat" and "messages" in found:
            return Chat(**shared, messages=_turns(found["messages"], "messages"))
        messages = _turns(found["prompt"], "prompt")
        if self.rows == "chat":
            return Chat(**shared, messages=[*messages, _reply(found["answer"], "answer")])
        if self.rows == "pair":
            chosen, rejected = (_reply(found[side], side) for side in ("chosen", "rejected"))
            return Pair(**shared, messages=messages, chosen=chosen, rejected=rejected)
        judged = {"gold": self._gold(found.get("gold")), "reward": self.reward}
        if self.rows == "problem":
            return Problem(**shared, messages=messages, **judged)
        return Trace(**shared, messages=messages, thinking=found["thinking"], answer=found["answer"], **judged)

    def _gold(self, value: Any) -> Any:
        if self.gold_after is None or value is None:
            return value
        if not isinstance(value, str) or self.gold_after not in value:
            raise _FieldError(f"gold: no '{self.gold_after}' in {value!r:.60}")
        return value.rpartition(self.gold_after)[2].strip()


class _FieldError(ValueError):
    """What is wrong with a row; whoever knows the line adds it."""


def _turns(value: Any, field: str) -> list[Message]:
    """A text as one user turn, or a list of turns."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise _FieldError(f"{field}: is {value!r:.60}, neither a text nor a list of turns")
    try:
        return _MESSAGES.validate_python([_ours(turn) for turn in value])
    except ValidationError as error:
        raise _FieldError(f"{field}: {first_error(error)}") from None


def _reply(value: Any, field: str) -> Message:
    """A text, one turn, or a list of one turn, as the assistant's."""
    if isinstance(value, str):
        return Message(role="assistant", content=value)
    turns = _turns(value if isinstance(value, list) else [value], field)
    if len(turns) > 1 or turns[0].role != "assistant":
        raise _FieldError(f"{field}: has roles {', '.join(turn.role for turn in turns)}; one assistant turn is needed")
    return turns[0]


def _ours(turn: Any) -> Any:
    """ShareGPT's from and value as role and content."""
    if isinstance(turn, dict) and turn.keys() == {"from", "value"}:
        return {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    return turn
