"""Sends runs to trackio: a local database, or a Hugging Face Space that the recipe names."""

from collections.abc import Mapping
from pathlib import Path

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run


class Trackio:
    """A tracker that sends one run at a time to trackio."""

    library = "trackio"
    api_keys: tuple[str, ...] = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        import trackio

        self._trackio = trackio
        self._space = tracking.space

    def begin(self, run: Run) -> str | None:
        """Opens a trackio run, or resumes the run with the same name."""
        self._run = self._trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id[:8]}",  # runs are resumed by name
            group=run.group,
            config=run.config,
            resume="allow",
            space_id=self._space,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends the metrics of one step to trackio."""
        self._run.log(dict(figures), step=step)

    def end(self, *, is_whole: bool) -> None:
        """Closes the trackio run."""
        self._run.finish()

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Returns whether the tracker's process is given its API keys."""
        return tracking.space is not None

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Returns whether the tracker connects to the Hugging Face hub."""
        return tracking.space is not None

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns a line that says where the tracker's curves go and how to view them."""
        destination = f"Space {tracking.space}" if tracking.space else "local"
        return f"{destination}, project {tracking.project}; look at them with `trackio show`"
