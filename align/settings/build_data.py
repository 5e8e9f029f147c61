"""Settings of `build_data`: one builder, one sieve."""

from typing import Literal

from pydantic import Field

from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.data_builders import BuilderSettings
from qwen_align.data_builders.sieve import Sieve


class BuildData(StageSettings, CanBeEmpty):
    """Rows from a builder, through the sieve, into a data folder."""

    kind: Literal["build_data"]
    builder: BuilderSettings
    sieve: Sieve = Sieve()
    licences: dict[str, str] = Field(default_factory=dict, description="a source's licence, for the data card")
    limit: int | None = Field(None, ge=1, description="stop after this many kept rows")
