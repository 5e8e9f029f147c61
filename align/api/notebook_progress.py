"""Shows the progress of a run in a notebook: text lines as in a terminal, and one status line above them."""

import contextlib
import json
import sys
from importlib import import_module
from typing import Any, Self

from rich.console import Console

from qwen_align.align.commands.progress import RunProgress, format_progress
from qwen_align.align.context import PROGRESS
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
        self._status = ""
        self._display: Any = None

    def __enter__(self) -> Self:
        show = import_module("IPython.display").display
        self._display = show({"text/plain": ""}, raw=True, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._show_status("")

    def on_stage_progress(self, stage: PlannedStage) -> None:
        super().on_stage_progress(stage)
        with contextlib.suppress(FileNotFoundError):  # the stage has not begun, or has just finished
            state = json.loads((stage.folder.path / PROGRESS).read_text())
            self._show_status(f"{stage.name}: {format_progress(state)}")

    def on_stage_finished(self, stage: PlannedStage) -> None:
        self._show_status("")
        super().on_stage_finished(stage)

    def _show_status(self, text: str) -> None:
        if text != self._status:
            self._status = text
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
