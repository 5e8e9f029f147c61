"""Settings of `build_data`: one builder, one sieve."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.data_builders import BuilderSettings
from qwen_align.data_builders.conversion import Conversion
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Sieve


class BuildData(StageSettings, CanBeEmpty):
    """Rows from a builder, through the sieve, into a data folder."""

    kind: Literal["build_data"]
    builder: BuilderSettings
    sieve: Sieve = Sieve()
    licences: dict[str, str] = Field(default_factory=dict, description="a source's licence, for the data card")
    limit: int | None = Field(None, ge=1, description="stop after this many kept rows")

    def missing_file(self) -> str | None:
        """Returns the file of rows that is not there yet, though the recipe says how many rows it will have."""
        builder = self.builder
        is_missing = isinstance(builder, LocalFile) and builder.expect_rows and not Path(builder.path).exists()
        return str(builder.path) if isinstance(builder, LocalFile) and is_missing else None

    def expected_rows(self) -> int | None:
        """Returns how many rows the stage will make at most, where the recipe says so."""
        expected = self.builder.expect_rows if isinstance(self.builder, Conversion) else None
        return expected if expected is None or self.limit is None else min(expected, self.limit)
