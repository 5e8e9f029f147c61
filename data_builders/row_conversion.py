"""Converts the rows of any data source to our own rows, and reports the conversion."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Completion, Message, Mode, Row, Text, format_first_error
from qwen_align.align.settings.base import Strict, format_suggestion
from qwen_align.data_builders.bad_row_errors import BadRow, BadValue, shorten_repr
from qwen_align.data_builders.column_mapping import FIELDS, convert_by_columns
from qwen_align.data_builders.column_meanings import refuse_lost_meaning
from qwen_align.data_builders.conversion_report import ReadValues, Report
from qwen_align.data_builders.format_definition import Kind, RowFormat, Target, read_row_mode
from qwen_align.data_builders.format_recognition import (
    FORMATS,
    N_ROWS_INSPECTED,
    TYPED_FORMAT,
    FormatName,
    recognise_format,
)
from qwen_align.data_builders.repeated_prompts import PROMPTS_CUT, RepeatedPrompt, settle_repeated_prompt
from qwen_align.data_builders.row_texts import list_all_texts
from qwen_align.data_builders.sieve import Drops
from qwen_align.data_builders.source_rows import NumberedRow, RowReader, number_rows, read_row_id, read_turn_texts
from qwen_align.data_builders.thinking_notations import refuse_other_notations
from qwen_align.data_builders.tool_call_texts import read_bare_calls
from qwen_align.data_builders.typed_rows import check_json_value, check_writable_row, parse_typed_row
from qwen_align.reward.settings import RewardName


class Conversion(Strict):
    """Settings of the conversion of a data source's rows to our own row format.

    Without `rows` and `format` the format is recognised by the keys of the first rows; where that is unclear, the error
    lists the candidates. `rows: typed` reads our own `rows.jsonl`. `rows: problem` or another kind alone reads our
    fields: `prompt` is a text (one user turn) or a list of turns, `chosen` and `rejected` are texts or single turns,
    turns have role and content, or ShareGPT's from and value. `columns` names the keys that differ. With `gold_after`
    the gold is what follows the mark's last occurrence. Columns that nothing reads are left out, and reported, unless
    `keep_columns` puts them into `meta`; one that changes what the row means makes a bad row, unless `keep_columns` or
    `ignore_columns` names it. A row without an id is called after the source and its number in it.

    `<think>` blocks and `reasoning_content` of assistants become thinking; a block that is malformed makes a bad row.
    """

    rows: Literal["auto", "typed", "problem", "trace", "chat", "pair", "labelled", "text"] = Field(
        default="auto", description="kind of rows to make; typed: our own rows.jsonl; auto: what the format makes"
    )
    format: Literal["auto"] | FormatName | None = Field(
        default=None,
        description="published format that the source is in; auto: recognised by the keys of its first rows",
    )
    columns: dict[str, str] = Field(default_factory=dict, description="our field: the source's key, where they differ")
    keep_columns: list[str] | Literal["all"] = Field(default_factory=list, description="columns that go into meta")
    ignore_columns: list[str] = Field(
        default_factory=list, description="columns that are left out as if the source did not have them"
    )
    repeated_prompt: RepeatedPrompt = Field(
        default="refuse",
        description="what is done with an answer, or two sides of a pair, that begin with the whole prompt: a bad row; "
        "cut it off; or keep it",
    )
    gold_after: str | None = Field(
        default=None, min_length=1, description="mark in the gold's text; the gold is what follows its last occurrence"
    )
    calculator_marks: Literal["keep", "remove"] = Field(
        default="keep", description="whether GSM8K's <<48/2=24>> stay in solutions"
    )
    reward: RewardName | Literal["python"] = Field(
        default="math_answer",
        description="reward that judges against the gold; python: the one of this kind that a stage names",
    )
    mode: Mode | None = Field(
        default=None,
        description="thinking mode of rows that name none; null: each row's own flags and thinking decide",
    )
    source: str = Field(default="", description="source that the rows name")
    system: str | None = Field(
        default=None, min_length=1, description="system message for rows that bring none; null: none"
    )
    on_bad_row: Literal["fail", "drop"] = Field(
        default="fail", description="fail: end the build with an error; drop: count the row and go on"
    )
    expect_rows: int | None = Field(
        default=None, ge=1, description="number of rows that the source must have, bad ones included; null: any"
    )

    @model_validator(mode="after")
    def _check_conversion(self) -> Self:
        """Raises ValueError if the conversion settings contradict each other or the kind of rows."""
        if self.rows == "typed":
            if problem := self._describe_settings_unused_by_typed():
                raise ValueError(problem)
            return self
        if self.format in (None, "auto") and (self.rows == "auto" or self.format):
            if self.columns:
                raise ValueError("columns: a format is recognised by its own keys; name the format too")
        else:
            self._check_columns()
        used = {*self.columns.values(), *(self.keep_columns if isinstance(self.keep_columns, list) else ())}
        for column in used.intersection(self.ignore_columns):
            raise ValueError(
                f"ignore_columns: '{column}' is named in columns or keep_columns too; name it in one place"
            )
        if "text" in (self.rows, self.format) and (problem := self._describe_settings_unused_by_text()):
            raise ValueError(problem)
        if self.gold_after is not None and (self.format or self.rows not in ("problem", "trace")):
            raise ValueError(f"gold_after: {self._target_description} has no gold to look for it in; leave it out")
        if "calculator_marks" in self.model_fields_set and self.format not in ("auto", "gsm8k"):
            raise ValueError("calculator_marks: is for format: gsm8k; leave it out")
        return self

    def _describe_settings_unused_by_typed(self) -> str:
        """Returns an error message naming the given settings that typed rows do not use.

        It is empty if there are none.
        """
        used_settings = {"rows", "on_bad_row", "expect_rows", *(["format"] if self.rows == "auto" else [])}
        idle_settings = ", ".join(sorted(set(Conversion.model_fields) & self.model_fields_set - used_settings))
        return idle_settings and f"{idle_settings}: typed rows say everything themselves; leave it out"

    def _describe_settings_unused_by_text(self) -> str:
        """Returns an error message naming the given settings that raw text rows do not use.

        It is empty if there are none.
        """
        idle_settings = ", ".join(sorted({"mode", "system"} & self.model_fields_set))
        return idle_settings and f"{idle_settings}: a text is no conversation; leave it out"

    @property
    def _target_description(self) -> str:
        """Returns a description of the rows that are made, for an error message."""
        return f"format {self.format}" if self.format else f"a {self.rows} row"

    @property
    def _id_advice(self) -> str:
        """Returns what to do about an id that is no row's own, for an error message."""
        if self.rows == TYPED_FORMAT:
            return ""
        return f", or none: ignore_columns: [{self.columns.get('id', 'id')}] counts them instead"

    def _check_columns(self) -> None:
        """Raises ValueError if `columns` names no field of the source format or kind of row."""
        if self.format in (None, "auto"):
            known = FIELDS[self.rows].all_names
        else:
            row_format = FORMATS[cast(str, self.format)]
            if self.rows not in ("auto", *row_format.kinds):
                raise ValueError(
                    f"rows: {row_format.name} makes {' or '.join(row_format.kinds)} rows, no {self.rows} rows"
                )
            known = [*row_format.keys, "id"]
        for field_name in self.columns:
            if field_name not in known:
                raise ValueError(
                    f"columns: '{field_name}' is no field of {self._target_description}"
                    f"{format_suggestion(field_name, known)}"
                )

    def convert_rows(self, read: RowReader, source: str, drops: Drops, report: Report) -> Iterator[Row]:
        """Yields the rows of a data source converted to our rows, in order.

        `source` names it in errors; rows without an id are called after its last part, up to the first dot.
        Raises DataError if the format is unclear, a named column is in no row or `expect_rows` is not how many there
        are, RowError, naming the location, for the first row that is wrong unless `on_bad_row` is drop.
        """
        n_bad = 0
        first_bad: BadRow | None = None

        def reject(error: BadRow) -> None:
            nonlocal n_bad, first_bad
            n_bad, first_bad = n_bad + 1, first_bad or error
            if self.on_bad_row == "fail":
                raise error
            # The folder is left out, so that the same data gives the same bytes wherever it is stored.
            drops.add(error.reason, PurePath(error.where).name, str(error).removeprefix(f"{error.where}: "))

        is_as_written = "text" in (self.rows, self.format) or self.rows == TYPED_FORMAT
        numbered = number_rows(read, reject, report)
        rows = numbered if is_as_written else read_turn_texts(numbered, reject, report)
        head = list(islice(rows, N_ROWS_INSPECTED))
        report.source = source
        try:
            convert = self._choose_converter(head, source, report)
        except DataError as error:
            if first_bad is None:
                raise
            raise DataError(f"{error}. Before that {n_bad:,} bad rows were dropped, the first: {first_bad}") from None
        stem = PurePath(source).name.partition(".")[0]
        location_of_id: dict[str, str] = {}
        for number, location, value in chain(head, rows):
            try:
                row = convert(value, f"{stem}:{number}")
                if row.id in location_of_id:
                    where = location_of_id[row.id]
                    message = f"id '{row.id}' is that of {where} too; every row needs its own{self._id_advice}"
                    raise BadValue("duplicate id", message)
            except BadValue as error:
                reject(BadRow(location, error.reason, str(error)))
                continue
            location_of_id[row.id] = PurePath(location).name
            report.n_made[row.row] += 1
            yield row
        n_rows = len(location_of_id) + n_bad
        if self.expect_rows not in (None, n_rows):
            raise DataError(f"{source}: has {n_rows:,} rows, but expect_rows is {self.expect_rows:,}: other data?")
        kept_columns = [] if self.keep_columns == "all" else self.keep_columns
        named = (*self.columns.values(), *kept_columns, *self.ignore_columns)
        never_met = [key for key in named if key not in report.met_keys]
        if never_met and (head or location_of_id):
            raise DataError(
                f"{source}: no row has '{never_met[0]}', which the recipe names"
                f"{format_suggestion(never_met[0], report.met_keys)}"
            )

    def _choose_converter(self, head: list[NumberedRow], source: str, report: Report) -> Callable[[Any, str], Row]:
        """Returns the function that converts a source row to one of our rows, given a new id for it.

        The id is used where the row brings none.
        """
        name: str | None = self.format
        if self.rows == "typed":
            name = TYPED_FORMAT
        elif name == "auto" or (name is None and self.rows == "auto"):
            kind: Kind | None = None if self.rows == "auto" else self.rows
            name = recognise_format([(where, self._omit_ignored(value)) for _, where, value in head], source, kind)
            report.is_recognised = True
            problem = (
                self._describe_settings_unused_by_typed()
                if name == TYPED_FORMAT
                else self._describe_settings_unused_by_text()
                if name == "text"
                else ""
            )
            if problem:
                raise DataError(f"{source}: recognised as {name}: {problem}")
        report.format = name or f"{self.rows} rows by columns"
        if name == TYPED_FORMAT:
            return lambda value, new_id: parse_typed_row(value)
        return lambda value, new_id: self._convert_row(value, new_id, name, report)

    def _convert_row(self, value: Any, new_id: str, name: str | None, report: Report) -> Row:
        """Converts one source row to one of our rows. Raises BadValue if that is not possible."""
        if not isinstance(value, dict):
            raise BadValue("not an object", f"is {type(value).__name__} {shorten_repr(value)}, not an object with keys")
        row_format = None if name is None else FORMATS[name]
        value = self._lift_nested_columns(value, report)
        report.met_keys.update(self._list_ignored_turn_keys(value))
        values = ReadValues(self._omit_ignored(value))
        row_id = read_row_id(values.get(self.columns.get("id", "id")), new_id)
        target = Target(
            id=row_id,
            kind=cast(Kind, self.rows) if row_format is None or self.rows != "auto" else row_format.kinds[0],
            reward=self.reward if "reward" in self.model_fields_set else None,
            mode=read_row_mode(values) or self.mode,
            source=self.source,
            meta=self._collect_meta(self._omit_ignored(value)),
            calculator_marks=self.calculator_marks,
            conversion_counts=report.n_converted,
            named_fields=frozenset(self.columns),
        )
        try:
            if row_format is None:
                row = convert_by_columns(values, self.columns, self.gold_after, target)
            else:
                renamed = self._rename_columns(values)
                row = self._convert_in_format(row_format, renamed, value, target)
                values.read |= {self.columns.get(key, key) for key in renamed.read}
        except ValidationError as error:
            raise BadValue("wrong type", format_first_error(error)) from None
        if self.rows != "auto" and row.row != self.rows:
            raise BadValue("no thinking", f"thinking: is blank, which makes a {row.row} row, no {self.rows} row")
        row = read_bare_calls(self._add_system_message(row), report.n_converted)
        has_text_prompt = isinstance(value.get(self.columns.get("prompt", "prompt")), str)
        settled = settle_repeated_prompt(row, self.repeated_prompt, has_text_prompt=has_text_prompt)
        if settled is not row:
            report.n_converted[PROMPTS_CUT] += 1
        refuse_other_notations(settled, report.n_converted)
        check_writable_row(settled)
        self._leave_out_columns(value, values.read, settled, report)
        return settled

    def _leave_out_columns(self, value: dict[str, Any], read: set[str], row: Row, report: Report) -> None:
        """Counts the columns of a source row that are left out.

        Raises BadValue for one that changes what the row means and that the recipe does not name.
        """
        read = read | {column.partition(".")[0] for column in self.columns.values() if column in value}
        unread = [key for key in value if key not in read or key in self.ignore_columns]
        named_to_keep = self.keep_columns if isinstance(self.keep_columns, list) else []
        unnamed = [key for key in unread if key not in named_to_keep and key not in self.ignore_columns]
        named_fields = [*self.columns, *(["rows"] if self.rows != "auto" else [])]
        refuse_lost_meaning(value, unnamed, row.row, list_all_texts(row), named_fields)
        kept = named_to_keep if self.keep_columns != "all" else value.keys() - set(self.ignore_columns)
        report.n_left_out.update(key for key in unread if key not in kept)
        report.n_left_out.update(self._list_ignored_turn_keys(value))

    def _omit_ignored(self, value: Any) -> Any:
        """Returns a source row without the columns that the recipe ignores, or the keys of turns, as messages.info."""
        if not self.ignore_columns or not isinstance(value, dict):
            return value
        kept = {key: item for key, item in value.items() if key not in self.ignore_columns}
        for column in self._list_ignored_turn_keys(value):
            outer, _, inner = column.partition(".")
            kept[outer] = [_omit_key(turn, inner) for turn in kept[outer]]
        return kept

    def _list_ignored_turn_keys(self, value: dict[str, Any]) -> list[str]:
        """Lists what the recipe ignores inside the turns of a source row, such as messages.info."""
        splits = [(column, *column.partition(".")[::2]) for column in self.ignore_columns if column not in value]
        return [
            column
            for column, outer, inner in splits
            if isinstance(turns := value.get(outer), list)
            and any(isinstance(turn, dict) and inner in turn for turn in turns)
        ]

    def _convert_in_format(
        self, row_format: RowFormat, renamed: ReadValues, value: dict[str, Any], target: Target
    ) -> Row:
        """Converts a source row in a known format. Errors for missing fields name the columns that are absent."""
        try:
            return row_format.convert(renamed, target)
        except BadValue as error:
            absent = [f"'{column}' as {field}" for field, column in self.columns.items() if column not in value]
            if error.reason != "missing field" or not absent:
                raise
            keys = ", ".join(map(str, value)) or "none"
            hint = f"columns names {', '.join(absent)}, which the row does not have; its keys: {keys}"
            raise BadValue(error.reason, f"{error}. But {hint}") from None

    def _add_system_message(self, row: Row) -> Row:
        """Returns a row with the settings' system message before its turns.

        A row that opens with a system message of its own is returned as it is.
        """
        if self.system is None or isinstance(row, Text | Completion) or row.messages[0].role == "system":
            return row
        return row.model_copy(update={"messages": [Message(role="system", content=self.system), *row.messages]})

    def _lift_nested_columns(self, value: dict[str, Any], report: Report) -> dict[str, Any]:
        """Returns a source row with what `columns` names inside its objects, as reward_model.ground_truth, on top."""
        lifted = dict(value)
        for column in self.columns.values():
            item: Any = value
            for key in column.split(".") if column not in value else ():
                item = item.get(key) if isinstance(item, dict) else None
            if column not in value and item is not None:
                lifted[column] = item
                report.met_keys.add(column)
        return lifted

    def _rename_columns(self, values: ReadValues) -> ReadValues:
        """Returns a source row whose columns are renamed to the format's own keys by the setting `columns`."""
        if not self.columns:
            return ReadValues(values)
        renamed_keys = set(self.columns.values())
        renamed = {key: item for key, item in values.items() if key not in renamed_keys and key not in self.columns}
        renamed |= {key: values[column] for key, column in self.columns.items() if column in values}
        return ReadValues(renamed)

    def _collect_meta(self, value: dict[str, Any]) -> dict[str, Any]:
        """Returns the columns of a source row that `keep_columns` puts into meta."""
        keys = list(value) if self.keep_columns == "all" else self.keep_columns
        meta = {key: value[key] for key in keys if value.get(key) is not None}
        check_json_value(meta, "keep_columns")
        return meta


def _omit_key(turn: Any, key: str) -> Any:
    """Returns a turn without one of its keys."""
    return {name: item for name, item in turn.items() if name != key} if isinstance(turn, dict) else turn
