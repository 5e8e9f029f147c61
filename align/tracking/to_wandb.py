"""Sends runs to Weights & Biases: offline without an API key, and only the metrics and the settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run

INIT_TIMEOUT_S = 15.0  # half of what the end of a run waits, so that a short run still has its files

WandbMode = Literal["online", "offline", "disabled"]


def choose_wandb_mode(variables: Mapping[str, str] = os.environ) -> WandbMode:
    """Returns the Weights & Biases mode: online if the environment has an API key, else offline.

    WANDB_MODE can only ask for less.
    """
    less: WandbMode
    for less in ("offline", "disabled"):
        if variables.get("WANDB_MODE") == less:
            return less
    return "online" if variables.get("WANDB_API_KEY") else "offline"


class Wandb:
    """A tracker that sends one run at a time to Weights & Biases."""

    library = "wandb"
    api_keys: tuple[str, ...] = ("WANDB_API_KEY",)

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        import wandb

        self._wandb = wandb
        self._folder = folder
        self._mode: WandbMode = choose_wandb_mode()

    def begin(self, run: Run) -> str | None:
        """Opens a Weights & Biases run.

        Returns a message for the user if the server was not reached and the run is offline.
        """
        try:
            self._run = self._init(run)
        except self._wandb.Error as error:
            if self._mode != "online":
                raise
            self._wandb.teardown()
            self._mode = "offline"
            self._run = self._init(run)
            reason = str(error).partition("\n")[0]
            return f"not reached, so offline ({reason}); upload with `wandb sync {self._folder / 'offline-run-*'}`"
        return None

    def _init(self, run: Run) -> Any:
        """Opens a Weights & Biases run that sends only metrics and settings."""
        settings = self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            init_timeout=INIT_TIMEOUT_S,
            save_code=False,
            silent=True,
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,  # seconds; a kill loses what is not on disk
        )
        return self._wandb.init(
            project=run.project,
            group=run.group,
            job_type=run.kind,
            name=run.name,
            id=run.id,
            config=run.config,
            dir=self._folder.parent,  # in which it has a folder `wandb` of its own
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            settings=settings,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends the metrics of one step to Weights & Biases."""
        self._run.log(dict(figures), step=step, commit=True)

    def end(self, *, is_whole: bool) -> None:
        """Closes the Weights & Biases run, marked as failed unless `is_whole`."""
        self._run.finish(exit_code=0 if is_whole else 1)

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Returns whether the tracker's process is given its API keys."""
        return True

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Returns whether the tracker connects to the Hugging Face hub."""
        return False

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns a line that says where the tracker's curves go and how to view them."""
        if (mode := choose_wandb_mode()) == "offline":
            return f"offline; upload with `wandb sync {folder / 'offline-run-*'}`"
        return f"{mode}, project {tracking.project}, group {group}"
