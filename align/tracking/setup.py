"""What each tracker needs, where it writes, and what of the environment it is given."""

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


def check(tracking: Tracking) -> None:
    """Raises RecipeError naming the extra to install when a tracker's library is missing."""
    missing = [name for name in tracking.to if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RecipeError(
            f"tracking.to: {', '.join(missing)} {verb} not installed: pip install 'qwen-align[{','.join(missing)}]'"
        )


def choose_wandb_mode(given: Mapping[str, str] = os.environ) -> WandbMode:
    """online with a key in the environment, else offline; WANDB_MODE can only ask for less."""
    less: WandbMode
    for less in ("offline", "disabled"):
        if given.get("WANDB_MODE") == less:
            return less
    return "online" if given.get("WANDB_API_KEY") else "offline"


def build_tracker_environment(name: str, tracking: Tracking, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a tracker's process: nobody else's keys, nothing that reports to its makers."""
    is_local = name != "trackio" or tracking.space is None
    hidden = {key for key, owner in KEYS_OF.items() if owner != name or (owner == "trackio" and is_local)}
    kept = {key: value for key, value in given.items() if key not in hidden and key not in TRACKIO_ELSEWHERE}
    return kept | QUIET | ({"HF_HUB_OFFLINE": "1"} if is_local else {})


def where(tracking: Tracking, group: str, folder: Path) -> Iterator[str]:
    """A line a tracker: where the curves go and how they are looked at; `folder` holds the trackers' files."""
    for name in tracking.to:
        said = f"curves: {name}: "
        if name == "tensorboard":
            yield f"{said}files; look at them with `tensorboard --logdir {folder / name}`"
        elif name == "trackio":
            at = f"Space {tracking.space}" if tracking.space else "local"
            yield f"{said}{at}, project {tracking.project}; look at them with `trackio show`"
        elif choose_wandb_mode() == "offline":
            yield f"{said}offline; upload with `wandb sync {folder / name / 'offline-run-*'}`"
        else:
            yield f"{said}{choose_wandb_mode()}, project {tracking.project}, group {group}"
