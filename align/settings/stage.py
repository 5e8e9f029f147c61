"""Settings that every stage has."""

from typing import Literal

from pydantic import Field

from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.runtime import Runtime


class StageSettings(Strict):
    """What every kind of stage has besides its own settings."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$",
        max_length=80,
        description="what other stages and the command line call this one",
    )
    seed: int | None = Field(None, description="seed of all random numbers of the stage; null = the recipe's seed")
    runtime: Runtime | None = Field(
        None, description="settings that replace those of the recipe's runtime for this stage"
    )

    def runtime_in_key(self, runtime: Runtime) -> dict[str, int]:
        """What of the runtime the result depends on beyond rounding: nothing, if a kind does not say otherwise."""
        return {}

    def missing_file(self) -> str | None:
        """Returns the file of rows that is not there yet, though the recipe says how many rows it will have."""
        return None

    def expected_rows(self) -> int | None:
        """Returns how many rows the stage will make at most, where the recipe says so."""
        return None


class CanBeEmpty(Strict):
    """What a stage that can do without rows does when it gets none."""

    on_empty: Literal["fail", "pass_through"] = Field(
        "fail", description="with no rows: stop with exit code 3, or pass on the model as it was (or an empty data set)"
    )

    @property
    def needs_rows(self) -> bool:
        """Whether a stage without rows fails."""
        return self.on_empty == "fail"
