"""Lists the experiment trackers: one file `to_<name>.py` and one line each. Their libraries are imported late."""

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
    """The interface of an experiment tracker, which sends one run at a time: `begin`, `log` with rising steps, `end`.

    Any of them may raise anything, or hang.

    library: the package it needs, an extra of its own name. api_keys: environment variables that no other tracker sees.
    """

    library: ClassVar[str]
    api_keys: ClassVar[tuple[str, ...]]

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        """Imports the tracker's library. `folder` is where the tracker may keep files."""

    def begin(self, run: Run) -> str | None:
        """Opens or resumes a tracker run. Returns a message for the user, or None."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends the metrics of one step to the tracker."""

    def end(self, *, is_whole: bool) -> None:
        """Closes the tracker run. `is_whole`: its stage has finished."""

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Returns whether the tracker's process is given its API keys."""

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Returns whether the tracker connects to the Hugging Face hub."""

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns a line that says where the tracker's curves go and how to view them."""


def load_tracker_class(name: str) -> type[Tracker]:
    """Imports and returns the class of the named tracker.

    The tracker's library is imported when the class is called.
    """
    module, _, class_name = TRACKERS[name].partition(":")
    return cast(type[Tracker], getattr(importlib.import_module(module), class_name))
