"""Prepares trackers: checks their libraries, cuts their environment to what they may see, describes their output."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.tracking import Tracking

KEYS_OF = {"WANDB_API_KEY": "wandb", "HF_TOKEN": "trackio", "HUGGING_FACE_HUB_TOKEN": "trackio"}
WandbMode = Literal["online", "offline", "disabled"]
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
    """Checks that the trackers' libraries are installed; raises RecipeError naming the extra to install."""
    missing = [name for name in tracking.to if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RecipeError(
            f"tracking.to: {', '.join(missing)} {verb} not installed: pip install 'qwen-align[{','.join(missing)}]'"
        )


def choose_wandb_mode(variables: Mapping[str, str] = os.environ) -> WandbMode:
    """Returns online with a key in the environment, else offline; WANDB_MODE can only ask for less."""
    less: WandbMode
    for less in ("offline", "disabled"):
        if variables.get("WANDB_MODE") == less:
            return less
    return "online" if variables.get("WANDB_API_KEY") else "offline"


def build_tracker_environment(
    name: str, tracking: Tracking, variables: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Builds the environment of a tracker's process: no other tracker's keys, nothing that reports to its makers."""
    is_local = name != "trackio" or tracking.space is None
    hidden = {key for key, owner in KEYS_OF.items() if owner != name or (owner == "trackio" and is_local)}
    kept = {key: value for key, value in variables.items() if key not in hidden and key not in TRACKIO_ELSEWHERE}
    return kept | QUIET | ({"HF_HUB_OFFLINE": "1"} if is_local else {})


def describe_destinations(tracking: Tracking, group: str, folder: Path) -> Iterator[str]:
    """Yields one line per tracker: where its curves go and how to look at them; `folder` holds the trackers' files."""
    for name in tracking.to:
        prefix = f"curves: {name}: "
        if name == "tensorboard":
            yield f"{prefix}files; look at them with `tensorboard --logdir {folder / name}`"
        elif name == "trackio":
            destination = f"Space {tracking.space}" if tracking.space else "local"
            yield f"{prefix}{destination}, project {tracking.project}; look at them with `trackio show`"
        elif choose_wandb_mode() == "offline":
            yield f"{prefix}offline; upload with `wandb sync {folder / name / 'offline-run-*'}`"
        else:
            yield f"{prefix}{choose_wandb_mode()}, project {tracking.project}, group {group}"
