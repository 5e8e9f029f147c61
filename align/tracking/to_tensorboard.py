"""Writes TensorBoard event files, one folder per run."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run


class TensorBoard:
    """A tracker that writes one run at a time to TensorBoard event files."""

    library = "tensorboard"
    api_keys: tuple[str, ...] = ()

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder

    def begin(self, run: Run) -> str | None:
        """Opens the run's folder and writes the settings of a new run."""
        purge = None if run.last_step is None else run.last_step + 1  # what a kill has left beyond is not shown
        self._writer = self._open(str(self._folder / f"{run.name}-{run.id[:8]}"), purge_step=purge)
        if run.last_step is None:
            settings = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
            self._writer.add_text("settings", "".join(f"    {line}\n" for line in settings.splitlines()))  # as code
            self._writer.flush()
        return None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the metrics of one step to the event file."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, *, is_whole: bool) -> None:
        """Closes the event file of the run."""
        self._writer.close()

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Returns whether the tracker's process is given its API keys."""
        return False

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Returns whether the tracker connects to the Hugging Face hub."""
        return False

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns a line that says where the tracker's curves go and how to view them."""
        return f"files; look at them with `tensorboard --logdir {folder}`"
