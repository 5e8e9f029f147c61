"""A source's rows as ours: the settings that every source shares, and a report of what became of what."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Completion, Message, Mode, Row, Text, format_first_error
from qwen_align.align.settings.base import Strict, did_you_mean
from qwen_align.data_builders.bad_row import BadRow, BadValue, Reject, quoted
from qwen_align.data_builders.conversion_report import ReadValues, Report
from qwen_align.data_builders.formats import FORMATS, LOOKED_AT, TYPED, FormatName, recognise
from qwen_align.data_builders.mapped_columns import FIELDS, mapped
from qwen_align.data_builders.row_format import Kind, RowFormat, Target
from qwen_align.data_builders.sieve import Drops
from qwen_align.data_builders.typed_rows import check_json, check_writable, typed_row
from qwen_align.reward.settings import RewardName

Read = Callable[[Reject], Iterable[tuple[str, Any]]]
"""Reads (place, row) from the start; what cannot be read goes to the function it is given."""
_Numbered = tuple[int, str, Any]


class Conversion(Strict):
    """How a source's rows become ours.

    Without `rows` and `format` the format is recognised by the keys of the first rows; where that is unclear, the error
    lists the candidates. `rows: typed` reads our own `rows.jsonl`. `rows: problem` or another kind alone reads our
    fields: `prompt` is a text (one user turn) or a list of turns, `chosen` and `rejected` are texts or single turns,
    turns have role and content, or ShareGPT's from and value. `columns` names the keys that differ. With `gold_after`
    the gold is what follows the mark's last occurrence. Columns that nothing reads are left out, and reported, unless
    `keep_columns` puts them into `meta`. A row without an id is called after the source and its place in it.

    `<think>` blocks and `reasoning_content` of assistants become thinking; a block that is malformed makes a bad row.
    """

    rows: Literal["auto", "typed", "problem", "trace", "chat", "pair", "labelled", "text"] = "auto"
    format: Literal["auto"] | FormatName | None = Field(default=None, description="what the source is in")
    columns: dict[str, str] = Field(default_factory=dict, description="our field: the file's key, where they differ")
    keep_columns: list[str] | Literal["all"] = Field(default_factory=list, description="columns that go into meta")
    gold_after: str | None = Field(default=None, min_length=1)
    calculator_marks: Literal["keep", "remove"] = Field(default="keep", description="GSM8K's <<48/2=24>> in solutions")
    reward: RewardName | Literal["python"] = Field(
        default="math_answer",
        description="the reward that judges against the gold; python: the one of this kind that a stage names",
    )
    mode: Mode | None = None
    source: str = ""
    system: str | None = Field(default=None, min_length=1, description="a system message for rows that bring none")
    on_bad_row: Literal["fail", "drop"] = Field(default="fail", description="drop: count it and go on")
    expect_rows: int | None = Field(default=None, ge=1, description="how many rows, bad ones too, the source has")

    @model_validator(mode="after")
    def _check_conversion(self) -> Self:
        if self.rows == "typed":
            if said := self._idle_for_typed():
                raise ValueError(said)
            return self
        if self.format in (None, "auto") and (self.rows == "auto" or self.format):
            if self.columns:
                raise ValueError("columns: a format is recognised by its own keys; name the format too")
        else:
            self._check_columns()
        if "text" in (self.rows, self.format) and (said := self._idle_for_text()):
            raise ValueError(said)
        if self.gold_after is not None and (self.format or self.rows not in ("problem", "trace")):
            raise ValueError(f"gold_after: {self._what} has no gold to look for it in; leave it out")
        if "calculator_marks" in self.model_fields_set and self.format not in ("auto", "gsm8k"):
            raise ValueError("calculator_marks: is for format: gsm8k; leave it out")
        return self

    def _idle_for_typed(self) -> str:
        read = {"rows", "on_bad_row", "expect_rows", *(["format"] if self.rows == "auto" else [])}
        said = ", ".join(sorted(set(Conversion.model_fields) & self.model_fields_set - read))
        return said and f"{said}: typed rows say everything themselves; leave it out"

    def _idle_for_text(self) -> str:
        said = ", ".join(sorted({"mode", "system"} & self.model_fields_set))
        return said and f"{said}: a text is no conversation; leave it out"

    @property
    def _what(self) -> str:
        return f"format {self.format}" if self.format else f"a {self.rows} row"

    def _check_columns(self) -> None:
        if self.format in (None, "auto"):
            known = FIELDS[self.rows].all
        else:
            one = FORMATS[cast(str, self.format)]
            if self.rows not in ("auto", *one.kinds):
                raise ValueError(f"rows: {one.name} makes {' or '.join(one.kinds)} rows, no {self.rows} rows")
            known = [*one.keys, "id"]
        for field_name in self.columns:
            if field_name not in known:
                raise ValueError(
                    f"columns: '{field_name}' is no field of {self._what}{did_you_mean(field_name, known)}"
                )

    def convert(self, read: Read, source: str, drops: Drops, report: Report) -> Iterator[Row]:
        """The rows of a source as ours, in order.

        `source` names it in errors; rows without an id are called after its last part, up to the first dot.
        Raises DataError if the format is unclear, a named column is in no row or `expect_rows` is not how many there
        are, RowError, naming the place, for the first row that is wrong unless `on_bad_row` is drop.
        """
        n_bad = 0
        first_bad: BadRow | None = None

        def reject(error: BadRow) -> None:
            nonlocal n_bad, first_bad
            n_bad, first_bad = n_bad + 1, first_bad or error
            if self.on_bad_row == "fail":
                raise error
            # The folder is left out: the same data gives the same bytes wherever it lies.
            drops.add(error.reason, PurePath(error.where).name, str(error).removeprefix(f"{error.where}: "))

        rows = _numbered(read, reject)
        head = list(islice(rows, LOOKED_AT))
        report.source = source
        try:
            convert = self._converter(head, source, report)
        except DataError as error:
            if first_bad is None:
                raise
            raise DataError(f"{error}. Before that {n_bad:,} bad rows were dropped, the first: {first_bad}") from None
        stem = PurePath(source).name.partition(".")[0]
        taken: dict[str, str] = {}
        met: set[str] = set()
        for number, where, value in chain(head, rows):
            try:
                if isinstance(value, dict):
                    met.update(value)
                row = convert(value, f"{stem}:{number}")
                if row.id in taken:
                    said = f"id '{row.id}' is that of {taken[row.id]} too; every row needs its own"
                    raise BadValue("duplicate id", said)
            except BadValue as error:
                reject(BadRow(where, error.reason, str(error)))
                continue
            taken[row.id] = PurePath(where).name
            report.made[row.row] += 1
            yield row
        n_rows = len(taken) + n_bad
        if self.expect_rows not in (None, n_rows):
            raise DataError(f"{source}: has {n_rows:,} rows, but expect_rows is {self.expect_rows:,}: other data?")
        kept = [] if self.keep_columns == "all" else self.keep_columns
        never = [key for key in (*self.columns.values(), *kept) if key not in met]
        if never and (head or taken):
            raise DataError(f"{source}: no row has '{never[0]}', which the recipe names{did_you_mean(never[0], met)}")

    def _converter(self, head: list[_Numbered], source: str, report: Report) -> Callable[[Any, str], Row]:
        """What makes a row of a value and the id it has where it brings none."""
        name: str | None = self.format
        if self.rows == "typed":
            name = TYPED
        elif name == "auto" or (name is None and self.rows == "auto"):
            kind: Kind | None = None if self.rows == "auto" else self.rows
            name = recognise([(where, value) for _, where, value in head], source, kind)
            report.is_recognised = True
            said = self._idle_for_typed() if name == TYPED else self._idle_for_text() if name == "text" else ""
            if said:
                raise DataError(f"{source}: recognised as {name}: {said}")
        report.format = name or f"{self.rows} rows by columns"
        if name == TYPED:
            return lambda value, new_id: typed_row(value)
        return lambda value, new_id: self._row(value, new_id, name, report)

    def _row(self, value: Any, new_id: str, name: str | None, report: Report) -> Row:
        if not isinstance(value, dict):
            raise BadValue("not an object", f"is {type(value).__name__} {quoted(value)}, not an object with keys")
        one = None if name is None else FORMATS[name]
        values = ReadValues(value)
        id_key = self.columns.get("id", "id")
        row_id = _id(values.get(id_key), new_id)
        target = Target(
            id=row_id,
            kind=cast(Kind, self.rows) if one is None or self.rows != "auto" else one.kinds[0],
            reward=self.reward if "reward" in self.model_fields_set else None,
            mode=self.mode,
            source=self.source,
            meta=self._meta(value),
            calculator_marks=self.calculator_marks,
            seen=report.seen,
        )
        try:
            if one is None:
                row = mapped(values, self.columns, self.gold_after, target)
            else:
                renamed = self._renamed(values)
                row = self._in_format(one, renamed, value, target)
                values.read |= {self.columns.get(key, key) for key in renamed.read}
        except ValidationError as error:
            raise BadValue("wrong type", format_first_error(error)) from None
        row = self._with_system(row)
        check_writable(row)
        kept = self.keep_columns if isinstance(self.keep_columns, list) else value
        report.left_out.update(key for key in value if key not in values.read and key not in kept)
        return row

    def _in_format(self, one: RowFormat, renamed: ReadValues, value: dict[str, Any], target: Target) -> Row:
        try:
            return one.convert(renamed, target)
        except BadValue as error:
            absent = [f"'{theirs}' as {ours}" for ours, theirs in self.columns.items() if theirs not in value]
            if error.reason != "missing field" or not absent:
                raise
            keys = ", ".join(map(str, value)) or "none"
            said = f"columns names {', '.join(absent)}, which the row does not have; its keys: {keys}"
            raise BadValue(error.reason, f"{error}. But {said}") from None

    def _with_system(self, row: Row) -> Row:
        """The row after the settings' system message, if it opens with none of its own."""
        if self.system is None or isinstance(row, Text | Completion) or row.messages[0].role == "system":
            return row
        return row.model_copy(update={"messages": [Message(role="system", content=self.system), *row.messages]})

    def _renamed(self, values: ReadValues) -> ReadValues:
        """The row with the format's own keys for those that `columns` names."""
        if not self.columns:
            return ReadValues(values)
        taken = set(self.columns.values())
        found = {key: item for key, item in values.items() if key not in taken and key not in self.columns}
        found |= {key: values[theirs] for key, theirs in self.columns.items() if theirs in values}
        return ReadValues(found)

    def _meta(self, value: dict[str, Any]) -> dict[str, Any]:
        keys = list(value) if self.keep_columns == "all" else self.keep_columns
        meta = {key: value[key] for key in keys if value.get(key) is not None}
        check_json(meta, "keep_columns")
        return meta


def _numbered(read: Read, reject: Reject) -> Iterator[_Numbered]:
    """The rows with their number, those that cannot be read counted."""
    number = 0

    def counted(error: BadRow) -> None:
        nonlocal number
        number += 1
        reject(error)

    for where, value in read(counted):
        number += 1
        yield number, where, value


def _id(value: Any, new_id: str) -> str:
    if value is None:
        return new_id
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadValue("wrong type", f"id: is {quoted(value)}, neither a text nor a whole number")
    return str(value)
