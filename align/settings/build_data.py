"""Settings of `build_data`: one builder, one sieve."""

from typing import Literal

from pydantic import Field

from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.data_builders import BuilderSettings
from qwen_align.data_builders.sieve import Sieve


class BuildData(StageSettings, CanBeEmpty):
    """Makes a data set: a builder makes rows, the sieve drops the unusable ones, and the rest is written."""

    kind: Literal["build_data"]
    builder: BuilderSettings = Field(description="what makes the rows: a generator, a file, or other stages' rows")
    sieve: Sieve = Field(Sieve(), description="which rows are kept; every dropped row is counted with its reason")
    licences: dict[str, str] = Field(
        default_factory=dict, description="licence of each source, by the source's name, for the data card"
    )
    limit: int | None = Field(None, ge=1, description="stop after this many kept rows; null = keep all")
