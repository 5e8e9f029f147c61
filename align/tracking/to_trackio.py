"""Sends runs to trackio: a local database, or a Hugging Face Space that the recipe names."""

from collections.abc import Mapping
from pathlib import Path

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.tracking.curve import Run


class Trackio:
    """Sends one run at a time to trackio."""

    library = "trackio"
    api_keys: tuple[str, ...] = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        import trackio

        self._trackio = trackio
        self._space = tracking.space

    def begin(self, run: Run) -> str | None:
        """Opens the run, or resumes the one of that name."""
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
        """Sends the figures of one step."""
        self._run.log(dict(figures), step=step)

    def end(self, *, is_whole: bool) -> None:
        """Closes the run."""
        self._run.finish()

    @staticmethod
    def needs_keys(tracking: Tracking) -> bool:
        """Tells whether its process is given its keys."""
        return tracking.space is not None

    @staticmethod
    def needs_hub(tracking: Tracking) -> bool:
        """Tells whether it talks to the Hugging Face hub."""
        return tracking.space is not None

    @staticmethod
    def describe_destination(tracking: Tracking, group: str, folder: Path) -> str:
        """Returns where the curves go and how to look at them."""
        destination = f"Space {tracking.space}" if tracking.space else "local"
        return f"{destination}, project {tracking.project}; look at them with `trackio show`"
