"""The trackers that curves can go to: one file `to_<name>.py` and one line each; their libraries are imported late."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, cast

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run

TRACKERS = {
    "tensorboard": "qwen_align.align.tracking.to_tensorboard:TensorBoard",
    "wandb": "qwen_align.align.tracking.to_wandb:Wandb",
    "trackio": "qwen_align.align.tracking.to_trackio:Trackio",
}


class Tracker(Protocol):
    """Sends one run at a time: `begin`, `log` with rising steps, `end`. Any of them may raise anything, or hang.

    library: the package it needs, an extra of its own name. api_keys: environment variables that no other tracker sees.
    """

    library: ClassVar[str]
    api_keys: ClassVar[tuple[str, ...]]

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        """Imports the library; `folder` is where the tracker may keep files."""

    def begin(self, run: Run) -> str | None:
        """Opens or resumes a run; returns a message to people, if there is one."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends the figures of one step."""

    def end(self, *, is_whole: bool) -> None:
        """Closes the run; `is_whole`: its stage has finished."""

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Tells whether its process is given its keys."""

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Tells whether it talks to the Hugging Face hub."""

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns where the curves go and how to look at them."""


def load_tracker_class(name: str) -> type[Tracker]:
    """Returns the class of a tracker; its library is imported when the class is called."""
    module, _, class_name = TRACKERS[name].partition(":")
    return cast(type[Tracker], getattr(importlib.import_module(module), class_name))
