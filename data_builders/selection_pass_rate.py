"""Selects prompts by difficulty: those that a model solves neither too often nor too seldom."""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Row
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.selection_inputs import Attempts, Tries, add_note_to_meta, read_selectable_rows
from qwen_align.data_builders.sieve import Drops, Sources


class Band(Strict):
    """Bounds of a prompt's difficulty: on the count of correct answers and on the mean reward.

    The former are inclusive, the latter exclusive. All that are given have to hold.
    """

    min_correct: int | None = Field(default=None, ge=0, description="fewest correct answers, inclusive")
    max_correct: int | None = Field(default=None, ge=0, description="most correct answers, inclusive")
    above: float | None = Field(default=None, description="bound that the mean reward must be above")
    below: float | None = Field(default=None, description="bound that the mean reward must be below")
    samples: int | None = Field(default=None, ge=1, description="number of judged answers that a prompt must have")

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        """Raises ValueError if no bound is given or the bounds cannot be met."""
        if self.min_correct is None and self.max_correct is None and self.above is None and self.below is None:
            raise ValueError("a band needs a bound: min_correct, max_correct, above or below")
        if self.min_correct is not None and self.max_correct is not None and self.min_correct > self.max_correct:
            raise ValueError(f"min_correct {self.min_correct} is above max_correct {self.max_correct}")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"no mean reward is above {self.above} and below {self.below}")
        bounds = [bound for bound in (self.min_correct, self.max_correct) if bound is not None]
        if self.samples is not None and bounds and max(bounds) > self.samples:
            raise ValueError(f"{max(bounds)} correct answers of {self.samples}: there are never so many")
        return self

    def find_fault(self, tries: Tries) -> str | None:
        """Returns the reason why a prompt's counts of attempts are outside the band of difficulty.

        Returns None if they are inside.
        """
        if self.samples is not None and tries.n_judged != self.samples:
            return f"not {self.samples} judged answers"
        if self.min_correct is not None and tries.n_correct < self.min_correct:
            return "too hard"
        if self.max_correct is not None and tries.n_correct > self.max_correct:
            return "too easy"
        if self.above is not None and tries.mean <= self.above:
            return "too hard"
        if self.below is not None and tries.mean >= self.below:
            return "too easy"
        return None


BandName = Literal["open_r1", "qwen2_5_math", "limo"]
BANDS: dict[BandName, Band] = {
    "open_r1": Band(above=0.1, below=0.9),  # open-r1, scripts/pass_rate_filtering/compute_pass_rate.py
    "qwen2_5_math": Band(min_correct=2, max_correct=5, samples=8),  # its GRPO queries, arXiv:2409.12122
    "limo": Band(min_correct=1, max_correct=3, samples=32),  # LIMO's pool, arXiv:2502.03387v3
}


def resolve_band(band: Band | BandName) -> Band:
    """Returns the published band of difficulty for a name, or a given band unchanged."""
    return band if isinstance(band, Band) else BANDS[band]


class PassRate(Strict):
    """A builder that keeps the rows whose prompts a model solves as often as `band` says, in order.

    What it counted stands in the row's meta under `note_as`; two filters by two models need two names.
    """

    kind: Literal["pass_rate"] = "pass_rate"
    from_data: DataRef = Field(description="data stage whose rows are filtered")
    attempts: Attempts = Field(description="where a model's attempts at the prompts are")
    band: Band | BandName = Field(description="a published band by its name, or bounds")
    note_as: str = Field(default="pass_rate", min_length=1, description="key of meta that the counts are noted under")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the rows inside the band of difficulty.

        The others are dropped as too hard, too easy or without attempts.
        """
        tries_of, band = self.attempts.make_reader(sources), resolve_band(self.band)
        for row in read_selectable_rows(sources, self.from_data):
            tries = tries_of(row)
            if tries is None:
                drops.add("no judged answer", row.id, f"in {self.attempts.location}")
                continue
            fault = band.find_fault(tries)
            if fault is None:
                yield add_note_to_meta(row, self.note_as, tries._asdict())
            else:
                drops.add(fault, row.id, tries.description)
