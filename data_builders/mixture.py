"""Several stages' rows as one: in a ratio, under caps, evenly interleaved."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, RowError, Text
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.seeded_draws import drawn_order
from qwen_align.data_builders.sieve import Drops, Sources


class Ingredient(Strict):
    """One source of a mixture."""

    from_data: DataRef
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="its share against the others'")
    max_rows: int | None = Field(default=None, ge=1)
    times: int = Field(
        default=1, ge=1, description="how often its rows may be used; copies pass the sieve with is_unique: false only"
    )


class Mixture(Strict):
    """Rows of several sources, spread evenly, so that any stretch has the whole's ratio.

    With weights the mixture is the largest that has their ratio (to the row), of at most `rows` rows: no source is
    used more than `times` over. Without, every source gives all it has, or its part of `rows`. What is used
    of a source is drawn by the seed and the rows' ids, and comes in that order; with `shuffle: false` its first
    rows are used, in their order.
    """

    kind: Literal["mixture"] = "mixture"
    sources: list[Ingredient] = Field(min_length=1)
    rows: int | None = Field(default=None, ge=1, description="how many in all; fewer is an error")
    shuffle: bool = True
    prefix_ids: bool = Field(default=False, description="rows are called 'stage:id', for sources with equal ids")
    note_as: str | None = Field(default="mixture", min_length=1, description="key of meta that names the source")

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        names = [one.from_data for one in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sources: '{twice[0]}' is named twice; give it one weight, or use its rows `times` over")
        with_weight = [one.from_data for one in self.sources if one.weight is not None]
        if with_weight and len(with_weight) < len(names):
            without = next(name for name in names if name not in with_weight)
            raise ValueError(f"sources: '{without}' has no weight; give one to every source, or to none")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """The mixed rows; the same for the same sources, settings and seed."""
        found = [self._read(sources, place, seed, drops) for place in range(len(self.sources))]
        counts = self._counts([len(one.rows) for one in found])
        taken: dict[str, str] = {}
        for one, count in zip(found, counts, strict=True):
            for row in one.rows[max(count, 0) : one.n_first]:
                drops.add(f"over the share of '{one.stage}'", row.id)
        for place, number in spread(counts):
            row = self._named(found[place], number)
            if row.id in taken:
                stages = f"stage '{taken[row.id]}' and stage '{found[place].stage}'"
                raise RowError(f"id '{row.id}' is in {stages}; rows need ids of their own: set prefix_ids: true")
            taken[row.id] = found[place].stage
            yield row

    def _read(self, sources: Sources, place: int, seed: int, drops: Drops) -> "_Found":
        """A source's rows in the order of use, repeated as often as they may be."""
        settings = self.sources[place]
        rows = list(sources[settings.from_data]())
        if not rows:
            raise DataError(f"mixture: stage '{settings.from_data}' has no row; leave it out, or see what it dropped")
        n_first, n_rows = len(rows), len(rows) * settings.times
        rounds = [self._order(rows, seed, place, round_) for round_ in range(settings.times)]
        ordered = [row for one in rounds for row in one]
        if settings.max_rows is not None and settings.max_rows < n_rows:
            for row in ordered[settings.max_rows : n_first]:
                drops.add(f"over max_rows of '{settings.from_data}'", row.id)
            ordered, n_first = ordered[: settings.max_rows], min(n_first, settings.max_rows)
        return _Found(settings.from_data, ordered, n_first, len(rows))

    def _order(self, rows: Sequence[Row], seed: int, place: int, round_: int) -> Sequence[Row]:
        return drawn_order(rows, (row.id for row in rows), "mixture", seed, place, round_) if self.shuffle else rows

    def _counts(self, available: list[int]) -> list[int]:
        """How many rows of each source are used."""
        given = [one.weight for one in self.sources]
        weights = [Fraction(n) if one is None else Fraction(str(one)) for n, one in zip(available, given, strict=True)]
        most = min(n / weight for n, weight in zip(available, weights, strict=True)) * sum(weights)
        total = int(most) if self.rows is None else self.rows
        counts = apportion(total, weights)
        for one, count, n in zip(self.sources, counts, available, strict=True):
            if count > n:
                raise DataError(
                    f"mixture: {total} rows want {count} of stage '{one.from_data}', which gives {n}; "
                    "lower rows or its weight, raise its times or max_rows"
                )
            if count == 0:
                raise DataError(
                    f"mixture: of {total} rows none falls to stage '{one.from_data}'; raise rows or its weight, "
                    "or bring more rows of the others"
                )
        return counts

    def _named(self, found: "_Found", number: int) -> Row:
        """The row as the mixture calls it."""
        row, round_ = found.rows[number], number // found.n_own
        row_id = f"{found.stage}:{row.id}" if self.prefix_ids else row.id
        row_id += f"@{round_ + 1}" if round_ else ""
        changes: dict[str, object] = {}
        if row_id != row.id:
            if isinstance(row, Completion):
                raise RowError(f"completion '{row.id}': is named by its prompt and sample; it cannot be renamed")
            changes["id"] = row_id
        if self.note_as is not None and not isinstance(row, Text):
            if self.note_as in row.meta:
                raise RowError(f"row '{row.id}': meta has '{self.note_as}' already; set note_as to another key or null")
            changes["meta"] = {**row.meta, self.note_as: str(found.stage)}
        return row.model_copy(update=changes)


class _Found(NamedTuple):
    """A source's rows in the order of use; the first `n_first` of them are its `n_own` rows once, as far as capped."""

    stage: str
    rows: Sequence[Row]
    n_first: int
    n_own: int


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """`total` in whole parts after the weights: rounded down, what is left to the largest remainders, first to last."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(one) for one in exact]
    by_rest = sorted(range(len(exact)), key=lambda place: (counts[place] - exact[place], place))
    for place in by_rest[: total - sum(counts)]:
        counts[place] += 1
    return counts


def spread(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(source, number) of every row, each source's at equal distances; sources in turn where they coincide."""
    places = [
        ((2 * number + 1) / (2 * count), place, number) for place, count in enumerate(counts) for number in range(count)
    ]
    for _, place, number in sorted(places):
        yield place, number
