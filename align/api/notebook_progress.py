"""Shows the progress of a run in a notebook: text lines as in a terminal, and one status line above them."""

import sys
from importlib import import_module
from typing import Any, Self

from rich.console import Console

from qwen_align.align.commands.progress import RunProgress
from qwen_align.align.commands.stage_status import StageStatus
from qwen_align.align.pipeline.plan import Plan, PlannedStage


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookProgress(RunProgress):
    """A run listener that prints a line for each stage and updates one status line with the running stage's progress.

    Everything is shown from the thread that calls, and needs no widgets.
    """

    def __init__(self, console: Console, planned: Plan) -> None:
        super().__init__(console, planned)
        self._text = ""
        self._display: Any = None

    def __enter__(self) -> Self:
        show = import_module("IPython.display").display
        self._display = show({"text/plain": ""}, raw=True, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._show_text("")

    def show_status(self, stage: PlannedStage, status: StageStatus) -> None:
        """Shows the status of the running stage in the line above the cell's output."""
        if status.progress:
            parts = [part for part in (status.format_progress(), status.format_metrics()) if part]
            self._show_text(f"{stage.name}: {'  '.join(parts)}")

    def on_stage_finished(self, stage: PlannedStage) -> None:
        self._show_text("")
        super().on_stage_finished(stage)

    def _show_text(self, text: str) -> None:
        if text != self._text:
            self._text = text
            self._display.update({"text/plain": text}, raw=True)


class SilentListener:
    """A run listener that shows nothing."""

    def on_stage_skipped(self, stage: PlannedStage) -> None:
        pass

    def on_stage_started(self, stage: PlannedStage) -> None:
        pass

    def on_stage_progress(self, stage: PlannedStage) -> None:
        pass

    def on_stage_finished(self, stage: PlannedStage) -> None:
        pass

    def on_note(self, message: str) -> None:
        pass
