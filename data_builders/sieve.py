"""Filters data rows: drops duplicates, benchmark questions, unusable gold answers and malformed thinking."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.rows import Chat, Completion, Labelled, Row, Steps, Text
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.contamination import Benchmark, Contamination, find_contamination, read_benchmarks
from qwen_align.data_builders.near_duplicates import NearDuplicateFinder, NearDuplicates
from qwen_align.data_builders.row_texts import join_part_texts, list_all_texts, list_replies
from qwen_align.data_builders.sieve_checks import (
    MAX_DETAIL_CHARACTERS,
    Fault,
    find_control_token_fault,
    find_empty_fault,
    find_gold_fault,
    find_language_fault,
    find_length_fault,
    find_mode_fault,
    find_thinking_fault,
)
from qwen_align.data_builders.turn_order import find_turn_disorder

Sources = Mapping[str, Callable[[], Iterator[Row]]]
"""A reader of the rows of every stage that a builder's settings refer to, by the stage's name."""


class Drop(NamedTuple):
    """A dropped row's id, with the reason and a detail."""

    reason: str
    id: str
    detail: str


class Drops:
    """A record of all rows that a builder or the row filter dropped, in order."""

    def __init__(self) -> None:
        self.rows: list[Drop] = []

    def add(self, reason: str, row_id: str, detail: str = "") -> None:
        """Records a dropped row with the reason and a detail."""
        self.rows.append(Drop(reason, row_id, detail))

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of dropped rows for each reason, the most frequent first."""
        return dict(Counter(drop.reason for drop in self.rows).most_common())


class Sieve(Strict):
    """Settings of the row filter (sieve): each is a statement that holds for every kept row.

    Of any row that is kept, every user turn and raw text says something, and the sides of a pair differ.
    """

    is_unique: bool = Field(
        default=True, description="drop rows that say the same as an earlier one, white space apart"
    )
    gold_is_usable: bool = Field(
        default=True,
        description="drop rows whose gold does not pass the row's own reward; reward: python is left to the stage that "
        "names its file",
    )
    thinking_is_clean: bool = Field(
        default=True, description="drop rows with thinking tags in texts, or with blank thinking or answers"
    )
    thinking_fits_mode: bool = Field(
        default=True,
        description="drop rows of which an answer contradicts its mode or the last /think or /no_think before it",
    )
    has_no_control_tokens: bool = Field(
        default=True, description="drop rows whose texts hold a token such as <|im_end|>"
    )
    turns_are_in_order: bool = Field(
        default=True,
        description="drop rows unless system comes first, user and assistant in turn, tools' results after calls",
    )
    language: Literal["en", "zh"] | None = Field(
        default=None, description="drop rows unless enough letters are of this language's script; null: any language"
    )
    min_script_share: float = Field(
        default=0.5,  # our choice: names, quotes and units in the other script stay far below it
        ge=0,
        le=1,
        description="smallest share of letters in the language's script; formulas, code and links are left out",
    )
    min_characters: int = Field(
        default=0, ge=0, description="fewest characters of everything a row says, prompt included"
    )
    max_characters: int | None = Field(
        default=None,
        ge=1,
        description="most characters of everything a row says; for tokens see max_tokens; null: no limit",
    )
    contamination: list[Contamination] = Field(
        default_factory=list, description="rules that drop rows which repeat a benchmark's questions"
    )
    near_duplicates: NearDuplicates | None = Field(
        default=None,
        description="drop rows that nearly repeat an earlier one of the same kind and mode; null: keep them",
    )


def sieve(rows: Iterable[Row], settings: Sieve, drops: Drops, sources: Sources | None = None) -> Iterator[Row]:
    """Yields the rows that pass the checks of `settings`, in order, and records the others in `drops`.

    `sources` holds the stages that the settings name as benchmarks. Raises DataError for a row whose reward is unknown.
    """
    benchmarks = read_benchmarks(settings.contamination, sources or {})
    kept_rows = _KeptRows(settings)
    for row in rows:
        fault = _find_row_fault(row, settings) or _find_contamination_fault(row, benchmarks)
        if fault is None:  # last, so that a dropped row does not shadow a good one
            fault = kept_rows.find_duplicate_fault(row)
        if fault is None:
            yield row
        else:
            drops.add(fault.reason, row.id, fault.detail)


class _KeptRows:
    """A record of the rows kept so far, for finding duplicates among later rows."""

    def __init__(self, settings: Sieve) -> None:
        self._same: dict[bytes, str] | None = {} if settings.is_unique else None
        self._near: tuple[NearDuplicates, NearDuplicateFinder] | None = None
        if settings.near_duplicates is not None:
            self._near = settings.near_duplicates, settings.near_duplicates.make_finder()

    def find_duplicate_fault(self, row: Row) -> Fault | None:
        """Returns a fault if a row is a duplicate or near duplicate of a kept row. Without a fault the row is kept."""
        key = _hash_content(row) if self._same is not None else b""
        if self._same is not None and key in self._same:
            return Fault("duplicate", f"of {self._same[key]}")
        if self._near is not None and not isinstance(row, Completion):  # alike answers of a model are no duplicates
            settings, finder = self._near
            near_duplicate = finder.find_or_keep(
                row.id, join_part_texts(row, settings.part), _hash_near_duplicate_group(row)
            )
            if near_duplicate is not None:
                return Fault(
                    "near duplicate", f"of {near_duplicate.id}: {near_duplicate.jaccard:.2f} of the shingles are common"
                )
        if self._same is not None:
            self._same[key] = row.id
        return None


def _hash_near_duplicate_group(row: Row) -> str:
    """Hashes the parts of a row that must be equal for near duplicates.

    They are kind, labels, system messages and tool calls.
    """
    if isinstance(row, Text | Completion):
        return row.row
    system = [turn.content for turn in row.messages if turn.role == "system"]
    calls = [turn.tool_calls for turn in (*row.messages, *list_replies(row)) if turn.tool_calls]
    return hashlib.sha256(repr([row.row, *_list_non_text_fields(row), system, calls]).encode()).hexdigest()


def _list_non_text_fields(row: Row) -> list[object]:
    """Lists the fields of a row that are not texts: mode, flag, tools and labels."""
    if isinstance(row, Steps):
        return [row.labels]
    labels: list[object] = [] if isinstance(row, Text) else [row.mode, row.flag]
    if isinstance(row, Chat):
        labels.append(row.tools)
    return [*labels, row.label] if isinstance(row, Labelled) else labels


def _find_contamination_fault(row: Row, benchmarks: list[Benchmark]) -> Fault | None:
    """Returns a fault if a row repeats a benchmark's question. Returns None if it does not."""
    contaminated = find_contamination(row, benchmarks)
    if contaminated is None:
        return None
    reason, overlap = contaminated
    return Fault(reason, f"{overlap.question}: {overlap.shared}"[:MAX_DETAIL_CHARACTERS])


def _find_row_fault(row: Row, settings: Sieve) -> Fault | None:
    """Returns the first fault in a single row that the settings check for. Returns None if there is none."""
    fault = find_empty_fault(row)
    if fault is None and settings.thinking_is_clean:
        fault = find_thinking_fault(row)
    if fault is None and settings.thinking_fits_mode:
        fault = find_mode_fault(row)
    if fault is None and settings.has_no_control_tokens:
        fault = find_control_token_fault(row)
    if fault is None and settings.turns_are_in_order and (disorder := find_turn_disorder(row)):
        fault = Fault("turns out of order", disorder)
    if fault is None and settings.gold_is_usable:
        fault = find_gold_fault(row)
    if fault is None and (settings.min_characters or settings.max_characters is not None):
        fault = find_length_fault(sum(map(len, list_all_texts(row))), settings.min_characters, settings.max_characters)
    if fault is None and settings.language is not None:
        fault = find_language_fault(row, settings.language, settings.min_script_share)
    return fault


def _hash_content(row: Row) -> bytes:
    """Hashes the contents of a row, ignoring white space.

    The hash is equal for rows of one kind that say the same in the same mode.
    """
    if isinstance(row, Completion):
        return row.id.encode()  # equal answers of a model are no duplicates
    parts: list[object] = [row.row, *(" ".join(text.split()) for text in list_all_texts(row))]
    if not isinstance(row, Text):
        parts += [
            *_list_non_text_fields(row),
            [(turn.role, turn.tool_calls) for turn in (*row.messages, *list_replies(row))],
        ]
    return hashlib.sha256(repr(parts).encode()).digest()
