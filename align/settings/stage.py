"""Settings that every stage has."""

from typing import Literal

from pydantic import Field

from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.runtime import Runtime


class StageSettings(Strict):
    """What every kind of stage has besides its own settings."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$", max_length=80)
    seed: int | None = Field(None, description="None = the recipe's seed")
    runtime: Runtime | None = Field(None, description="what differs from the recipe's runtime")

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
    """For kinds that can do without rows."""

    on_empty: Literal["fail", "pass_through"] = Field(
        "fail", description="without rows: exit 3, or pass on what there is (the model as it was, or no rows)"
    )

    @property
    def needs_rows(self) -> bool:
        """Whether a stage without rows fails."""
        return self.on_empty == "fail"
