"""Prepares experiment trackers: checks their libraries, restricts their environment, describes their output."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.trackers import TRACKERS, load_tracker_class

# What would send trackio's data away without a word in the recipe.
TRACKIO_ELSEWHERE = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_WRITE_TOKEN",
    "TRACKIO_DATASET_ID",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_REGISTRY_BUCKET_ID",
    "TRACKIO_WEBHOOK_URL",
)
QUIET = {
    "WANDB_ERROR_REPORTING": "false",  # its reports of errors and usage to its makers, in Python and in its service
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "CUDA_VISIBLE_DEVICES": "",  # a tracker has no business on a GPU
}


def check_installed(tracking: Tracking) -> None:
    """Checks that the libraries of the recipe's trackers are installed.

    Raises RecipeError naming the extra to install.
    """
    missing = [name for name in tracking.to if importlib.util.find_spec(load_tracker_class(name).library) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RecipeError(
            f"tracking.to: {', '.join(missing)} {verb} not installed: pip install 'qwen-align[{','.join(missing)}]'"
        )


def build_tracker_environment(
    name: str, tracking: Tracking, variables: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Builds the environment variables of a tracker's process.

    It has no other tracker's API keys and nothing that reports to the tracker's makers.
    """
    tracker = load_tracker_class(name)
    all_keys = {key for other in TRACKERS for key in load_tracker_class(other).api_keys}
    hidden = all_keys - set(tracker.api_keys if tracker.needs_keys(tracking) else ())
    kept = {key: value for key, value in variables.items() if key not in hidden and key not in TRACKIO_ELSEWHERE}
    return kept | QUIET | ({} if tracker.needs_hub(tracking) else {"HF_HUB_OFFLINE": "1"})


def describe_destinations(tracking: Tracking, group: str, folder: Path) -> Iterator[str]:
    """Yields one line per tracker that says where its curves go and how to view them.

    `folder` holds the trackers' files.
    """
    for name in tracking.to:
        yield f"curves: {name}: {load_tracker_class(name).describe_destination(tracking, group, folder / name)}"
