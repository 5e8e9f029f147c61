"""Defines the settings of experiment trackers, which get training curves besides the run's own files."""

from typing import Literal

from pydantic import Field, model_validator

from qwen_align.align.settings.base import Strict

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class Tracking(Strict):
    """Experiment trackers that get the training curves while stages run. They are no part of any key."""

    to: list[TrackerName] = Field(
        default_factory=list, description="trackers to log to; each needs the package extra of its name"
    )
    project: str = Field(
        "qwen-align",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
        description="project that runs are logged under",
    )
    group: str | None = Field(None, description="group that all runs of the recipe belong to; null = the recipe's name")
    space: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Hugging Face Space (owner/name) that trackio logs to; null = a local database",
    )

    @model_validator(mode="after")
    def _check_tracker_settings(self) -> "Tracking":
        """Checks that no tracker is named twice and that a Space is given only for trackio.

        Raises ValueError otherwise.
        """
        if len(set(self.to)) < len(self.to):
            raise ValueError(f"to: a tracker is named twice: {', '.join(self.to)}")
        if self.space and "trackio" not in self.to:
            raise ValueError("space: is trackio's; add trackio to `to`, or leave space out")
        return self
