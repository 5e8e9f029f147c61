"""Shows the progress of a run: a line for each stage, and what the running one measures, live or now and then."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qwen_align.align.commands.stage_status import StageStatus, format_metrics
from qwen_align.align.context import NOTES
from qwen_align.align.pipeline.plan import Plan, PlannedStage, list_version_changes
from qwen_align.align.reporting.summary_line import format_summary, list_left_out_columns
from qwen_align.data_builders.conversion_report import format_left_out_columns

BAR_WIDTH = 24
NARROW = 60  # columns beside the longest name: kind, state and the beginning of what there is to say
# Into a file or a pipe goes a line each tenth of a stage, but no more often than this, and at least one a minute.
LEAST_SECONDS_BETWEEN_LINES, MOST_SECONDS_BETWEEN_LINES = 5.0, 60.0


class RunProgress:
    """A run listener that prints a run's progress.

    In a terminal the running stage has lines that change in place. Into a file or a pipe, or in a terminal that
    cannot move its cursor, it prints a line each tenth of the stage's steps, and at least one a minute.
    """

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._total = len(plan.stages)
        self._width = max(len(stage.name) for stage in plan.stages)
        self._number = 0
        self._printed_notes: set[str] = set()
        self._status: StageStatus | None = None  # of the running stage
        self._printed_done, self._printed_at = 0, 0.0
        # FORCE_COLOR makes rich take a file for a terminal.
        self._is_live = console.is_interactive and console.file.isatty()
        self._live = Live(console=console, transient=True, auto_refresh=False)  # no thread beside ours
        self._shown: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def on_stage_skipped(self, stage: PlannedStage) -> None:
        """Prints that a stage is already stored, and which other library versions it was made with."""
        self._number += 1
        changed = list_version_changes(stage)
        self._print_stage_line(
            stage, "stored", f"note: made with other versions: {', '.join(changed)}" if changed else ""
        )
        self._print_left_out_columns(stage)

    def on_stage_started(self, stage: PlannedStage) -> None:
        """Shows that a stage has started."""
        self._number += 1
        self._printed_notes.clear()
        self._status = StageStatus(stage.folder.path)
        self._printed_done, self._printed_at = 0, time.monotonic()
        self.show_status(stage, self._status)
        if not self._is_live:
            self._print_stage_line(stage, "started", "")

    def on_stage_progress(self, stage: PlannedStage) -> None:
        """Prints new notes of the running stage and shows how far it is and what it measured last."""
        self._print_notes(stage)
        if self._status:
            self._status.read_new()
            self.show_status(stage, self._status)

    def show_status(self, stage: PlannedStage, status: StageStatus) -> None:
        """Shows the status of the running stage: in place in a terminal, else as a line where one is due."""
        if self._is_live:
            shown = (stage.name, status.format_progress(), status.format_metrics(), self._console.size)
            if shown != self._shown:  # over a slow connection every refresh counts
                self._shown = shown
                self._live.update(self._render_status(stage, status), refresh=True)
        elif self._is_line_due(status):
            self._printed_done, self._printed_at = status.done, time.monotonic()
            parts = [part for part in (status.format_progress(), status.format_metrics()) if part]
            self._console.print(Text(f"  {stage.name}: {'  '.join(parts)}"), soft_wrap=True)

    def _is_line_due(self, status: StageStatus) -> bool:
        """Returns whether there is something new to print of the running stage, and it is time to."""
        done, seconds = status.done, time.monotonic() - self._printed_at
        if not status.progress or done <= self._printed_done:  # nothing new
            return False
        if self._printed_done == 0 and status.metrics:  # that it trains is said at once
            return True
        is_tenth = self._printed_done == 0 or 0 < status.total <= 10 * (done - self._printed_done)
        return seconds >= (LEAST_SECONDS_BETWEEN_LINES if is_tenth else MOST_SECONDS_BETWEEN_LINES)

    def _render_status(self, stage: PlannedStage, status: StageStatus) -> Group:
        """Returns the lines of the running stage: how far it is, and below it what it measured last."""
        title = self._format_title(stage).rstrip()
        head = Text(f"{title}  {status.format_progress() or 'starting'}", overflow="ellipsis")
        row = Table.grid(padding=(0, 2))
        if status.total and self._console.width >= head.cell_len + BAR_WIDTH + 4:
            row.add_row(head, ProgressBar(total=status.total, completed=status.done, width=BAR_WIDTH))
        else:
            row.add_row(head)
        row.columns[0].no_wrap = True
        return Group(row, Padding(Text(status.format_metrics()), (0, 0, 0, 2)))

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
        """Prints the run time, the last metrics and the summary of a finished stage."""
        self._print_notes(stage)
        if self._is_live:
            self._live.update(Text(""), refresh=True)
        last = ""
        if self._status:
            self._status.read_new()
            last = format_metrics(self._status.metrics)
        manifest = stage.folder.read_manifest()
        measured = "" if last else format_metrics(manifest.get("measured", {}))
        parts = [part for part in (last, format_summary(manifest["summary"]), measured) if part]
        self._print_stage_line(stage, f"{manifest['seconds']:7.1f} s", "; ".join(parts))
        self._print_left_out_columns(stage)

    def _print_left_out_columns(self, stage: PlannedStage) -> None:
        """Prints the columns that a stored data stage has left out of its source's rows, whole at any width."""
        for line in format_left_out_columns(list_left_out_columns(stage.folder.read_manifest()["summary"])):
            self._console.print(Text(f"  {stage.name}: {line}"), soft_wrap=True)

    def on_note(self, message: str) -> None:
        """Prints a message that belongs to no particular stage."""
        self._console.print(Text(f"  {message}"), soft_wrap=True)

    def _print_stage_line(self, stage: PlannedStage, state: str, text: str) -> None:
        """Prints one line about a stage, which a terminal may break."""
        self._console.print(Text(f"{self._format_title(stage)}  {state:>9}  {text}"), soft_wrap=True)

    def _format_title(self, stage: PlannedStage) -> str:
        """Formats the number, name and kind of a stage as a title. A narrow terminal has no room for the kind."""
        position = f"{self._number:>{len(str(self._total))}}/{self._total}"
        if self._is_live and self._console.width < self._width + NARROW:
            return f"{position}  {stage.name}"
        return f"{position}  {stage.name:<{self._width}}  {stage.kind:<10}"


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
