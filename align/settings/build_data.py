"""Defines the settings of `build_data`: a builder and a sieve, which filters its rows."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Literal

from pydantic import Field

from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.data_builders import BuilderSettings
from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.question_split import Split
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Sieve


class BuildData(StageSettings, CanBeEmpty):
    """Settings of a data stage: a builder makes rows, a sieve drops the unusable ones, and the rest is written."""

    kind: Literal["build_data"]
    builder: BuilderSettings = Field(description="what makes the rows: a generator, a file, or other stages' rows")
    sieve: Sieve = Field(Sieve(), description="which rows are kept; every dropped row is counted with its reason")
    licences: dict[str, str] = Field(
        default_factory=dict, description="licence of each source, by the source's name, for the data card"
    )
    limit: int | None = Field(None, ge=1, description="stop after this many kept rows; null = keep all")

    def find_missing_file(self) -> str | None:
        """Returns the path of an input row file that does not exist yet but has a known number of rows.

        Returns None if there is none.
        """
        builder = self.builder
        is_missing = isinstance(builder, LocalFile) and builder.expect_rows and not Path(builder.path).exists()
        return str(builder.path) if isinstance(builder, LocalFile) and is_missing else None

    def get_expected_rows(self) -> int | None:
        """Returns the maximum number of rows the stage will make. Returns None where the recipe does not say it."""
        expected = self.builder.expect_rows if isinstance(self.builder, Conversion) else None
        return expected if expected is None or self.limit is None else min(expected, self.limit)

    def count_most_rows(self, count_source: Callable[[str], int | None]) -> int | None:
        found, builder = self.get_expected_rows(), self.builder
        if isinstance(builder, Arithmetic):
            found = builder.n
        if isinstance(builder, Split):
            whole = count_source(str(builder.from_data))
            found = whole and ceil(whole * builder.shares[builder.part] / sum(builder.shares.values()))
        return min((count for count in (found, self.limit) if count is not None), default=None)
