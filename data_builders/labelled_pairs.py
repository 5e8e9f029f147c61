"""Pairs, or single labelled answers, from files of questions with solutions that are known to be right or wrong."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.rows import Labelled, Pair, Row, RowError
from qwen_align.data_builders.judged_answer_files import Group, JudgedFile, at, pair_fields, text_at
from qwen_align.data_builders.pair_matching import NoMatch, count_unpaired
from qwen_align.data_builders.sieve import Drops, Sources


class LabelledPairs(JudgedFile):
    """Right solutions over wrong ones for the same question (`rows: pair`), or every solution with its label.

    A solution is an object such as `{"is_correct": true, "solution": "..."}`. `solutions` names the keys that hold one
    each, as in GSM8K's `model_solutions.jsonl`, or a single key that holds a list of them. Labelled rows are for
    outcome reward models and KTO; with `both_sides_only`, as for Qwen2.5-Math's, only of questions that are solved by
    some and not by all.
    """

    kind: Literal["labelled_pairs"] = "labelled_pairs"
    rows: Literal["pair", "labelled"]
    solutions: list[str] = Field(min_length=1, description="the file's keys of the solutions")
    text: str = Field(default="solution", min_length=1, description="a solution's key of its text")
    label: str = Field(default="is_correct", min_length=1, description="a solution's key of its label, true or false")
    both_sides_only: bool = False

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.rule != "correct_vs_wrong" or {"correct_from", "min_margin"} & self.model_fields_set:
            raise ValueError("rule, correct_from, min_margin: labels are true or false; leave them out")
        idle = {"both_sides_only"} if self.rows == "pair" else {"per_prompt", "max_length_difference"}
        if said := sorted(idle & self.model_fields_set):
            raise ValueError(f"{', '.join(said)}: is nothing for 'rows: {self.rows}'; leave it out")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Rows in the file's order; questions that make no pair and solutions in none are dropped."""
        for where, row_id, row in self.objects():
            judged = list(self._judged(row, where))
            group = self.group(row_id, self.asked(row, where), judged)
            for answer_id, reason in group.malformed:
                drops.add("malformed turn", answer_id, reason)
            yield from self._pairs(group, drops) if self.rows == "pair" else self._labelled(group, drops)

    def _judged(self, row: dict[str, Any], where: str) -> Iterator[tuple[str, str, float]]:
        for key in self.solutions:
            found = at(row, key, where)
            listed = [(key, found)] if isinstance(found, dict) else None
            if isinstance(found, list):
                listed = [(f"{key}{place}", one) for place, one in enumerate(found)]
            if listed is None or not all(isinstance(one, dict) for _, one in listed):
                raise RowError(f"{where}: '{key}' is {found!r:.60}, neither a solution nor a list of them")
            for name, one in listed:
                label = at(one, self.label, f"{where}: {name}")
                if not isinstance(label, bool):
                    raise RowError(f"{where}: {name}: '{self.label}' is {label!r:.40}, not true or false")
                yield name, text_at(one, self.text, f"{where}: {name}"), float(label)

    def _pairs(self, group: Group, drops: Drops) -> Iterator[Row]:
        found = self.matches(group.answers)
        count_unpaired(found, group.answers, group.id, drops)
        if isinstance(found, NoMatch):
            return
        for match in found:
            fields = pair_fields(group, match)
            yield Pair(kind=self.label, mode=self.mode, source=self.source, **fields)

    def _labelled(self, group: Group, drops: Drops) -> Iterator[Row]:
        if self.both_sides_only and len({one.value for one in group.answers}) < 2:
            for one in group.answers:
                drops.add("all right" if one.value else "all wrong", f"{group.id}#{one.name}")
            return
        for one in group.answers:
            yield Labelled(
                id=f"{group.id}#{one.name}",
                messages=group.messages,
                completion=one.message,
                label=bool(one.value),
                mode=self.mode,
                source=self.source,
                meta={"question": group.id},
            )
