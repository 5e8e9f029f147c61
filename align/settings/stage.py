"""Defines the settings that every stage has."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.workload import Workload


class StageSettings(Strict):
    """Settings that every kind of stage has besides its own."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$",
        max_length=80,
        description="what other stages and the command line call this one",
    )
    seed: int | None = Field(None, description="seed of all random numbers of the stage; null = the recipe's seed")
    runtime: Runtime | None = Field(
        None, description="settings that replace those of the recipe's runtime for this stage"
    )

    def get_runtime_key_settings(self, runtime: Runtime) -> dict[str, int]:
        """Returns the runtime settings on which the result depends beyond rounding.

        The dict is empty unless a kind of stage says otherwise.

        None, if a kind does not say otherwise.
        """
        return {}

    def check_runtime(self, runtime: Runtime) -> None:
        """Raises RecipeError for runtime settings with which the stage cannot be computed."""

    def get_new_model_config(self) -> dict[str, Any] | None:
        """Returns what config.json will say of the layers of a model that the stage builds anew.

        Returns None where it makes none, or goes on from another model.
        """
        return None

    def find_missing_file(self) -> str | None:
        """Returns the path of an input row file that does not exist yet but has a known number of rows.

        Returns None if there is none.
        """
        return None

    def get_expected_rows(self) -> int | None:
        """Returns the maximum number of rows the stage will make. Returns None where the recipe does not say it."""
        return None

    def count_most_rows(self, count_source: Callable[[str], int | None]) -> int | None:
        """Returns the most rows that the stage can make, generated and split ones too; None where that is not known.

        `count_source` gives the same of another stage, by what this one calls it.
        """
        return self.get_expected_rows()

    def get_workload(self) -> Workload | None:
        """Returns what the stage's memory and time depend on. Returns None for a kind that loads no model."""
        return None


class VerdictLimit(Strict):
    """The setting that says how many completions may be without a verdict where accuracy is measured.

    They are counted, and neither right nor wrong: accuracy is the share of right ones among those with a verdict.
    """

    max_no_verdict_share: float = Field(
        0.5,  # our choice, as the watchdog no_verdict's
        ge=0,
        le=1,
        description="stop where more than this share of completions has no verdict; up to it they are counted",
    )


class CanBeEmpty(Strict):
    """The setting that says what a stage does when it gets no rows."""

    on_empty: Literal["fail", "pass_through"] = Field(
        "fail", description="with no rows: stop with exit code 3, or pass on the model as it was (or an empty data set)"
    )

    @property
    def needs_rows(self) -> bool:
        """Returns whether a stage without rows fails."""
        return self.on_empty == "fail"
