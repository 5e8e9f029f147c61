"""Shows the progress of a run in the terminal: a line for each stage, and a bar for the running one."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from qwen_align.align.context import NOTES, PROGRESS
from qwen_align.align.pipeline.plan import Plan, PlannedStage, list_version_changes
from qwen_align.align.reporting.summary_line import format_summary, list_left_out_columns
from qwen_align.data_builders.conversion_report import format_left_out_columns


class RunProgress:
    """A run listener that prints a run's progress to the terminal.

    Without a terminal it prints one line per stage and no bars.
    """

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._total = len(plan.stages)
        self._width = max(len(stage.name) for stage in plan.stages)
        self._number = 0
        self._printed_notes: set[str] = set()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[progress_text]}"),
            console=console,
            transient=True,
            auto_refresh=False,  # no thread beside ours
        )
        self._task = self._bar.add_task("", total=None, progress_text="", visible=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def on_stage_skipped(self, stage: PlannedStage) -> None:
        """Prints that a stage is already stored, and which other library versions it was made with."""
        self._number += 1
        changed = list_version_changes(stage)
        self._print_stage_line(
            stage, "stored", f"note: made with other versions: {', '.join(changed)}" if changed else ""
        )
        self._print_left_out_columns(stage)

    def on_stage_started(self, stage: PlannedStage) -> None:
        """Shows the progress bar of a stage that has started."""
        self._number += 1
        self._printed_notes.clear()
        self._bar.reset(
            self._task, description=self._format_title(stage), total=None, progress_text="starting", visible=True
        )
        if not self._console.is_terminal:
            self._print_stage_line(stage, "started", "")

    def on_stage_progress(self, stage: PlannedStage) -> None:
        """Prints new notes of the running stage and updates its progress bar."""
        self._print_notes(stage)
        path = stage.folder.path / PROGRESS
        if self._console.is_terminal and path.exists():
            with contextlib.suppress(FileNotFoundError):  # the stage finished between the two calls
                state = json.loads(path.read_text())
                total = state["total"] or None
                self._bar.update(self._task, completed=state["done"], total=total, progress_text=format_progress(state))
        self._bar.refresh()

    def _print_notes(self, stage: PlannedStage) -> None:
        """Prints the notes that a stage has written since the last call. An unfinished line waits."""
        path = stage.folder.path / NOTES
        if not path.exists():
            return
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            if line in self._printed_notes:  # by its text: a resumed stage drops the notes after its checkpoint
                continue
            self._printed_notes.add(line)
            note = json.loads(line)
            at = f"step {note['step']}: " if note["step"] else ""
            self._console.print(Text(f"  {stage.name}: {at}{note['what']}: {note['message']}"), soft_wrap=True)

    def on_stage_finished(self, stage: PlannedStage) -> None:
        """Prints the run time and the summary of a finished stage."""
        self._print_notes(stage)
        self._bar.update(self._task, visible=False)
        manifest = stage.folder.read_manifest()
        self._print_stage_line(stage, f"{manifest['seconds']:7.1f} s", format_summary(manifest["summary"]))
        self._print_left_out_columns(stage)

    def _print_left_out_columns(self, stage: PlannedStage) -> None:
        """Prints the columns that a stored data stage has left out of its source's rows, whole at any width."""
        for line in format_left_out_columns(list_left_out_columns(stage.folder.read_manifest()["summary"])):
            self._console.print(Text(f"  {stage.name}: {line}"), soft_wrap=True)

    def on_note(self, message: str) -> None:
        """Prints a message that belongs to no particular stage."""
        self._console.print(Text(f"  {message}"), soft_wrap=True)

    def _print_stage_line(self, stage: PlannedStage, state: str, text: str) -> None:
        """Prints one line about a stage, cut at the terminal's width."""
        line = Text(f"{self._format_title(stage)}  {state:>9}  {text}", overflow="ellipsis", no_wrap=True)
        self._console.print(line, soft_wrap=not self._console.is_terminal)

    def _format_title(self, stage: PlannedStage) -> str:
        """Formats the number, name and kind of a stage as a title."""
        position = f"{self._number:>{len(str(self._total))}}/{self._total}"
        return f"{position}  {stage.name:<{self._width}}  {stage.kind:<10}"


def format_progress(progress: dict[str, float]) -> str:
    """Formats the progress of a stage as `12/60 steps  3,400 tok/s  ETA 1:20`.

    Speeds count the work of this process only.
    """
    done, total, seconds = progress["done"], progress["total"], progress["seconds"]
    parts = [f"{done:,}/{total:,} {progress['unit']}" if total else f"{done:,} {progress['unit']}"]
    if progress["tokens_here"] and seconds > 0:
        parts.append(f"{progress['tokens_here'] / seconds:,.0f} tok/s")
    if total and progress["done_here"]:
        left = int(seconds / progress["done_here"] * (total - done))
        parts.append(f"ETA {left // 60}:{left % 60:02d}")
    return "  ".join(parts)


class StopRequest:
    """A callable that returns whether a signal has asked the run to stop.

    `signals` has the numbers of the received signals.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> bool:
        return bool(self.signals)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM, SIGINT and SIGUSR1 into stop requests inside the `with` block.

    A second SIGINT interrupts as usual.

    Outside the main thread Python lets nobody handle signals: they then keep their handlers.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, _: object) -> None:
        stop.signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
