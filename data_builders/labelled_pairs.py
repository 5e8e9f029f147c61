"""Builds preference pairs or single labelled answers from files of solutions marked right or wrong."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.rows import Labelled, Pair, Row, RowError
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.judged_answer_files import (
    Group,
    JudgedFile,
    make_pair_fields,
    read_field,
    read_text_field,
)
from qwen_align.data_builders.pair_matching import NoMatch, record_unpaired
from qwen_align.data_builders.sieve import Drops


class LabelledPairs(JudgedFile):
    """A builder of preference pairs or labelled answers from solutions that are marked right or wrong.

    It prefers right solutions to wrong ones for the same question (`rows: pair`), or labels every solution. A solution
    is an object such as `{"is_correct": true, "solution": "..."}`. `solutions` names the keys that hold one each, as in
    GSM8K's `model_solutions.jsonl`, or a single key that holds a list of them. Labelled rows are for outcome reward
    models and KTO; with `both_sides_only`, as for Qwen2.5-Math's, only of questions that are solved by some and not by
    all.
    """

    kind: Literal["labelled_pairs"] = "labelled_pairs"
    rows: Literal["pair", "labelled"] = Field(description="kind of rows: pairs, or single answers with their labels")
    solutions: list[str] = Field(min_length=1, description="keys of the solutions in the file")
    text: str = Field(default="solution", min_length=1, description="key of a solution's text")
    label: str = Field(default="is_correct", min_length=1, description="key of a solution's label, true or false")
    both_sides_only: bool = Field(
        default=False, description="keep only questions that have right and wrong solutions; rows: labelled only"
    )

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        """Raises ValueError for settings that the chosen kind of rows does not use."""
        if self.rule != "correct_vs_wrong" or {"correct_from", "min_margin"} & self.model_fields_set:
            raise ValueError("rule, correct_from, min_margin: labels are true or false; leave them out")
        idle = {"both_sides_only"} if self.rows == "pair" else {"per_prompt", "max_length_difference"}
        if idle_given := sorted(idle & self.model_fields_set):
            raise ValueError(f"{', '.join(idle_given)}: is nothing for 'rows: {self.rows}'; leave it out")
        return self

    def make_rows(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the preference pairs or labelled answers in the file's order.

        Questions that make no pair and solutions in none are dropped.
        """
        for where, row_id, row in self.read_objects(report, self.rows):
            judged = list(self._read_solutions(row, where))
            group = self.group_answers(row_id, self.make_prompt(row, where), judged)
            for answer_id, reason in group.malformed:
                drops.add("malformed turn", answer_id, reason)
            yield from self._make_pairs(group, drops) if self.rows == "pair" else self._make_labelled_rows(group, drops)

    def _read_solutions(self, row: dict[str, Any], where: str) -> Iterator[tuple[str, str, float]]:
        """Yields each solution of a row as (name, text, label), the label being 0 or 1.

        Raises RowError for other values.
        """
        for key in self.solutions:
            value = read_field(row, key, where)
            named_solutions = [(key, value)] if isinstance(value, dict) else None
            if isinstance(value, list):
                named_solutions = [(f"{key}{index}", solution) for index, solution in enumerate(value)]
            if named_solutions is None or not all(isinstance(solution, dict) for _, solution in named_solutions):
                raise RowError(f"{where}: '{key}' is {value!r:.60}, neither a solution nor a list of them")
            for name, solution in named_solutions:
                label = read_field(solution, self.label, f"{where}: {name}")
                if not isinstance(label, bool):
                    raise RowError(f"{where}: {name}: '{self.label}' is {label!r:.40}, not true or false")
                yield name, read_text_field(solution, self.text, f"{where}: {name}"), float(label)

    def _make_pairs(self, group: Group, drops: Drops) -> Iterator[Row]:
        """Yields the preference pairs of one question, and drops the answers that are in no pair."""
        matches = self.select_matches(group.answers)
        record_unpaired(matches, group.answers, group.id, drops)
        if isinstance(matches, NoMatch):
            return
        for match in matches:
            fields = make_pair_fields(group, match)
            yield Pair(kind=self.label, mode=self.mode, source=self.source, **fields)

    def _make_labelled_rows(self, group: Group, drops: Drops) -> Iterator[Row]:
        """Yields the labelled answers of one question.

        Drops them all with `both_sides_only` if right or wrong ones are missing.
        """
        if self.both_sides_only and len({answer.value for answer in group.answers}) < 2:
            for answer in group.answers:
                drops.add("all right" if answer.value else "all wrong", f"{group.id}#{answer.name}")
            return
        for answer in group.answers:
            yield Labelled(
                id=f"{group.id}#{answer.name}",
                messages=group.messages,
                completion=answer.message,
                label=bool(answer.value),
                mode=self.mode,
                source=self.source,
                meta={"question": group.id},
            )
