"""Mixes the data rows of several stages in a given ratio, under row limits, evenly interleaved."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, RowError, Text
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.seeded_draws import shuffle_by_name
from qwen_align.data_builders.sieve import Drops, Sources


class Ingredient(Strict):
    """The settings of one source of a mixture: its stage, its weight and its limits."""

    from_data: DataRef = Field(description="data stage whose rows are mixed in")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="weight of the source against the others'; null: all it has, or its part of rows",
    )
    max_rows: int | None = Field(default=None, ge=1, description="most rows of the source; null: no limit")
    times: int = Field(
        default=1, ge=1, description="how often its rows may be used; copies pass the sieve with is_unique: false only"
    )


class Mixture(Strict):
    """A builder that interleaves the rows of several sources, so that any stretch has the ratio of the whole.

    With weights the mixture is the largest that has their ratio (to the row), of at most `rows` rows: no source is
    used more than `times` over. Without, every source gives all it has, or its part of `rows`. What is used
    of a source is drawn by the seed and the rows' ids, and comes in that order; with `shuffle: false` its first
    rows are used, in their order.
    """

    kind: Literal["mixture"] = "mixture"
    sources: list[Ingredient] = Field(min_length=1, description="sources to mix")
    rows: int | None = Field(default=None, ge=1, description="number of rows in all; an error if there are fewer")
    shuffle: bool = Field(
        default=True,
        description="draw rows of each source in an order by the seed; false: use its first rows in their order",
    )
    prefix_ids: bool = Field(default=False, description="call rows 'stage:id', for sources with equal ids")
    note_as: str | None = Field(
        default="mixture", min_length=1, description="key of meta that names a row's source; null: not noted"
    )

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        """Raises ValueError if a source is named twice, or if only some of the sources have weights."""
        names = [ingredient.from_data for ingredient in self.sources]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"sources: '{repeated[0]}' is named twice; give it one weight, or use its rows `times` over"
            )
        with_weight = [ingredient.from_data for ingredient in self.sources if ingredient.weight is not None]
        if with_weight and len(with_weight) < len(names):
            without = next(name for name in names if name not in with_weight)
            raise ValueError(f"sources: '{without}' has no weight; give one to every source, or to none")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the mixed rows, the same for the same sources, settings and seed."""
        ordered_sources = [self._read_source(sources, index, seed, drops) for index in range(len(self.sources))]
        counts = self._compute_source_counts([len(source.rows) for source in ordered_sources])
        stage_of_id: dict[str, str] = {}
        for source, count in zip(ordered_sources, counts, strict=True):
            for row in source.rows[max(count, 0) : source.n_first]:
                drops.add(f"over the share of '{source.stage}'", row.id)
        for index, number in interleave_evenly(counts):
            row = self._rename_row(ordered_sources[index], number)
            if row.id in stage_of_id:
                stages = f"stage '{stage_of_id[row.id]}' and stage '{ordered_sources[index].stage}'"
                raise RowError(f"id '{row.id}' is in {stages}; rows need ids of their own: set prefix_ids: true")
            stage_of_id[row.id] = ordered_sources[index].stage
            yield row

    def _read_source(self, sources: Sources, source_index: int, seed: int, drops: Drops) -> "_OrderedSource":
        """Reads the rows of one source in the order of use, repeated as often as the settings allow."""
        settings = self.sources[source_index]
        rows = list(sources[settings.from_data]())
        if not rows:
            raise DataError(f"mixture: stage '{settings.from_data}' has no row; leave it out, or see what it dropped")
        n_first, n_rows = len(rows), len(rows) * settings.times
        rounds = [self._order_rows(rows, seed, source_index, round_) for round_ in range(settings.times)]
        ordered = [row for round_rows in rounds for row in round_rows]
        if settings.max_rows is not None and settings.max_rows < n_rows:
            for row in ordered[settings.max_rows : n_first]:
                drops.add(f"over max_rows of '{settings.from_data}'", row.id)
            ordered, n_first = ordered[: settings.max_rows], min(n_first, settings.max_rows)
        return _OrderedSource(settings.from_data, ordered, n_first, len(rows))

    def _order_rows(self, rows: Sequence[Row], seed: int, source_index: int, round_: int) -> Sequence[Row]:
        """Returns the rows of a source in their order for one round (one pass over the source)."""
        return (
            shuffle_by_name(rows, (row.id for row in rows), "mixture", seed, source_index, round_)
            if self.shuffle
            else rows
        )

    def _compute_source_counts(self, available: list[int]) -> list[int]:
        """Computes how many rows of each source the mixture uses.

        `available` is the number of rows that each source has.
        """
        given_weights = [ingredient.weight for ingredient in self.sources]
        weights = [
            Fraction(n) if weight is None else Fraction(str(weight))
            for n, weight in zip(available, given_weights, strict=True)
        ]
        max_total = min(n / weight for n, weight in zip(available, weights, strict=True)) * sum(weights)
        total = int(max_total) if self.rows is None else self.rows
        counts = apportion_total(total, weights)
        for ingredient, count, n in zip(self.sources, counts, available, strict=True):
            if count > n:
                raise DataError(
                    f"mixture: {total} rows want {count} of stage '{ingredient.from_data}', which gives {n}; "
                    "lower rows or its weight, raise its times or max_rows"
                )
            if count == 0:
                raise DataError(
                    f"mixture: of {total} rows none falls to stage '{ingredient.from_data}'; raise rows or its weight, "
                    "or bring more rows of the others"
                )
        return counts

    def _rename_row(self, source: "_OrderedSource", number: int) -> Row:
        """Returns a source's row with its id in the mixture, and with the source's name in its meta."""
        row, round_ = source.rows[number], number // source.n_own
        row_id = f"{source.stage}:{row.id}" if self.prefix_ids else row.id
        row_id += f"@{round_ + 1}" if round_ else ""
        changes: dict[str, object] = {}
        if row_id != row.id:
            if isinstance(row, Completion):
                raise RowError(f"completion '{row.id}': is named by its prompt and sample; it cannot be renamed")
            changes["id"] = row_id
        if self.note_as is not None and not isinstance(row, Text):
            if self.note_as in row.meta:
                raise RowError(f"row '{row.id}': meta has '{self.note_as}' already; set note_as to another key or null")
            changes["meta"] = {**row.meta, self.note_as: str(source.stage)}
        return row.model_copy(update=changes)


class _OrderedSource(NamedTuple):
    """The rows of one source of a mixture in their order of use.

    The first `n_first` of them are its `n_own` rows once, as far as capped.
    """

    stage: str
    rows: Sequence[Row]
    n_first: int
    n_own: int


def apportion_total(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Divides a total into whole-number parts in the ratio of the weights.

    They are rounded down; what is left goes to the largest remainders, first to last.
    """
    exact_parts = [total * weight / sum(weights) for weight in weights]
    counts = [int(part) for part in exact_parts]
    by_remainder = sorted(range(len(exact_parts)), key=lambda index: (counts[index] - exact_parts[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def interleave_evenly(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields pairs (source, row number) in an order that spreads each source's rows evenly.

    Sources take turns where they coincide.
    """
    positions = [
        ((2 * number + 1) / (2 * count), source, number)
        for source, count in enumerate(counts)
        for number in range(count)
    ]
    for _, source, number in sorted(positions):
        yield source, number
